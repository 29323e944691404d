//! Redis has lost its data: what runs is known again, what had ended stays ended, and until then nothing is assigned.

use std::sync::Arc;
use std::time::Duration;

use job_router::job::{Lease, OfferId, RunnerId};
use job_router::pause::{Note, Target};
use job_router::redis::scripts::Outcome;
use job_router::redis::{Empty, Expired, Offer, Record, Remembered, Renewed, Report, Resumed, Started};
use job_router::runner::Scope;

use crate::support::{World, instance_lane, job, name, of_tenant, offers};

const LONG: Duration = Duration::from_secs(600);

async fn take(world: &World, n: usize) -> Vec<Lease> {
    let taken = world.partition.take(&name("pod"), LONG, 0, &[instance_lane()], &offers(n)).await.expect("takes");
    taken.jobs.iter().map(|job| job.lease).collect()
}

async fn start(world: &World, lease: Lease) -> Record {
    let started = world.partition.start(LONG, &[lease]).await.expect("starts");
    let [Started::Running(record)] = &started[..] else { panic!("it was taken") };
    record.clone()
}

/// A job that runs, before all is lost.
async fn running(world: &World, id: u64) -> (Lease, Remembered) {
    world.queue(job(id)).await;
    let lease = take(world, 1).await[0];
    (lease, Remembered { job_id: lease.job_id, record: start(world, lease).await, end: None })
}

fn report(lease: Lease) -> Report {
    Report {
        job_id: lease.job_id,
        lease_id: Some(lease.lease_id),
        status: "success",
        exit_code: 0,
        failure_reason: String::new(),
    }
}

async fn lose(world: &World) {
    world.lose().await;
    world.heartbeat("pod").await;
    world.open(Scope::Instance).await;
}

async fn reassert(world: &World, jobs: &[Remembered]) -> Vec<Outcome> {
    world.partition.reassert(&name("pod"), LONG, LONG, jobs).await.expect("says again")
}

async fn finish(world: &World, lease: Lease) -> Outcome {
    world.partition.finish(LONG, &[report(lease)]).await.expect("finishes")[0]
}

/// Keys beside those that stay.
async fn left(world: &World) -> Vec<String> {
    let stays = ["instance", "pods", "lanes", "capabilities", "scopes", "events", "turn"];
    let stay = ["ended:", "took:", "project:", "tenant:", "mail:", "waiting:"];
    let keys = world.snapshot().await.into_keys();
    keys.filter(|key| !stays.contains(&key.as_str()) && !stay.iter().any(|prefix| key.starts_with(prefix))).collect()
}

#[tokio::test]
async fn nothing_is_assigned_in_a_redis_without_a_name() {
    let world = World::with_scopes(&[Scope::Instance]).await;
    world.command("DEL", &[&world.partition.key("instance")]).await;
    world.queue(job(1)).await;
    assert_eq!(take(&world, 1).await, []);
    // Nor is it handed over.
    let hand_over = job_router::redis::HandOver {
        job_id: job(2).id,
        lane: instance_lane(),
        rank: 0,
        offer: Offer { id: OfferId::random(0), runner_id: RunnerId(1), system_id: name("s"), accept_timeout: None },
    };
    let two = of_tenant(job(2), 2, 2);
    let answer =
        world.partition.fan_out(&name("pod"), &[("1790000000000-0".to_owned(), two)], LONG, &[hand_over]).await;
    assert_eq!(answer.expect("queues").handed, []);
    // What nobody was woken for is found by a pod that joins, and each does.
    world.heartbeat("pod").await;
    assert_eq!(take(&world, 2).await.len(), 2);
}

#[tokio::test]
async fn an_empty_redis_is_paused_for_its_time_and_says_so() {
    let world = World::with_scopes(&[Scope::Instance]).await;
    world.lose().await;
    let empty = |name: &str, hold| Empty { name: name.to_owned(), hold };
    let beat = async |name: &str, hold| {
        let heartbeat = world.partition.heartbeat(&crate::support::name("pod"), "0", LONG, &empty(name, hold)).await;
        heartbeat.expect("beats").instance
    };
    assert_eq!(beat("first", Duration::from_millis(200)).await, "first");
    assert_eq!(beat("second", Duration::from_millis(200)).await, "first", "it has a name");
    world.open(Scope::Instance).await;
    world.queue(job(1)).await;
    assert_eq!(take(&world, 1).await, []);
    let pauses = world.partition.pauses().await.expect("pauses");
    assert_eq!(pauses.iter().map(|pause| &pause.target).collect::<Vec<_>>(), [&Target::All]);
    assert!(pauses[0].note.as_str().contains("publish all that is pending or running"), "{pauses:?}");
    let told = world.events().await;
    assert_eq!(told[..2], ["null queue.paused", "null redis.empty"]);

    tokio::time::sleep(Duration::from_millis(250)).await;
    let (_, _, over) = world.partition.sweep("0", LONG, 1_000, LONG).await.expect("sweeps");
    let resumed = world.partition.resume(&over[0].target, &Note::default(), Some(&over[0].end)).await;
    assert_eq!(resumed.expect("resumes"), Resumed::Done);
    assert_eq!(take(&world, 1).await.len(), 1);
}

#[tokio::test]
async fn a_job_that_runs_is_known_again_and_ends_as_if_nothing_had_been_lost() {
    let world = World::with_scopes(&[Scope::Instance]).await;
    let (lease, remembered) = running(&world, 1).await;
    lose(&world).await;
    assert_eq!(world.partition.renew(&name("pod"), LONG, &[lease]).await.expect("renews"), [Renewed::NotYours]);
    for _ in 0..2 {
        assert_eq!(reassert(&world, std::slice::from_ref(&remembered)).await, [Outcome::Ok]);
    }
    assert_eq!(world.partition.renew(&name("pod"), LONG, &[lease]).await.expect("renews"), [Renewed::Running]);
    // It counts, and what Rails publishes again is known.
    assert_eq!(world.queue(job(1)).await.outcomes, [Outcome::Known]);
    assert_eq!(take(&world, 1).await, []);
    assert!(world.snapshot().await.contains_key("running:ns%3A1"));
    assert_eq!(finish(&world, lease).await, Outcome::Ok);
    assert_eq!(finish(&world, lease).await, Outcome::Ok, "again");
    assert_eq!(world.queue(job(1)).await.outcomes, [Outcome::Known]);
    assert_eq!(world.events().await, ["null redis.empty", "1 running", "1 finished"]);
    assert_eq!(left(&world).await, [] as [&str; 0]);
}

#[tokio::test]
async fn a_job_that_was_published_again_before_leaves_the_queue() {
    let world = World::with_scopes(&[Scope::Instance]).await;
    let (lease, remembered) = running(&world, 2).await;
    lose(&world).await;
    for id in 1..=3 {
        world.queue(job(id)).await;
    }
    assert_eq!(reassert(&world, &[remembered]).await, [Outcome::Ok]);
    let others: Vec<u64> = take(&world, 3).await.iter().map(|lease| lease.job_id.0).collect();
    assert_eq!(others, [1, 3]);
    assert_eq!(finish(&world, lease).await, Outcome::Ok);
}

#[tokio::test]
async fn a_job_that_had_ended_is_told_again_and_does_not_run_again() {
    let world = World::with_scopes(&[Scope::Instance]).await;
    let (lease, remembered) = running(&world, 1).await;
    let ended = Remembered { end: Some(Arc::new(report(lease))), ..remembered };
    for published_before in [false, true] {
        lose(&world).await;
        if published_before {
            world.queue(job(1)).await;
        }
        assert_eq!(reassert(&world, std::slice::from_ref(&ended)).await, [Outcome::Ok]);
        assert_eq!(reassert(&world, std::slice::from_ref(&ended)).await, [Outcome::Ok], "again");
        assert_eq!(world.queue(job(1)).await.outcomes, [Outcome::Known]);
        assert_eq!(take(&world, 1).await, []);
        let events = world.events().await;
        assert_eq!(events.iter().filter(|event| *event == "1 finished").count(), 1, "{events:?}");
        assert_eq!(left(&world).await, [] as [&str; 0]);
    }
}

#[tokio::test]
async fn a_job_that_is_another_leases_is_not_taken_from_it() {
    let world = World::with_scopes(&[Scope::Instance]).await;
    let (lease, remembered) = running(&world, 1).await;
    let ended = Remembered { end: Some(Arc::new(report(lease))), ..remembered.clone() };
    lose(&world).await;
    // Published again, and assigned after all.
    world.queue(job(1)).await;
    let other = take(&world, 1).await[0];
    let both = [remembered.clone(), ended.clone()];
    assert_eq!(reassert(&world, &both).await, [Outcome::Stale, Outcome::Stale]);
    start(&world, other).await;
    assert_eq!(reassert(&world, &both).await, [Outcome::Stale, Outcome::Stale]);
    assert_eq!(finish(&world, other).await, Outcome::Ok);
    assert_eq!(reassert(&world, &both).await, [Outcome::Gone, Outcome::Gone]);
}

#[tokio::test]
async fn what_was_not_lost_is_not_changed() {
    let world = World::with_scopes(&[Scope::Instance]).await;
    let (lease, runs) = running(&world, 1).await;
    let before = world.snapshot().await;
    assert_eq!(reassert(&world, std::slice::from_ref(&runs)).await, [Outcome::Ok]);
    assert_eq!(world.snapshot().await, before);
    // It is queued again: its lease is over.
    let mut twice = job(2);
    twice.max_attempts = 2;
    world.queue(twice).await;
    let second = take(&world, 1).await[0];
    let record = start(&world, second).await;
    let expired = world.partition.expire(&name("pod"), LONG, &[(second, "0".to_owned())]).await.expect("expires").0;
    assert_eq!(expired, [Expired::Requeued]);
    let requeued = Remembered { job_id: second.job_id, record, end: None };
    assert_eq!(reassert(&world, &[requeued]).await, [Outcome::Stale]);
    assert_eq!(finish(&world, lease).await, Outcome::Ok);
    assert_eq!(reassert(&world, &[runs]).await, [Outcome::Gone]);
}

#[tokio::test]
async fn a_job_that_is_known_again_and_not_heard_of_fails_once() {
    let world = World::with_scopes(&[Scope::Instance]).await;
    let mut retried = job(1);
    retried.max_attempts = 3;
    world.queue(retried.clone()).await;
    let lease = take(&world, 1).await[0];
    let runs = Remembered { job_id: lease.job_id, record: start(&world, lease).await, end: None };
    lose(&world).await;
    world.queue(retried).await;
    assert_eq!(reassert(&world, &[runs]).await, [Outcome::Ok]);
    // Its place in the queue is gone: it is not queued again, whatever attempts it had.
    let expired = world.partition.expire(&name("pod"), LONG, &[(lease, "0".to_owned())]).await.expect("expires").0;
    assert_eq!(expired, [Expired::Failed]);
    assert_eq!(left(&world).await, [] as [&str; 0]);
}
