//! Queues under an operator's hand: what is paused is not assigned, keeps its place, and goes on at once.

use std::time::Duration;

use crate::support::pods::{Gate, Installation, Noting};
use crate::support::{World, instance_lane, job, name, of_tenant, offers};
use job_router::job::{JobId, Lease, PendingJob, ProjectId, Tenant};
use job_router::pause::{Note, Target};
use job_router::redis::scripts::Outcome;
use job_router::redis::{HandOver, Mail, Over, Report, Resumed, Return, TakenJob};
use job_router::runner::{Lane, Scope};
use serde_json::json;

const LONG: Duration = Duration::from_secs(3600);

const NONE: [u64; 0] = [];

fn note(text: &str) -> Note {
    Note::new(text).expect("a note")
}

fn group_lane() -> Lane {
    Lane { scope: Scope::Group(9), ..instance_lane() }
}

fn tenant(id: u64) -> Target {
    Target::Tenant(Tenant::of_namespace(id))
}

/// A job of tenant 1 in group 9.
fn in_group(id: u64, project: u64) -> PendingJob {
    let mut job = of_tenant(job(id), 1, project);
    job.project.namespace_ids = vec![1, 9];
    job
}

async fn pause(world: &World, target: &Target, until_ms: Option<u64>) {
    world.partition.pause(target, until_ms, &note("ops"), &note("a \"reason\"")).await.expect("pauses");
}

async fn resume(world: &World, target: &Target) -> Resumed {
    world.partition.resume(target, &note("ops"), None).await.expect("resumes")
}

async fn take(world: &World, lane: Lane, n: usize) -> Vec<u64> {
    let taken = world.partition.take(&name("pod"), LONG, 0, &[lane], &offers(n)).await.expect("takes").jobs;
    taken.iter().map(|job: &TakenJob| job.lease.job_id.0).collect()
}

/// The mail that came since the last look.
async fn mail(world: &World, after: &mut String) -> Vec<Mail> {
    let mut reader = world.redis.reader();
    let after_all = world.command("XREVRANGE", &[&world.partition.key("mail:pod"), "+", "-", "COUNT", "1"]).await;
    let Some(last) = after_all.into_entries().expect("entries").pop().filter(|last| last.id != *after) else {
        return Vec::new();
    };
    let (mail, next) = world.partition.mail(&mut reader, &name("pod"), after).await.expect("reads");
    assert_eq!(next, last.id);
    *after = next;
    mail
}

async fn over(world: &World) -> Vec<Over> {
    world.partition.sweep("0", LONG, 1_000, LONG).await.expect("sweeps").2
}

#[tokio::test]
async fn what_is_paused_is_not_assigned_keeps_its_place_and_wakes_who_waits_when_it_goes_on() {
    let targets = [
        (Target::All, instance_lane()),
        (Target::Lane(instance_lane()), instance_lane()),
        (Target::Lane(group_lane()), group_lane()),
        (tenant(1), instance_lane()),
        (tenant(1), group_lane()),
        (Target::Project(ProjectId(1)), instance_lane()),
        (Target::Project(ProjectId(1)), group_lane()),
    ];
    for (target, lane) in targets {
        let world = World::with_scopes(&[Scope::Instance, Scope::Group(9)]).await;
        for id in 1..=3 {
            world.queue(in_group(id, 1)).await;
        }
        pause(&world, &target, None).await;
        assert_eq!(take(&world, lane, 2).await, NONE, "{target}");
        let mut read = "0".to_owned();
        mail(&world, &mut read).await;

        // A new job is queued, though a slot came along, and wakes nobody in vain.
        let offer = offers(1).remove(0);
        let slot = HandOver { job_id: JobId(4), lane, rank: 0, offer };
        let entry = ("1790000000000-0".to_owned(), in_group(4, 1));
        let done = world.partition.fan_out(&name("pod"), &[entry], LONG, &[slot]).await.expect("fans out");
        assert_eq!((done.outcomes, done.handed, done.wakes), (vec![Outcome::Ok], vec![], vec![]), "{target}");
        assert_eq!(mail(&world, &mut read).await, [], "{target}");
        assert_eq!(take(&world, lane, 2).await, NONE, "{target}");
        let heads = world.partition.sweep("0", LONG, 1_000, LONG).await.expect("sweeps").1;
        assert!(!heads.iter().any(|(head, _)| *head == lane), "{target}: nobody waits in vain, says the sweep");

        assert_eq!(resume(&world, &target).await, Resumed::Done);
        let woken = mail(&world, &mut read).await;
        assert!(woken.contains(&Mail::Wake(lane, None)) || woken.contains(&Mail::Resync), "{target}: {woken:?}");
        assert_eq!(take(&world, lane, 5).await, [1, 2, 3, 4], "{target}");
        assert!(world.partition.pauses().await.expect("reads").is_empty());
        assert!(!world.snapshot().await.keys().any(|key| key.starts_with("pause")), "nothing of it is left");
    }
}

#[tokio::test]
async fn others_go_on_while_a_tenant_or_a_project_is_paused() {
    for target in [tenant(1), Target::Project(ProjectId(1))] {
        let world = World::with_scopes(&[Scope::Instance, Scope::Group(9)]).await;
        world.queue(in_group(1, 1)).await;
        let mut other = of_tenant(job(2), 2, 7);
        other.project.namespace_ids = vec![2, 9];
        world.queue(other.clone()).await;
        other.id = JobId(3);
        world.queue(other).await;
        pause(&world, &target, None).await;
        assert_eq!(take(&world, group_lane(), 1).await, [2], "{target}");
        assert_eq!(take(&world, instance_lane(), 2).await, [3], "{target}");
        assert_eq!(resume(&world, &target).await, Resumed::Done);
        assert_eq!(take(&world, group_lane(), 2).await, [1], "{target}");
    }
}

#[tokio::test]
async fn a_long_queue_of_a_paused_tenant_at_the_head_of_a_lane_blocks_nobody() {
    let world = World::with_scopes(&[Scope::Group(9)]).await;
    for id in 1..=300 {
        world.queue(in_group(id, id)).await;
    }
    let mut other = of_tenant(job(1_000), 2, 1_000);
    other.project.namespace_ids = vec![2, 9];
    world.queue(other).await;
    pause(&world, &tenant(1), None).await;
    let mut calls = 0;
    loop {
        calls += 1;
        let answer = world.partition.take(&name("pod"), LONG, 0, &[group_lane()], &offers(1)).await.expect("takes");
        if let [job] = &answer.jobs[..] {
            assert_eq!(job.lease.job_id, JobId(1_000));
            break;
        }
        assert_eq!(answer.again, [group_lane()], "it is to be asked again");
    }
    assert!(calls <= 300 / 64 + 1, "{calls}");
    assert_eq!(take(&world, group_lane(), 1).await, NONE);
    assert_eq!(resume(&world, &tenant(1)).await, Resumed::Done);
    assert_eq!(take(&world, group_lane(), 301).await, (1..=300).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_runs_goes_on_while_it_is_paused_and_a_cancel_is_heard() {
    for target in [Target::All, Target::Lane(instance_lane()), tenant(1), Target::Project(ProjectId(1))] {
        let world = World::with_scopes(&[Scope::Instance]).await;
        for id in 1..=3 {
            world.queue(job(id)).await;
        }
        let slots = offers(2);
        let taken = world.partition.take(&name("pod"), LONG, 0, &[instance_lane()], &slots).await.expect("takes").jobs;
        let [runs, declined]: [Lease; 2] = [taken[0].lease, taken[1].lease];
        pause(&world, &target, None).await;
        // The answer of a take may be lost: what it took was taken before.
        let again = world.partition.take(&name("pod"), LONG, 0, &[instance_lane()], &slots).await.expect("takes").jobs;
        assert_eq!(again.len(), 2, "{target}");
        let started = world.partition.start(LONG, &[runs]).await.expect("starts");
        assert_eq!(started[0].outcome(), Outcome::Ok, "{target}");
        let back = Return { lease: declined, reason: "declined", failed_delivery: true };
        world.partition.give_back(&name("pod"), 3, LONG, &[back]).await.expect("gives back");
        assert_eq!(take(&world, instance_lane(), 3).await, NONE, "{target}: what went back is held up too");
        let canceled = world.partition.cancel(JobId(3), "", LONG, LONG).await.expect("cancels");
        assert_eq!(canceled, Outcome::Ok, "{target}");
        let report = Report {
            job_id: runs.job_id,
            lease_id: Some(runs.lease_id),
            status: "success",
            exit_code: 0,
            failure_reason: String::new(),
        };
        assert_eq!(world.partition.finish(LONG, &[report]).await.expect("finishes"), [Outcome::Ok], "{target}");
        assert_eq!(resume(&world, &target).await, Resumed::Done);
        assert_eq!(take(&world, instance_lane(), 3).await, [2], "{target}");
    }
}

#[tokio::test]
async fn a_pause_and_a_resume_repeated_change_nothing_more_and_are_told_once() {
    let world = World::with_scopes(&[Scope::Instance]).await;
    world.queue(job(1)).await;
    for target in [Target::All, Target::Lane(instance_lane()), tenant(1), Target::Project(ProjectId(1))] {
        assert_eq!(resume(&world, &target).await, Resumed::Not);
        pause(&world, &target, Some(4_000_000_000_000)).await;
        let paused = world.snapshot().await;
        pause(&world, &target, Some(4_000_000_000_000)).await;
        assert_eq!(world.snapshot().await, paused, "{target}");
        let pauses = world.partition.pauses().await.expect("reads");
        assert_eq!((&pauses[0].target, pauses[0].until_ms), (&target, Some(4_000_000_000_000)));
        assert_eq!((pauses[0].by.as_str(), pauses[0].note.as_str(), pauses.len()), ("ops", "a \"reason\"", 1));

        // Another end takes the place of the former; since when it is paused stays.
        pause(&world, &target, None).await;
        let changed = world.partition.pauses().await.expect("reads");
        assert_eq!((changed[0].since_ms, changed[0].until_ms), (pauses[0].since_ms, None));
        assert_eq!(resume(&world, &target).await, Resumed::Done);
        let resumed = world.snapshot().await;
        assert_eq!(resume(&world, &target).await, Resumed::Not);
        assert_eq!(world.snapshot().await, resumed, "{target}");
    }
    let told = world.events().await.into_iter().filter(|event| event.contains("queue."));
    let expected = ["null queue.paused", "null queue.paused", "null queue.resumed"].repeat(4);
    assert_eq!(told.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_resume_that_was_left_half_way_comes_up_again_and_is_completed() {
    for target in [tenant(1), Target::Project(ProjectId(1))] {
        let world = World::with_scopes(&[Scope::Group(9)]).await;
        world.queue(in_group(1, 1)).await;
        pause(&world, &target, None).await;
        assert_eq!(take(&world, group_lane(), 1).await, NONE);
        let lane = world.partition.key(&format!("lane:{}", group_lane()));
        world.command("SET", &[&lane, "of another type"]).await;
        world.partition.resume(&target, &note("ops"), None).await.expect_err("its bucket has no place");
        world.command("DEL", &[&lane]).await;
        assert_eq!(take(&world, group_lane(), 1).await, NONE, "{target}: it stands in no lane yet");
        assert_eq!(over(&world).await, [], "whoever began may still be at it");

        let ends = world.partition.key("pause_ends");
        world.command("ZADD", &[&ends, "XX", "1", &target.field()]).await; // time goes by
        let [over] = &over(&world).await[..] else { panic!("{target} is to be completed") };
        assert_eq!(over.target, target);
        let done = world.partition.resume(&target, &note("pod"), Some(&over.end)).await.expect("resumes");
        assert_eq!(done, Resumed::Done);
        assert_eq!(take(&world, group_lane(), 1).await, [1], "{target}");
        let events = world.events().await;
        assert_eq!(events.iter().filter(|event| event.contains("resumed")).count(), 1, "told once: {events:?}");
    }
}

#[tokio::test]
async fn a_pause_that_is_over_is_found_by_a_sweep_and_one_that_was_prolonged_meanwhile_stays() {
    let world = World::with_scopes(&[Scope::Instance]).await;
    pause(&world, &tenant(1), Some(1_000)).await;
    pause(&world, &tenant(2), Some(4_000_000_000_000)).await;
    let found = over(&world).await;
    assert_eq!(found, [Over { target: tenant(1), end: "1000".to_owned() }]);
    pause(&world, &tenant(1), Some(4_000_000_000_000)).await;
    let late = world.partition.resume(&tenant(1), &note("pod"), Some("1000")).await.expect("answers");
    assert_eq!((late, world.partition.pauses().await.expect("reads").len()), (Resumed::Not, 2));
    assert_eq!(over(&world).await, []);
}

#[tokio::test]
async fn of_two_pauses_each_holds_until_it_ends_itself() {
    let world = World::with_scopes(&[Scope::Instance]).await;
    world.queue(job(1)).await;
    let pauses = [Target::All, Target::Lane(instance_lane()), tenant(1), Target::Project(ProjectId(1))];
    for target in &pauses {
        pause(&world, target, None).await;
    }
    for target in &pauses {
        assert_eq!(take(&world, instance_lane(), 1).await, NONE, "{target} still holds it up");
        assert_eq!(resume(&world, target).await, Resumed::Done);
    }
    assert_eq!(take(&world, instance_lane(), 1).await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_tenants_jobs_wait_on_all_pods_while_anothers_run_and_go_on_when_it_resumes() {
    let installation = Installation::new().await;
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    installation.register(1, json!({})).await;
    installation.register(2, json!({"type": "group", "group_ids": [9]})).await;
    let noting = Noting::default();
    let urls = [&a.url, &b.url];
    let runners: Vec<_> = (0..4)
        .map(|n| installation.runner(urls[n % 2], 1 + n as u64 / 2, &format!("s_{n}"), 2, noting.clone()))
        .collect();
    let partition = installation.partition();
    let paused = tenant(1);
    partition.pause(&paused, None, &note("ops"), &note("an incident")).await.expect("pauses");
    for id in 1..=40 {
        let namespace = 1 + id % 2; // odd jobs are tenant 2's
        installation.job(id, json!({"project_id": namespace, "namespace_ids": [namespace, 9]})).await;
    }
    installation.until_events("job.queued", 40).await;
    installation.until_events("job.finished", 20).await;
    // As many sweeps as it takes to see the same head twice.
    tokio::time::sleep(installation.config.sweep_interval * 3).await;
    let ran = noting.ran.lock().expect("no panic").clone();
    assert!(ran.len() == 20 && ran.iter().all(|id| id % 2 == 1), "{ran:?}");
    assert_eq!(partition.resume(&paused, &note("ops"), None).await.expect("resumes"), Resumed::Done);
    installation.until_events("job.finished", 40).await;
    for runner in runners {
        runner.stop().await;
    }
    a.stop().await;
    b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_with_an_end_ends_by_itself_though_only_one_pod_is_left() {
    let installation = Installation::new().await;
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    installation.register(1, json!({})).await;
    let gate = Gate::default();
    gate.open.cancel();
    let runner = installation.runner(&b.url, 1, "s", 1, gate.clone());
    let partition = installation.partition();
    for (n, target) in [Target::All, tenant(1), Target::Project(ProjectId(1))].into_iter().enumerate() {
        let until_ms = job_router::clock::unix_time().as_millis() as u64 + 1_000;
        partition.pause(&target, Some(until_ms), &note("ops"), &note("")).await.expect("pauses");
        installation.job(n as u64 + 1, json!({})).await;
        installation.until_events("job.finished", n + 1).await;
        let started =
            installation.events().await.into_iter().filter(|event| event.event_type.as_str() == "job.assigned");
        let at_ms = started.last().expect("it was assigned").at_ms;
        assert!(at_ms >= until_ms, "{target} held it up");
        assert!(at_ms < until_ms + 3_000, "{target} was over {} ms ago", at_ms - until_ms);
    }
    a.kill().await;
    let lane = Target::Lane(instance_lane());
    partition.pause(&lane, Some(1_000), &note("ops"), &note("")).await.expect("pauses");
    installation.until_events("queue.resumed", 4).await;
    let resumed = installation.events().await.into_iter().filter(|event| event.event_type.as_str() == "queue.resumed");
    let told: Vec<_> =
        resumed.map(|event| (event.text("target").map(str::to_owned), event.text("reason") == Some("over"))).collect();
    let lane = lane.to_string();
    assert_eq!(told, ["all", "tenant:ns:1", "project:1", &lane].map(|target| (Some(target.to_owned()), true)));
    runner.stop().await;
    b.end().await;
}
