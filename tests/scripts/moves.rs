//! The scripts, one at a time: a world in, one script, the world out, against a real Redis; and each call again.

use std::collections::HashSet;
use std::time::Duration;

use crate::support::{World, instance, instance_lane, job, name, of_tenant, offers, tags, text};
use job_router::fairness::{bucket_score, head_of};
use job_router::job::{Lease, LeaseId, OfferId, PendingJob, Priority, ProjectId, RunnerId, Tenant};
use job_router::redis::scripts::Outcome;
use job_router::redis::{Expired, HandOver, Keys, Renewed, Report, Return, Runners, TakenJob};
use job_router::runner::{Lane, RunnerRecord, Scope};
use job_router::tags::Capability;

const LEASE: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(3600);
const ACCEPT: Duration = Duration::from_secs(5);

async fn instance_world() -> World {
    World::with_scopes(&[Scope::Instance]).await
}

async fn take_from(world: &World, lane: Lane, n: usize) -> Vec<TakenJob> {
    world.partition.take(&name("pod"), ACCEPT, 0, &[lane], &offers(n)).await.expect("takes").jobs
}

async fn take(world: &World, n: usize) -> Vec<TakenJob> {
    take_from(world, instance_lane(), n).await
}

async fn take_one(world: &World) -> Lease {
    let taken = take(world, 1).await;
    assert_eq!(taken.len(), 1, "a job was queued");
    taken[0].lease
}

async fn start(world: &World, lease: Lease) -> Outcome {
    world.partition.start(LEASE, &[lease]).await.expect("starts")[0].outcome()
}

async fn running(world: &World) -> Lease {
    let lease = take_one(world).await;
    assert_eq!(start(world, lease).await, Outcome::Ok);
    lease
}

fn success(lease: Lease) -> Report {
    Report {
        job_id: lease.job_id,
        lease_id: Some(lease.lease_id),
        status: "success",
        exit_code: 0,
        failure_reason: String::new(),
    }
}

async fn finish(world: &World, lease: Lease) -> Outcome {
    world.partition.finish(TTL, &[success(lease)]).await.expect("finishes")[0]
}

async fn give_back(world: &World, lease: Lease) -> Outcome {
    let back = Return { lease, reason: "declined", failed_delivery: true };
    world.partition.give_back(&name("pod"), 3, TTL, &[back]).await.expect("gives back").0[0]
}

async fn cancel(world: &World, id: u64) -> Outcome {
    world.partition.cancel(job_router::job::JobId(id), "not \"needed\"", LEASE, TTL).await.expect("cancels")
}

fn ids(taken: &[TakenJob]) -> Vec<u64> {
    taken.iter().map(|job| job.lease.job_id.0).collect()
}

/// What may stay of a job that ended: nothing but its record and what belongs to its project and lane.
async fn assert_only_records_left(world: &World) {
    let left: Vec<String> = world.snapshot().await.into_keys().collect();
    let stays = |key: &String| {
        ["instance", "pods", "lanes", "capabilities", "scopes", "events", "turn"].contains(&key.as_str())
            || ["ended:", "took:", "project:", "tenant:", "mail:", "waiting:"]
                .iter()
                .any(|prefix| key.starts_with(prefix))
    };
    let leaked: Vec<&String> = left.iter().filter(|key| !stays(key)).collect();
    assert!(leaked.is_empty(), "left behind: {leaked:?}");
}

#[tokio::test]
async fn a_job_goes_its_whole_way_and_leaves_only_a_record() {
    let world = instance_world().await;
    assert_eq!(world.queue(job(1)).await.outcomes, [Outcome::Ok]);
    let taken = take(&world, 1).await;
    assert_eq!(ids(&taken), [1]);
    assert_eq!(&taken[0].payload[..], br#"{"steps":[]}"#);
    assert_eq!((taken[0].attempt, taken[0].timeout), (1, Duration::from_secs(3600)));
    let lease = taken[0].lease;
    assert_eq!(start(&world, lease).await, Outcome::Ok);
    let renewed = world.partition.renew(&name("pod"), LEASE, &[lease]).await.expect("renews");
    assert_eq!(renewed, [Renewed::Running]);
    assert_eq!(finish(&world, lease).await, Outcome::Ok);
    assert_eq!(
        world.events().await,
        ["1 job.queued", "1 job.assigned", "1 job.running", "1 job.finished"].map(|e| e.replace("job.", ""))
    );
    assert_only_records_left(&world).await;
}

/// Queues a job with a free slot in the instance lane. Answers its lease, if it was handed over.
async fn queue_with_slot(world: &World, entry: u64, job: PendingJob) -> Option<Lease> {
    let offer = offers(1).remove(0);
    let lane = Lane { scope: Scope::Instance, fingerprint: job.capability.fingerprint() };
    let (id, slot) = (job.id, HandOver { job_id: job.id, lane, rank: 0, offer });
    let entry = (format!("{entry}-0"), job);
    let done = world.partition.fan_out(&name("pod"), &[entry], ACCEPT, &[slot]).await.expect("fans out");
    assert_eq!(done.outcomes, [Outcome::Ok]);
    assert!(done.handed.iter().all(|handed| handed.job_id == id) && done.handed.len() < 2);
    done.handed.first().copied()
}

#[tokio::test]
async fn a_job_that_nobody_stands_before_goes_to_the_slot_that_came_along() {
    let world = instance_world().await;
    let lease = queue_with_slot(&world, 1_790_000_000_000, job(2)).await.expect("it was handed over");
    assert_eq!(world.events().await, ["2 queued", "2 assigned"]);
    assert!(take(&world, 1).await.is_empty(), "it is not queued");
    assert_eq!(start(&world, lease).await, Outcome::Ok);
    assert_eq!(finish(&world, lease).await, Outcome::Ok);
    assert_only_records_left(&world).await;
}

#[tokio::test]
async fn a_job_that_was_handed_over_and_given_back_goes_before_those_that_came_after_it() {
    let world = instance_world().await;
    let lease = queue_with_slot(&world, 1_790_000_000_000, job(2)).await.expect("it was handed over");
    world.queue(job(3)).await;
    assert_eq!(give_back(&world, lease).await, Outcome::Ok);
    let taken = take(&world, 2).await;
    assert_eq!((ids(&taken), taken[0].attempt), (vec![2, 3], 2));
}

#[tokio::test]
async fn a_job_is_queued_though_a_slot_came_along_where_others_stand_before_it_or_a_cap_is_reached() {
    let world = instance_world().await;
    world.queue(job(1)).await;
    let head = running(&world).await;
    world.queue(of_tenant(job(2), 2, 7)).await;
    // Another tenant's job stands in the lane.
    assert!(queue_with_slot(&world, 1_790_000_000_000, job(3)).await.is_none());
    assert_eq!(take(&world, 2).await.len(), 2);

    // Its tenant, and then its project, has as many running as it may.
    let one = Some(1);
    let tenant = job(1).tenant;
    world.partition.tenant(&tenant, "1790000000000-0", 1, one).await.expect("stores");
    assert!(queue_with_slot(&world, 1_790_000_000_001, job(4)).await.is_none());
    world.partition.tenant(&tenant, "1790000000002-0", 1, None).await.expect("stores");
    assert_eq!(ids(&take(&world, 2).await), [4]);
    let project = job(1).project.id;
    world.partition.project(project, "1790000000003-0", &tenant, None, None, one).await.expect("stores");
    world.partition.index(&name("pod"), Some(project)).await.expect("indexes");
    assert!(queue_with_slot(&world, 1_790_000_000_004, job(5)).await.is_none());

    // It may not run on instance runners at all.
    let mut elsewhere = of_tenant(job(6), 6, 8);
    elsewhere.project.instance_runners = false;
    assert!(queue_with_slot(&world, 1_790_000_000_005, elsewhere).await.is_none());
    assert_eq!(finish(&world, head).await, Outcome::Ok);
}

#[tokio::test]
async fn a_hand_over_that_failed_half_way_is_completed_by_the_same_call() {
    let world = instance_world().await;
    let (job, offer) = (job(2), offers(1).remove(0));
    let running = format!("{}running:{}", world.prefix, job.tenant.key());
    let slot = [HandOver { job_id: job.id, lane: instance_lane(), rank: 0, offer }];
    let entry = [("1790000000000-0".to_owned(), job)];
    let pod = name("pod");
    let fan_out = || world.partition.fan_out(&pod, &entry, ACCEPT, &slot);
    let deadlines = format!("{}deadlines", world.prefix);
    world.command("SET", &[&deadlines, "of another type"]).await;
    fan_out().await.expect_err("it has no deadline");
    world.command("DEL", &[&deadlines]).await;
    let lease = fan_out().await.expect("fans out").handed[0];
    assert_eq!(world.command("SCARD", &[&running]).await.as_u64().ok(), Some(1), "it is counted");
    assert_eq!(world.command("ZCARD", &[&deadlines]).await.as_u64().ok(), Some(1), "it is looked after");
    let held = format!("{}pod:pod:jobs", world.prefix);
    assert_eq!(world.command("SCARD", &[&held]).await.as_u64().ok(), Some(1), "its pod is known");
    assert_eq!(start(&world, lease).await, Outcome::Ok);
    assert_eq!(finish(&world, lease).await, Outcome::Ok);
    assert_only_records_left(&world).await;
}

#[tokio::test]
async fn a_hand_over_that_could_not_be_told_leaves_nothing_in_its_bucket() {
    let world = instance_world().await;
    let events = format!("{}events", world.prefix);
    world.command("SET", &[&events, "of another type"]).await;
    let (job, offer) = (job(2), offers(1).remove(0));
    let slot = [HandOver { job_id: job.id, lane: instance_lane(), rank: 0, offer }];
    let entry = [("1790000000000-0".to_owned(), job)];
    let pod = name("pod");
    let fan_out = || world.partition.fan_out(&pod, &entry, ACCEPT, &slot);
    fan_out().await.expect_err("it cannot be told");
    world.command("DEL", &[&events]).await;
    let lease = fan_out().await.expect("fans out").handed[0];
    assert_eq!(start(&world, lease).await, Outcome::Ok);
    assert_eq!(finish(&world, lease).await, Outcome::Ok);
    assert_only_records_left(&world).await;
}

#[tokio::test]
async fn a_job_that_was_queued_half_way_is_put_into_its_lanes_by_the_same_call() {
    let world = instance_world().await;
    let lane = format!("{}lane:{}:{}", world.prefix, instance_lane(), job(1).tenant.key());
    world.command("SET", &[&lane, "of another type"]).await;
    let entry = [("1790000000000-0".to_owned(), job(1))];
    let pod = name("pod");
    let fan_out = || world.partition.fan_out(&pod, &entry, ACCEPT, &[]);
    fan_out().await.expect_err("its bucket has no place");
    world.command("DEL", &[&lane]).await;
    assert_eq!(fan_out().await.expect("fans out").outcomes, [Outcome::Known]);
    assert_eq!(ids(&take(&world, 2).await), [1]);
}

/// What is known of a call goes by Redis' wall clock, and a failover may set that on by hours.
#[tokio::test]
async fn offers_that_come_again_when_nothing_is_known_of_them_any_more_are_other_leases() {
    let world = instance_world().await;
    for id in 1..=3 {
        world.queue(job(id)).await;
    }
    let slots = offers(1);
    let mut leases = HashSet::new();
    let mut take_again = async |back: Option<Lease>| {
        if let Some(lease) = back {
            assert_eq!(give_back(&world, lease).await, Outcome::Ok);
        }
        let taken =
            world.partition.take(&name("pod"), ACCEPT, 0, &[instance_lane()], &slots).await.expect("takes").jobs;
        let took = format!("{}took:{}", world.prefix, slots[0].id);
        assert_eq!(world.command("DEL", &[&took]).await.as_u64().ok(), Some(1), "the test deletes what it means to");
        assert!(leases.insert(taken[0].lease.lease_id), "{:?}", taken[0]);
        (taken[0].lease, taken[0].attempt)
    };
    let (first, _) = take_again(None).await;
    assert_eq!(first.lease_id.partition(), 0);
    let (second, attempt) = take_again(Some(first)).await;
    assert_eq!((second.job_id, attempt), (first.job_id, 2), "the same job later");
    let (other, _) = take_again(None).await;
    assert_ne!(other.job_id, first.job_id);
    assert_eq!(give_back(&world, first).await, Outcome::Stale);
    assert_eq!(start(&world, second).await, Outcome::Ok);
}

#[tokio::test]
async fn every_call_of_a_life_repeated_changes_nothing_more() {
    let world = instance_world().await;
    let entry = [("1780000000000-0".to_owned(), job(1))];
    world.partition.fan_out(&name("pod"), &entry, ACCEPT, &[]).await.expect("fans out");
    let queued = world.snapshot().await;
    let again = world.partition.fan_out(&name("pod"), &entry, ACCEPT, &[]).await.expect("fans out");
    assert_eq!(again.outcomes, [Outcome::Known]);
    assert_eq!(world.snapshot().await, queued);

    // The reply that a job was handed over may be lost: the same is answered again.
    let away = take(&world, 1).await;
    assert_eq!(start(&world, away[0].lease).await, Outcome::Ok);
    let with_slot = [("1780000000001-0".to_owned(), job(2))];
    let slot = [HandOver { job_id: with_slot[0].1.id, lane: instance_lane(), rank: 0, offer: offers(1).remove(0) }];
    let first = world.partition.fan_out(&name("pod"), &with_slot, ACCEPT, &slot).await.expect("fans out");
    let handed = world.snapshot().await;
    let again = world.partition.fan_out(&name("pod"), &with_slot, ACCEPT, &slot).await.expect("fans out");
    assert_eq!((first.handed.len(), again.outcomes), (1, vec![Outcome::Known]));
    assert_eq!(again.handed, first.handed);
    assert_eq!(world.snapshot().await, handed);
    world.queue(job(3)).await;

    let slots = offers(2);
    let first = world.partition.take(&name("pod"), ACCEPT, 0, &[instance_lane()], &slots).await.expect("takes").jobs;
    let assigned = world.snapshot().await;
    let second = world.partition.take(&name("pod"), ACCEPT, 0, &[instance_lane()], &slots).await.expect("takes").jobs;
    assert_eq!((ids(&first), first[0].lease), (ids(&second), second[0].lease));
    assert_eq!(world.snapshot().await, assigned);

    let lease = first[0].lease;
    assert_eq!(start(&world, lease).await, Outcome::Ok);
    let mut started = world.snapshot().await;
    assert_eq!(start(&world, lease).await, Outcome::Ok);
    assert_eq!(world.snapshot().await, started);

    assert_eq!(finish(&world, lease).await, Outcome::Ok);
    started = world.snapshot().await;
    assert_eq!(finish(&world, lease).await, Outcome::Ok);
    assert_eq!(world.snapshot().await, started);
}

#[tokio::test]
async fn a_pending_job_that_ended_lately_is_not_queued_again() {
    let world = instance_world().await;
    world.queue(job(1)).await;
    let lease = running(&world).await;
    finish(&world, lease).await;
    assert_eq!(world.queue(job(1)).await.outcomes, [Outcome::Known]);
    assert!(take(&world, 1).await.is_empty());
}

#[tokio::test]
async fn a_wrong_lease_moves_nothing() {
    let world = instance_world().await;
    world.queue(job(1)).await;
    let lease = take_one(&world).await;
    let other = Lease { lease_id: LeaseId::random(0), ..lease };
    let before = world.snapshot().await;
    assert_eq!(start(&world, other).await, Outcome::Stale);
    assert_eq!(finish(&world, other).await, Outcome::Stale);
    assert_eq!(give_back(&world, other).await, Outcome::Stale);
    assert_eq!(world.partition.renew(&name("pod"), LEASE, &[other]).await.expect("renews"), [Renewed::NotYours]);
    assert_eq!(world.snapshot().await, before);
}

#[tokio::test]
async fn a_runner_cannot_finish_what_it_did_not_start() {
    let world = instance_world().await;
    world.queue(job(1)).await;
    let lease = take_one(&world).await;
    assert_eq!(finish(&world, lease).await, Outcome::Refused);
    assert_eq!(world.fields(1).await["state"], "assigned");
}

#[tokio::test]
async fn a_given_back_job_keeps_its_place() {
    let world = instance_world().await;
    for id in 1..=4 {
        world.queue(job(id)).await;
    }
    let taken = take(&world, 3).await;
    assert_eq!(ids(&taken), [1, 2, 3]);
    assert_eq!(give_back(&world, taken[1].lease).await, Outcome::Ok);
    assert_eq!(give_back(&world, taken[0].lease).await, Outcome::Ok);
    assert_eq!(give_back(&world, taken[0].lease).await, Outcome::Ok, "repeated");
    assert_eq!(start(&world, taken[0].lease).await, Outcome::Stale);
    assert_eq!(ids(&take(&world, 4).await), [1, 2, 4]);
    let lease = &world.fields(1).await["lease"];
    assert_eq!(lease.split(' ').nth(1), Some("2"), "its attempt in {lease}");
}

#[tokio::test]
async fn a_job_nobody_can_be_handed_fails_as_undeliverable() {
    let world = instance_world().await;
    world.queue(job(1)).await;
    for _ in 0..4 {
        let lease = take_one(&world).await;
        assert_eq!(give_back(&world, lease).await, Outcome::Ok);
    }
    assert!(take(&world, 1).await.is_empty());
    assert_eq!(world.events().await.last().expect("events"), "1 failed");
    assert_only_records_left(&world).await;
}

#[tokio::test]
async fn cancel_ends_a_queued_job_and_its_place() {
    let world = instance_world().await;
    world.queue(job(1)).await;
    world.queue(job(2)).await;
    assert_eq!(cancel(&world, 1).await, Outcome::Ok);
    assert_eq!(cancel(&world, 1).await, Outcome::Gone);
    assert_eq!(ids(&take(&world, 2).await), [2]);
    let record = &world.fields(2).await["lease"];
    let lease_id = record.split(' ').next().expect("it has words").parse().expect("a lease id");
    let lease = Lease { job_id: job(2).id, lease_id };
    start(&world, lease).await;
    finish(&world, lease).await;
    assert_only_records_left(&world).await;
}

#[tokio::test]
async fn cancel_of_an_assigned_job_wins_over_its_start() {
    let world = instance_world().await;
    world.queue(job(1)).await;
    let lease = take_one(&world).await;
    assert_eq!(cancel(&world, 1).await, Outcome::Ok);
    assert_eq!(start(&world, lease).await, Outcome::Gone);
    let mail = world.snapshot().await.remove("mail:pod").expect("mail");
    assert!(mail.contains("revoke") && mail.contains(&lease.lease_id.to_string()), "{mail}");
    assert_only_records_left(&world).await;
}

#[tokio::test]
async fn a_running_job_is_canceled_when_it_stops_whatever_it_reports() {
    let world = instance_world().await;
    world.queue(job(1)).await;
    let lease = running(&world).await;
    assert_eq!(cancel(&world, 1).await, Outcome::Ok);
    assert_eq!(cancel(&world, 1).await, Outcome::Ok);
    assert_eq!(start(&world, lease).await, Outcome::Refused);
    let renewed = world.partition.renew(&name("pod"), LEASE, &[lease]).await.expect("renews");
    assert!(matches!(&renewed[..], [Renewed::Canceling { reason, .. }] if reason == "not \"needed\""), "{renewed:?}");
    assert_eq!(finish(&world, lease).await, Outcome::Ok);
    assert_eq!(world.events().await[3..], ["1 canceled"]);
    assert_only_records_left(&world).await;
}

#[tokio::test]
async fn a_cancel_before_its_pending_refuses_the_late_one() {
    let world = instance_world().await;
    assert_eq!(cancel(&world, 1).await, Outcome::Ok);
    assert_eq!(world.queue(job(1)).await.outcomes, [Outcome::Known]);
    assert!(take(&world, 1).await.is_empty());
    assert_eq!(world.events().await, ["1 canceled"]);
}

#[tokio::test]
async fn rails_may_end_a_job_in_any_state_and_before_it_is_pending() {
    let world = instance_world().await;
    for id in 1..=3 {
        world.queue(job(id)).await;
    }
    let taken = take(&world, 2).await;
    start(&world, taken[0].lease).await;
    let reports: Vec<Report> = (1..=4)
        .map(|id| Report {
            job_id: job(id).id,
            lease_id: None,
            status: "failed",
            exit_code: 2,
            failure_reason: "x".into(),
        })
        .collect();
    let outcomes = world.partition.finish(TTL, &reports).await.expect("finishes");
    assert_eq!(outcomes, [Outcome::Ok, Outcome::Ok, Outcome::Ok, Outcome::Gone]);
    assert_eq!(world.queue(job(4)).await.outcomes, [Outcome::Known]);
    assert_only_records_left(&world).await;
}

#[tokio::test]
async fn an_expired_lease_fails_the_job_or_queues_it_again_by_its_attempts() {
    let world = instance_world().await;
    let mut twice = job(2);
    twice.max_attempts = 2;
    world.queue(job(1)).await;
    world.queue(twice).await;
    let (first, second) = (running(&world).await, running(&world).await);
    let due = world.partition.due(LEASE * 2, LEASE * 4, 10, 10).await.expect("due").due;
    assert_eq!(due.len(), 2);
    let seen = [(first, "0".to_owned()), (second, "7".to_owned())];
    let (expired, _) = world.partition.expire(&name("pod"), TTL, &seen).await.expect("expires");
    assert_eq!(expired, [Expired::Failed, Expired::Not], "the second has beaten since");
    let (expired, _) = world.partition.expire(&name("pod"), TTL, &[(second, "0".to_owned())]).await.expect("expires");
    assert_eq!(expired, [Expired::Requeued]);
    assert_eq!(finish(&world, second).await, Outcome::Stale);
    let third = running(&world).await;
    assert_eq!(third.job_id, second.job_id);
    let (expired, _) = world.partition.expire(&name("pod"), TTL, &[(third, "0".to_owned())]).await.expect("expires");
    assert_eq!(expired, [Expired::Failed]);
    assert_eq!(finish(&world, third).await, Outcome::Gone, "its report is not the one that counted");
    assert_only_records_left(&world).await;
}

#[tokio::test]
async fn a_job_that_does_not_beat_is_looked_at_when_it_is_canceled_though_the_clock_was_set_back() {
    let world = instance_world().await;
    world.queue(job(1)).await;
    let lease = take_one(&world).await;
    let (offer, runner) = (OfferId::random(0), (RunnerId(1), name("s_1")));
    let told = world.partition.acknowledge(&name("pod"), LEASE, lease.job_id, offer, Some(&runner)).await;
    assert_eq!(told.expect("acknowledges"), Outcome::Ok);
    let due = async || world.partition.due(LEASE * 2, LEASE * 4, 10, 10).await.expect("due").due;
    let set_back = async || {
        let far = (job_router::clock::unix_ms() + LEASE.as_millis() as u64 * 10).to_string();
        world.command("ZADD", &[&world.partition.key("deadlines"), &far, "1"]).await;
    };
    set_back().await;
    assert_eq!(due().await, [], "it may be silent for as long as its script may take");
    assert_eq!(cancel(&world, 1).await, Outcome::Ok);
    set_back().await;
    let due = due().await;
    assert_eq!((due.len(), due[0].state.as_str(), due[0].silent), (1, "canceling", None));
}

#[tokio::test]
async fn all_that_is_due_is_found_once_page_by_page_also_where_deadlines_are_the_same() {
    let world = instance_world().await;
    for id in 1..=7 {
        world.queue(job(id)).await;
    }
    let leases: Vec<_> = take(&world, 7).await.into_iter().map(|job| job.lease).collect();
    world.partition.start(LEASE, &leases[..4]).await.expect("starts");
    for page in 1..=8 {
        let due = world.partition.due(LEASE * 2, LEASE * 4, page, 100).await.expect("due").due;
        let mut found: Vec<u64> = due.iter().map(|due| due.lease.job_id.0).collect();
        found.sort_unstable();
        assert_eq!(found, (1..=7).collect::<Vec<_>>(), "pages of {page}");
    }
    assert!(
        world.partition.due(LEASE * 2, LEASE * 4, 2, 3).await.expect("due").due.len() <= 4,
        "no more pages than were asked for"
    );
}

#[tokio::test]
async fn a_resumed_job_belongs_to_its_new_pod() {
    let world = instance_world().await;
    world.queue(job(1)).await;
    let lease = running(&world).await;
    world.heartbeat("other").await;
    assert_eq!(world.partition.renew(&name("other"), LEASE, &[lease]).await.expect("renews"), [Renewed::Running]);
    let after = world.snapshot().await;
    assert!(!after.contains_key("pod:pod:jobs"));
    assert!(after["pod:other:jobs"].contains(&lease.job_id.to_string()));
}

#[tokio::test]
async fn a_tenant_with_fewer_running_jobs_goes_first_however_many_projects_the_other_has() {
    let world = instance_world().await;
    for id in 1..=20 {
        world.queue(of_tenant(job(id), 1, id)).await;
    }
    for id in 21..=22 {
        world.queue(of_tenant(job(id), 2, 50)).await;
    }
    assert_eq!(ids(&take(&world, 5).await), [1, 21, 2, 22, 3]);
}

#[tokio::test]
async fn weights_share_and_caps_hold_until_a_job_ends() {
    let world = instance_world().await;
    let tenant = Tenant::of_namespace(1);
    for id in 1..=6 {
        world.queue(of_tenant(job(id), 1, 1)).await;
        world.queue(of_tenant(job(id + 10), 2, 2)).await;
    }
    assert_eq!(world.partition.tenant(&tenant, "5-0", 2, None).await.expect("stores"), Outcome::Ok);
    assert_eq!(world.partition.tenant(&tenant, "4-0", 9, Some(1)).await.expect("stores"), Outcome::Stale);
    let taken = take(&world, 6).await;
    assert_eq!(
        taken.iter().filter(|job| job.lease.job_id.0 < 10).count(),
        4,
        "weight 2 of 3 in six: {:?}",
        ids(&taken)
    );
    assert_eq!(world.partition.tenant(&tenant, "6-0", 2, Some(4)).await.expect("stores"), Outcome::Ok);
    assert_eq!(ids(&take(&world, 9).await), [13, 14, 15, 16], "tenant 1 is at its cap");
    let ours = taken.iter().find(|job| job.lease.job_id.0 < 10).expect("tenant 1 has jobs").lease;
    start(&world, ours).await;
    finish(&world, ours).await;
    assert_eq!(ids(&take(&world, 9).await), [5], "and comes back the moment one ends");
}

#[tokio::test]
async fn a_capped_project_is_left_out_and_comes_back() {
    let world = instance_world().await;
    for id in 1..=3 {
        world.queue(of_tenant(job(id), 1, 1)).await;
        world.queue(of_tenant(job(id + 10), 1, 2)).await;
    }
    let tenant = Tenant::of_namespace(1);
    let outcome = world.partition.project(ProjectId(1), "1790000000000-0", &tenant, None, None, Some(1)).await;
    assert_eq!(outcome.expect("stores"), Outcome::Ok);
    world.partition.index(&name("pod"), Some(ProjectId(1))).await.expect("indexes");
    let taken = take(&world, 6).await;
    assert_eq!(ids(&taken), [1, 11, 12, 13]);
    start(&world, taken[0].lease).await;
    finish(&world, taken[0].lease).await;
    assert_eq!(ids(&take(&world, 6).await), [2]);
}

#[tokio::test]
async fn what_ends_or_goes_back_leaves_its_bucket_with_what_still_runs() {
    let queued_at_ms = 1_780_000_000_000;
    // With and without a cap that is not reached: its buckets are placed anew there.
    for cap in [None, Some(4)] {
        let world = instance_world().await;
        let tenant = Tenant::of_namespace(1);
        let outcome = world.partition.project(ProjectId(1), "1770000000000-0", &tenant, None, None, cap).await;
        assert_eq!(outcome.expect("stores"), Outcome::Ok);
        for id in 1..=5 {
            world.queue(PendingJob { queued_at_ms: Some(queued_at_ms), ..job(id) }).await;
        }
        let key = world.partition.key(&format!("lane:{}:{}", instance_lane(), tenant.key()));
        let score = async |what: &str, running| {
            let score = text(&world.command("ZSCORE", &[&key, "1:0"]).await).parse::<f64>().expect("it stands there");
            assert_eq!(
                score as u64,
                bucket_score(Priority::default(), running, head_of(queued_at_ms)),
                "{what}, cap {cap:?}"
            );
        };
        let leases = [running(&world).await, running(&world).await, running(&world).await, take_one(&world).await];
        assert_eq!(finish(&world, leases[0]).await, Outcome::Ok);
        score("one of four ended", 3).await;
        assert_eq!(give_back(&world, leases[3]).await, Outcome::Ok);
        score("one of three went back", 2).await;
    }
}

#[tokio::test]
async fn priority_goes_first_within_a_tenant_and_never_across() {
    let world = instance_world().await;
    let mut deploy = of_tenant(job(3), 2, 2);
    deploy.priority = Priority::new(2).expect("in range");
    world.queue(of_tenant(job(1), 1, 1)).await;
    world.queue(of_tenant(job(2), 2, 2)).await;
    world.queue(deploy).await;
    assert_eq!(ids(&take(&world, 3).await), [1, 3, 2]);
}

#[tokio::test]
async fn a_job_stands_in_the_lanes_of_all_its_scopes_and_is_taken_once() {
    let scopes = [Scope::Instance, Scope::Group(1), Scope::Project(1)];
    let world = World::with_scopes(&scopes).await;
    for id in 1..=3 {
        world.queue(job(id)).await;
    }
    let lane = |scope| Lane { scope, fingerprint: instance_lane().fingerprint };
    for (n, scope) in scopes.into_iter().enumerate() {
        assert_eq!(ids(&take_from(&world, lane(scope), 1).await), [n as u64 + 1]);
    }
    for scope in scopes {
        assert!(take_from(&world, lane(scope), 1).await.is_empty());
    }
    assert_eq!(world.snapshot().await["running:ns%3A1"], "1", "only the job on an instance runner counts");
}

#[tokio::test]
async fn a_scope_that_opens_late_finds_what_was_queued_before() {
    let world = World::with_scopes(&[]).await;
    for id in 1..=100 {
        world.queue(of_tenant(job(id), id % 7 + 1, id)).await;
    }
    assert!(take(&world, 1).await.is_empty());
    world.open(Scope::Instance).await;
    let mut all = Vec::new();
    while let [first, ..] = &take(&world, 1).await[..] {
        all.push(first.lease.job_id.0);
    }
    all.sort_unstable();
    assert_eq!(all, (1..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_project_that_forbids_instance_runners_is_out_at_once() {
    let world = instance_world().await;
    world.queue(job(1)).await;
    let tenant = Tenant::of_namespace(1);
    let outcome = world.partition.project(ProjectId(1), "1790000000000-0", &tenant, Some(false), None, None).await;
    assert_eq!(outcome.expect("stores"), Outcome::Ok);
    assert!(take(&world, 1).await.is_empty());
    let outcome = world.partition.project(ProjectId(1), "1790000000001-0", &tenant, Some(true), None, None).await;
    assert_eq!(outcome.expect("stores"), Outcome::Ok);
    world.partition.index(&name("pod"), Some(ProjectId(1))).await.expect("indexes");
    assert_eq!(ids(&take(&world, 1).await), [1]);
}

#[tokio::test]
async fn a_pod_that_finds_nothing_waits_and_is_woken_through_answer_or_mail() {
    let world = instance_world().await;
    world.heartbeat("other").await;
    assert!(take(&world, 1).await.is_empty());
    assert_eq!(world.queue(job(1)).await.wakes, [instance_lane()], "the caller waited itself");
    assert_eq!(ids(&take(&world, 1).await), [1]);

    let nothing = world.partition.take(&name("other"), ACCEPT, 0, &[instance_lane()], &offers(1)).await.expect("takes");
    assert!(nothing.jobs.is_empty());
    assert!(world.queue(job(2)).await.wakes.is_empty());
    let mail = world.snapshot().await.remove("mail:other").expect("mail");
    assert!(mail.contains(&format!("wake lane {}", instance_lane())), "{mail}");
    assert_eq!(world.snapshot().await.get("waiting:other"), None);
}

#[tokio::test]
async fn a_pod_that_was_silent_for_a_while_gets_its_mail_and_another_is_woken_too() {
    let world = instance_world().await;
    for pod in ["silent", "other"] {
        world.heartbeat(pod).await;
        world.partition.take(&name(pod), ACCEPT, 0, &[instance_lane()], &offers(1)).await.expect("takes");
    }
    let now = world.redis.command_at("x", "TIME", []).await.expect("a time").into_array().expect("a pair");
    let long_ago = (now[0].as_str().expect("seconds").parse::<u64>().expect("a number") - 60) * 1000;
    world.command("ZADD", &[&world.partition.key("pods"), &long_ago.to_string(), "silent"]).await;
    let waiting = world.partition.key(&format!("waiting:{}", instance_lane()));
    world.command("ZADD", &[&waiting, "-1", "silent"]).await; // first in line
    world.queue(job(1)).await;
    assert!(mailed(&world, "silent").await.contains("wake"), "it may be back, and would wait for ever");
    assert!(mailed(&world, "other").await.contains("wake"), "the silent one may be dead");
}

#[tokio::test]
async fn a_lane_in_which_a_better_pod_waits_is_left_to_it_until_it_is_full() {
    let world = instance_world().await;
    world.heartbeat("better").await;
    let take_as = async |pod: &str, rank: i64, n: usize| {
        let answer = world.partition.take(&name(pod), ACCEPT, rank, &[instance_lane()], &offers(n)).await;
        ids(&answer.expect("takes").jobs)
    };
    assert!(take_as("pod", 0, 1).await.is_empty() && take_as("better", -1, 2).await.is_empty(), "both wait");
    world.queue(job(1)).await;
    assert!(mailed(&world, "better").await.contains("wake"));
    assert!(take_as("pod", 0, 1).await.is_empty(), "it is the better one's");
    assert!(queue_with_slot(&world, 1_790_000_000_000, job(2)).await.is_none(), "nor is it handed over");
    world.queue(job(3)).await;
    assert_eq!(take_as("better", -1, 2).await, [1, 2]);
    assert!(mailed(&world, "pod").await.contains("wake"), "the better one is full");
    assert_eq!(take_as("pod", 0, 2).await, [3]);
    // Equals do not wait for each other.
    assert!(take_as("better", 0, 1).await.is_empty());
    assert!(queue_with_slot(&world, 1_790_000_000_001, job(4)).await.is_some());
    world.queue(job(5)).await;
    assert_eq!(take_as("pod", 0, 1).await, [5]);
}

#[tokio::test]
async fn equals_that_wait_are_woken_in_turns() {
    let world = instance_world().await;
    for pod in ["a", "b"] {
        world.heartbeat(pod).await;
        world.partition.take(&name(pod), ACCEPT, 0, &[instance_lane()], &offers(1)).await.expect("takes");
    }
    world.queue(job(1)).await;
    assert!(!mailed(&world, "b").await.contains("wake"));
    world.queue(job(2)).await;
    assert!(mailed(&world, "b").await.contains("wake"), "the first one may be dead");
}

#[tokio::test]
async fn a_pod_that_cannot_take_passes_the_wake_on() {
    let world = instance_world().await;
    world.heartbeat("other").await;
    world.partition.take(&name("other"), ACCEPT, 1, &[instance_lane()], &offers(1)).await.expect("takes");
    take(&world, 1).await;
    assert_eq!(world.queue(job(1)).await.wakes.len(), 1);
    let none = world.partition.take(&name("pod"), ACCEPT, 0, &[instance_lane()], &[]).await.expect("takes");
    assert!(none.jobs.is_empty());
    assert!(world.snapshot().await.contains_key("mail:other"));
}

#[tokio::test]
async fn a_dead_pod_leaves_its_undelivered_jobs_and_its_unheard_wakes_to_others() {
    let world = instance_world().await;
    let beat = world.heartbeat("dead").await.into_iter().find(|(pod, _)| pod.as_str() == "dead").expect("known").1;
    for id in 1..=3 {
        world.queue(job(id)).await;
    }
    let dead = name("dead");
    let taken = world.partition.take(&dead, ACCEPT, 0, &[instance_lane()], &offers(2)).await.expect("takes").jobs;
    start(&world, taken[0].lease).await;
    assert_eq!(world.partition.bury(&dead, Some("1")).await.expect("buries"), None, "its heartbeat has moved");
    assert_eq!(world.partition.bury(&dead, Some(&beat)).await.expect("buries"), Some(1));
    assert_eq!(world.partition.bury(&dead, Some(&beat)).await.expect("buries"), Some(0));
    assert_eq!(ids(&take(&world, 3).await), [2, 3]);
    assert_eq!(finish(&world, taken[0].lease).await, Outcome::Ok, "what runs goes on");
}

#[tokio::test]
async fn a_sweep_tells_which_lanes_have_work_and_what_is_at_their_head() {
    let world = instance_world().await;
    let idle = Duration::from_secs(3600);
    let sweep = async || world.partition.sweep("0", idle, 1000, idle).await.expect("sweeps").1;
    world.queue(job(1)).await;
    let [(lane, head)] = sweep().await.try_into().expect("one lane");
    assert_eq!(lane, instance_lane());
    assert_eq!(sweep().await, [(lane, head.clone())], "the same as long as nothing moves");
    assert_eq!(ids(&take(&world, 1).await), [1]);
    assert!(sweep().await.is_empty());
}

/// A lane of untagged jobs.
fn lane(scope: Scope) -> Lane {
    Lane { scope, fingerprint: instance_lane().fingerprint }
}

async fn switch_groups(world: &World, version: &str, on: bool) {
    let tenant = Tenant::of_namespace(1);
    let outcome = world.partition.project(ProjectId(1), version, &tenant, None, Some(on), None).await;
    assert_eq!(outcome.expect("stores"), Outcome::Ok);
    world.partition.index(&name("pod"), Some(ProjectId(1))).await.expect("indexes");
}

#[tokio::test]
async fn a_bucket_that_emptied_while_its_scope_was_forbidden_is_mended_when_it_is_allowed_again() {
    let world = World::with_scopes(&[Scope::Instance, Scope::Group(1)]).await;
    world.queue(job(1)).await;
    switch_groups(&world, "1790000000000-0", false).await;
    let lease = running(&world).await;
    finish(&world, lease).await;
    switch_groups(&world, "1790000000001-0", true).await;
    assert!(take_from(&world, lane(Scope::Group(1)), 1).await.is_empty());
    assert_only_records_left(&world).await;
}

#[tokio::test]
async fn what_stands_in_lanes_of_a_scope_that_was_closed_is_swept_away_and_comes_back_when_it_opens() {
    let scopes = [Scope::Instance, Scope::Group(1)];
    let world = World::with_scopes(&scopes).await;
    let long = Duration::from_secs(3600);
    let sweep = async || world.partition.sweep("0", long, 1000, long).await.expect("sweeps").1;
    let close = async |scope: &str| drop(world.command("ZREM", &[&format!("{}scopes", world.prefix), scope]).await);
    world.queue(job(1)).await;
    for scope in ["instance", "group:1"] {
        close(scope).await;
        assert_eq!(sweep().await.len(), 1, "the other's lane");
        assert!(sweep().await.iter().all(|(lane, _)| lane.scope.to_string() != scope));
        world.open(if scope == "instance" { scopes[0] } else { scopes[1] }).await;
        assert_eq!(sweep().await.len(), 2, "queued jobs stand in the lanes of {scope} again");
    }
    // Its project's next bucket is told that the scope is closed, and that is all that the last job to leave goes by.
    close("group:1").await;
    let priority = Priority::new(1).expect("in range");
    world.queue(PendingJob { priority, ..job(2) }).await;
    for taken in take_from(&world, instance_lane(), 2).await {
        world.finish(taken.lease).await;
    }
    sweep().await;
    assert_only_records_left(&world).await;
}

#[tokio::test]
async fn a_scope_that_opens_while_a_known_project_has_nothing_queued_gets_its_next_job() {
    let world = instance_world().await;
    world.queue(job(1)).await;
    let lease = running(&world).await;
    world.open(Scope::Group(1)).await;
    world.queue(job(2)).await;
    assert_eq!(ids(&take_from(&world, lane(Scope::Group(1)), 1).await), [2]);
    finish(&world, lease).await;
}

/// Pods woken by mail, in order.
async fn mailed(world: &World, pod: &str) -> String {
    world.snapshot().await.remove(&format!("mail:{pod}")).unwrap_or_default()
}

#[tokio::test]
async fn the_end_of_a_capped_tenants_job_wakes_who_waits_for_its_next() {
    let world = instance_world().await;
    let tenant = Tenant::of_namespace(1);
    world.partition.tenant(&tenant, "5-0", 1, Some(1)).await.expect("stores");
    world.queue(job(1)).await;
    world.queue(job(2)).await;
    let lease = running(&world).await;
    world.heartbeat("other").await;
    let taken =
        world.partition.take(&name("other"), ACCEPT, 0, &[instance_lane()], &offers(1)).await.expect("takes").jobs;
    assert!(taken.is_empty(), "the tenant is at its cap");
    finish(&world, lease).await;
    assert!(mailed(&world, "other").await.contains("wake"));
}

#[tokio::test]
async fn a_cap_that_is_lifted_wakes_who_waits() {
    let world = instance_world().await;
    let tenant = Tenant::of_namespace(1);
    world.partition.tenant(&tenant, "5-0", 1, Some(0)).await.expect("stores");
    world.queue(job(1)).await;
    assert!(take(&world, 1).await.is_empty(), "the tenant is at its cap");
    world.partition.tenant(&tenant, "6-0", 1, None).await.expect("stores");
    assert!(mailed(&world, "pod").await.contains("wake"));
    assert_eq!(ids(&take(&world, 1).await), [1]);
}

#[tokio::test]
async fn a_capped_projects_bucket_never_enters_a_lane_that_its_project_forbids() {
    let world = instance_world().await;
    let tenant = Tenant::of_namespace(1);
    world.queue(job(1)).await;
    let lease = running(&world).await;
    let off = world.partition.project(ProjectId(1), "1790000000000-0", &tenant, Some(false), None, Some(5)).await;
    assert_eq!(off.expect("stores"), Outcome::Ok);
    let mut next = job(2);
    next.project.instance_runners = false;
    world.queue(next).await;
    world.partition.index(&name("pod"), Some(ProjectId(1))).await.expect("indexes");
    finish(&world, lease).await;
    let stands: Vec<String> = world.snapshot().await.into_keys().filter(|key| key.starts_with("lane:")).collect();
    assert!(stands.is_empty(), "{stands:?}");
}

#[tokio::test]
async fn a_job_counts_for_the_tenant_that_pays_when_it_is_taken() {
    let world = instance_world().await;
    world.queue(of_tenant(job(1), 1, 1)).await;
    let two = Tenant::of_namespace(2);
    world.partition.project(ProjectId(1), "1790000000000-0", &two, None, None, None).await.expect("stores");
    world.partition.index(&name("pod"), Some(ProjectId(1))).await.expect("indexes");
    let lease = running(&world).await;
    assert_eq!(world.snapshot().await["running:ns%3A2"], "1");
    finish(&world, lease).await;
    assert_only_records_left(&world).await;
}

#[tokio::test]
async fn the_end_of_a_queued_job_is_not_its_former_leases() {
    let world = instance_world().await;
    world.queue(job(1)).await;
    let lease = take_one(&world).await;
    assert_eq!(give_back(&world, lease).await, Outcome::Ok);
    assert_eq!(finish(&world, lease).await, Outcome::Stale);
    assert_eq!(cancel(&world, 1).await, Outcome::Ok);
    assert_eq!(finish(&world, lease).await, Outcome::Gone);
}

#[tokio::test]
async fn a_projects_namespaces_are_learnt_from_its_job_though_its_upsert_came_first() {
    let world = World::with_scopes(&[Scope::Group(1)]).await;
    let tenant = Tenant::of_namespace(1);
    world.partition.project(ProjectId(1), "1790000000000-0", &tenant, None, None, None).await.expect("stores");
    world.queue(job(1)).await;
    assert_eq!(ids(&take_from(&world, lane(Scope::Group(1)), 1).await), [1]);
}

#[tokio::test]
async fn a_late_deletion_takes_no_token_that_another_runner_has_by_now() {
    let world = World::new().await;
    let runners = Runners::new(world.redis.clone(), Keys::new(&instance(), 1).runners());
    let token = "ab".repeat(32);
    let record = |id: u64| -> RunnerRecord {
        serde_json::from_value(serde_json::json!({"id": id, "token_sha256": token, "type": "instance"}))
            .expect("a record")
    };
    runners.upsert("1-0", &record(1)).await.expect("stores");
    runners.upsert("3-0", &record(2)).await.expect("stores");
    assert_eq!(runners.delete("2-0", RunnerId(1)).await.expect("deletes"), Outcome::Ok);
    assert_eq!(runners.find(&token).await.expect("looks").map(|found| found.id), Some(2));
    assert_eq!(runners.delete("4-0", RunnerId(2)).await.expect("deletes"), Outcome::Ok);
    assert_eq!(runners.find(&token).await.expect("looks"), None);
}

#[tokio::test]
async fn a_tenants_jobs_in_several_lanes_go_by_age_and_not_by_the_lanes_names() {
    let world = instance_world().await;
    let mut lanes = Vec::new();
    for id in 1..=8 {
        let mut job = job(id);
        let needs = Capability { tags: tags(&[["one", "two"][id as usize % 2]]), ..Capability::clone(&job.capability) };
        lanes.push(Lane { scope: Scope::Instance, fingerprint: needs.fingerprint() });
        job.capability = needs.into();
        job.queued_at_ms = Some(1_780_000_000_000 + id);
        world.queue(job).await;
    }
    let mut order = Vec::new();
    for _ in 0..8 {
        let taken = world.partition.take(&name("pod"), ACCEPT, 0, &lanes[..2], &offers(1)).await.expect("takes").jobs;
        order.extend(ids(&taken));
        assert_eq!(start(&world, taken[0].lease).await, Outcome::Ok);
        assert_eq!(finish(&world, taken[0].lease).await, Outcome::Ok);
    }
    assert_eq!(order, [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[tokio::test]
async fn rails_hears_of_a_manager_once_however_many_pods_it_is_connected_to_and_when_it_has_gone() {
    const YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
    let world = World::new().await;
    let manager = |system_id: &str| ((RunnerId(7), name(system_id)), r#"{"version":"1"}"#.into());
    let both = [manager("s_1"), manager("s_2")];
    let online = async |pod: &str, again| world.partition.online(&name(pod), again, &both).await.expect("told");
    assert_eq!((online("a", YEARS).await, online("b", YEARS).await), (2, 0));
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(online("b", Duration::from_millis(1)).await, 2, "again after that time");
    let offline = async |silent| world.partition.offline(&name("c"), silent, 1).await.expect("told");
    assert_eq!(offline(LEASE).await, 0);
    assert_eq!(
        (offline(Duration::ZERO).await, offline(Duration::ZERO).await, offline(Duration::ZERO).await),
        (1, 1, 0)
    );
    assert_eq!(online("a", YEARS).await, 2, "they are back");
    let [online, offline] = ["runner.online", "runner.offline"].map(|kind| format!("null {kind}"));
    let told = [&online, &online, &online, &online, &offline, &offline, &online, &online];
    assert_eq!(world.events().await, told.map(String::as_str));
}
