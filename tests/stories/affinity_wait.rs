//! A job waits a while for the manager that it likes, and holds up nobody meanwhile.

use std::time::{Duration, Instant};

use crate::support::pods::{Gate, Installation};
use crate::support::{World, instance_lane, job, name};
use job_router::clock::unix_ms;
use job_router::contract::Event;
use job_router::explain::Reason;
use job_router::job::{JobId, OfferId, PendingJob, ProjectFacts, ProjectId, RunnerId, Tenant};
use job_router::redis::{Explainer, ExplainerKeys, HandOver, Keys, Offer, Return, Taken, Terms};
use job_router::runner::Scope;
use serde_json::json;

const WAIT: Duration = Duration::from_secs(60);
const TERMS: Terms =
    Terms { accept_timeout: Duration::from_secs(10), affinity_memory: Duration::from_secs(600), affinity_wait: WAIT };

fn offer(system_id: &str) -> Offer {
    Offer { id: OfferId::random(0), runner_id: RunnerId(1), system_id: name(system_id), accept_timeout: None }
}

/// A job of a tenant of its own, queued now.
fn with_key(id: u64, key: &str) -> PendingJob {
    let project = ProjectFacts { id: ProjectId(id), namespace_ids: vec![id], ..job(id).project };
    let tenant = Tenant::of_namespace(id);
    PendingJob { tenant, project, affinity: key.into(), queued_at_ms: Some(unix_ms()), ..job(id) }
}

async fn take(world: &World, pod: &str, offers: &[Offer]) -> Taken {
    world.partition.take(&name(pod), TERMS, 0, &[instance_lane()], offers).await.expect("takes")
}

fn ids(taken: &Taken) -> Vec<u64> {
    taken.jobs.iter().map(|job| job.lease.job_id.0).collect()
}

/// A manager of this pod has had a job with the key.
async fn world_with(pod: &str, manager: &str, key: &str) -> World {
    let world = World::with_scopes(&[Scope::Instance]).await;
    world.heartbeat(pod).await;
    world.heartbeat("other").await;
    world.queue(with_key(100, key)).await;
    let taken = take(&world, pod, &[offer(manager)]).await;
    world.finish(taken.jobs[0].lease).await;
    world
}

#[tokio::test]
async fn it_waits_where_it_stands_and_others_pass() {
    let world = world_with("pod", "s_1", "one").await;
    world.queue(with_key(1, "one")).await;
    world.queue(with_key(2, "two")).await;
    let lane = world.snapshot().await[&format!("lane:{}", instance_lane())].clone();
    let taken = take(&world, "pod", &[offer("s_2"), offer("s_3")]).await;
    assert_eq!(ids(&taken), [2]);
    let held = &taken.held[0];
    assert_eq!((taken.held.len(), held.lane, &held.likes), (1, instance_lane(), &(RunnerId(1), name("s_1"))));
    assert!(held.at_most <= WAIT && held.at_most > WAIT / 2, "{:?}", held.at_most);
    let after = world.snapshot().await[&format!("lane:{}", instance_lane())].clone();
    assert!(lane.contains(after.trim_matches(['[', ']'])), "it stands where it stood: {lane}, then {after}");
    let taken = take(&world, "pod", &[offer("s_3"), offer("s_1")]).await;
    assert_eq!((ids(&taken), taken.held.len()), (vec![1], 0));
}

#[tokio::test]
async fn of_two_that_like_one_slot_the_second_waits() {
    let world = world_with("pod", "s_1", "one").await;
    for id in [1, 2, 3] {
        world.queue(with_key(id, if id == 3 { "three" } else { "one" })).await;
    }
    let offers = [offer("s_2"), offer("s_1"), offer("s_4")];
    let taken = take(&world, "pod", &offers).await;
    assert_eq!(ids(&taken), [3, 1], "in the order of the slots");
    assert_eq!(taken.slots, [0, 1]);
    assert_eq!(taken.held.len(), 1);
    let again = take(&world, "pod", &offers).await;
    assert_eq!(
        (ids(&again), again.again),
        (vec![3, 1], vec![instance_lane()]),
        "it is not forgotten in a repeated call"
    );
}

#[tokio::test]
async fn it_waits_neither_for_ever_nor_for_a_pod_that_is_gone() {
    let world = world_with("pod", "s_1", "one").await;
    let world_again = world_with("pod", "s_1", "one").await;
    let ahead = PendingJob { queued_at_ms: Some(unix_ms() + 3_600_000), ..with_key(1, "one") };
    world_again.queue(ahead).await;
    let held = take(&world_again, "pod", &[offer("s_2")]).await.held;
    assert!(held[0].at_most <= WAIT, "whatever Rails says of its clock");
    let old = unix_ms() - WAIT.as_millis() as u64 - 1;
    world.queue(PendingJob { queued_at_ms: Some(old), ..with_key(1, "one") }).await;
    assert_eq!(ids(&take(&world, "pod", &[offer("s_2")]).await), [1]);

    let world = world_with("pod", "s_1", "one").await;
    world.command("ZREM", &[&world.partition.key("pods"), "pod"]).await;
    world.queue(with_key(1, "one")).await;
    assert_eq!(ids(&take(&world, "other", &[offer("s_2")]).await), [1]);
}

#[tokio::test]
async fn it_waits_neither_for_a_runner_of_lower_priority_nor_once_it_was_given_back() {
    let world = world_with("pod", "s_1", "one").await;
    world.queue(with_key(1, "one")).await;
    let higher =
        world.partition.take(&name("pod"), TERMS, -1, &[instance_lane()], &[offer("s_2")]).await.expect("takes");
    assert_eq!(ids(&higher), [1], "the one that it likes has rank 0");

    let world = world_with("pod", "s_1", "one").await;
    world.queue(with_key(1, "one")).await;
    let taken = take(&world, "pod", &[offer("s_1")]).await;
    let back = [Return { lease: taken.jobs[0].lease, reason: "declined", failed_delivery: true }];
    world.partition.give_back(&name("pod"), 9, WAIT, &back).await.expect("gives back");
    assert_eq!(ids(&take(&world, "pod", &[offer("s_2")]).await), [1]);
}

#[tokio::test]
async fn of_many_that_wait_a_call_passes_over_some_and_gives_the_next_to_anybody() {
    let world = world_with("pod", "s_1", "one").await;
    for id in 1..=40 {
        world.queue(with_key(id, "one")).await;
    }
    for left in [40, 38, 36] {
        let taken = take(&world, "pod", &[offer("s_2"), offer("s_3")]).await;
        assert_eq!((taken.jobs.len(), taken.held.len()), (2, 16), "{left} are left");
    }
}

#[tokio::test]
async fn two_pods_that_hold_each_others_jobs_do_not_wake_each_other_without_end() {
    let world = world_with("pod", "s_1", "one").await;
    world.queue(with_key(101, "two")).await;
    let taken = take(&world, "other", &[offer("s_2")]).await;
    world.finish(taken.jobs[0].lease).await;
    for pod in ["pod", "other"] {
        assert!(ids(&take(&world, pod, &[offer("s_9")]).await).is_empty(), "it waits");
    }
    world.queue(with_key(1, "one")).await;
    world.queue(with_key(2, "two")).await;
    let letters = async || {
        let mut letters = 0;
        for pod in ["pod", "other"] {
            letters += world
                .command("XLEN", &[&world.partition.key(&format!("mail:{pod}"))])
                .await
                .as_u64()
                .expect("a length");
        }
        letters
    };
    let (before, since) = (letters().await, Instant::now());
    for _ in 0..10 {
        for pod in ["pod", "other"] {
            assert_eq!(take(&world, pod, &[offer("s_9")]).await.held.len(), 2);
        }
    }
    let at_most = 2 * (1 + since.elapsed().as_secs());
    assert!((2..=at_most).contains(&(letters().await - before)), "one to each, once a second");
}

#[tokio::test]
async fn it_is_not_handed_over_to_another() {
    let world = world_with("pod", "s_1", "one").await;
    let hand = async |id, manager| {
        let job = with_key(id, "one");
        let slot = HandOver { job_id: job.id, lane: instance_lane(), rank: 0, offer: offer(manager) };
        let entry = [(format!("{}-0", unix_ms() + id), job)];
        !world.partition.fan_out(&name("pod"), &entry, TERMS, &[slot]).await.expect("fans out").handed.is_empty()
    };
    assert!(hand(1, "s_1").await);
    assert!(!hand(2, "s_2").await);
}

#[tokio::test]
async fn the_managers_pod_hears_of_it_and_whoever_waits_when_the_finder_is_full() {
    let world = world_with("other", "s_1", "one").await;
    let mailed = async |pod: &str| world.snapshot().await.get(&format!("mail:{pod}")).cloned().unwrap_or_default();
    assert!(ids(&take(&world, "other", &[offer("s_8")]).await).is_empty(), "it waits");
    let before = mailed("other").await;
    world.queue(with_key(1, "one")).await;
    let after_queued = mailed("other").await;
    assert!(after_queued.len() > before.len(), "its pod was the best one to wake");
    assert_eq!(take(&world, "pod", &[offer("s_9")]).await.held.len(), 1);
    let after_found = mailed("other").await;
    assert!(after_found.len() > after_queued.len() && after_found.contains("likes 1 s_1"), "{after_found}");
    // One that takes another job and is full leaves what waits to those who have slots.
    world.queue(with_key(2, "two")).await;
    let before = mailed("other").await;
    let taken = take(&world, "pod", &[offer("s_9")]).await;
    assert_eq!((ids(&taken), taken.held.len()), (vec![2], 1));
    assert!(mailed("other").await.len() > before.len());
}

/// Two managers of a runner, each with one slot, on these pods; the first runs job 1, with key `red`, and job 2 likes it.
async fn story(wait: Duration, pods: &[&str], then: impl AsyncFnOnce(&Installation, &[Gate; 2])) {
    let mut installation = Installation::new().await;
    installation.config.affinity_wait = wait;
    let mut running = Vec::new();
    for pod in pods {
        running.push(installation.pod(pod).await);
    }
    installation.register(1, json!({})).await;
    let gates = [Gate::default(), Gate::default()];
    let first = installation.runner(&running[0].url, 1, "s_1", 1, gates[0].clone());
    installation.job(1, json!({"affinity": "red"})).await;
    installation.until("it runs", async || (gates[0].started() == [1]).then_some(())).await;
    let last = running.last().expect("a pod");
    let second = installation.runner(&last.url, 1, "s_2", 1, gates[1].clone());
    installation.job(2, json!({"affinity": "red", "project_id": 2})).await;
    then(&installation, &gates).await;
    gates.iter().for_each(|gate| gate.open.cancel());
    for runner in [first, second] {
        runner.stop().await;
    }
    for pod in running {
        pod.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_gets_the_slot_it_waited_for_on_one_pod_and_on_two() {
    for pods in [&["a"][..], &["a", "b"]] {
        story(Duration::from_secs(60), pods, async |installation, gates| {
            // Of another tenant, as a whole tenant waits with its job.
            installation.job(3, json!({"affinity": "blue", "project_id": 3, "namespace_ids": [3]})).await;
            installation.until("the other passes", async || (gates[1].started() == [3]).then_some(())).await;
            gates[1].open.cancel();
            installation.until_events("job.finished", 1).await;
            gates[0].open.cancel();
            installation.until("it has its slot", async || (gates[0].started() == [1, 2]).then_some(())).await;
            installation.until_events("job.finished", 3).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_explained() {
    let explained = story(Duration::from_secs(60), &["a"], async |installation, gates| {
        installation.until_events("job.queued", 2).await;
        let config = &installation.config;
        let keys = ExplainerKeys {
            keys: Keys::new(&config.key_prefix, config.redis_partitions),
            inbox_stream: config.inbox_stream.clone(),
            lease: config.lease,
            affinity_wait: config.affinity_wait,
        };
        let explainer = Explainer::new(&installation.redis, keys);
        let look = async || {
            let why = explainer.explain(JobId(2), None).await.expect("explains").why;
            (why.reason == Reason::AffinityWait).then_some(why.summary)
        };
        let summary = installation.until("it is named", look).await;
        assert!(
            summary.starts_with("it waits for runner 1 (s_1), which had the last job like it, at most "),
            "{summary}"
        );
        assert!(gates[1].started().is_empty());
    });
    Box::pin(explained).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_has_waited_long_enough_goes_to_another() {
    for pods in [&["a"][..], &["a", "b"]] {
        story(Duration::from_millis(600), pods, async |installation, gates| {
            installation.until("the other has it", async || (gates[1].started() == [2]).then_some(())).await;
            assert_eq!(gates[0].started(), [1]);
            let events = installation.events().await;
            let at = |kind: &str| {
                let is = |event: &&Event| event.event_type.to_string() == kind && event.id == Some(JobId(2));
                events.iter().find(is).expect("it is told").at_ms
            };
            let (queued, assigned) = (at("job.queued"), at("job.assigned"));
            assert!(assigned - queued >= 590, "{queued}, {assigned}");
        })
        .await;
    }
}
