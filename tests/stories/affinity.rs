//! Jobs with the same affinity key go to the same manager while it has a free slot.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::support::pods::{Gate, Installation, Noting};
use crate::support::{World, instance_lane, job, name};
use job_router::job::{OfferId, PendingJob, RunnerId};
use job_router::redis::{HandOver, Offer, Taken, Terms};
use job_router::runner::Scope;
use serde_json::json;

const TERMS: Terms = Terms {
    accept_timeout: Duration::from_secs(10),
    affinity_memory: Duration::from_secs(60),
    affinity_wait: Duration::ZERO,
};

fn offer(system_id: &str) -> Offer {
    Offer { id: OfferId::random(0), runner_id: RunnerId(1), system_id: name(system_id), accept_timeout: None }
}

fn with_key(id: u64, key: &str) -> PendingJob {
    PendingJob { affinity: key.into(), ..job(id) }
}

async fn take(world: &World, pod: &str, terms: Terms, offers: &[Offer]) -> Taken {
    world.partition.take(&name(pod), terms, 0, &[instance_lane()], offers).await.expect("takes")
}

/// Which job went to which manager.
fn pairs(taken: &Taken, offers: &[Offer]) -> Vec<(u64, String)> {
    let ids = taken.jobs.iter().map(|job| job.lease.job_id.0);
    ids.zip(taken.slots.iter().map(|slot| offers[*slot].system_id.to_string())).collect()
}

/// Each of these managers of a pod has had a job with its key.
async fn world_with(managers: &[(&str, &str, &str)]) -> World {
    let world = World::with_scopes(&[Scope::Instance]).await;
    for ((pod, manager, key), id) in managers.iter().zip(100..) {
        world.heartbeat(pod).await;
        world.queue(with_key(id, key)).await;
        let taken = take(&world, pod, TERMS, &[offer(manager)]).await;
        world.finish(taken.jobs[0].lease).await;
    }
    world
}

#[tokio::test]
async fn of_the_slots_that_are_offered_each_job_has_that_of_the_manager_that_it_likes() {
    let world = world_with(&[("pod", "s_1", "one"), ("pod", "s_2", "two \"quoted\", \\ and π")]).await;
    for (id, key) in [(1, "new"), (2, "two \"quoted\", \\ and π"), (3, "one"), (4, "one")] {
        world.queue(with_key(id, key)).await;
    }
    let offers = [offer("s_1"), offer("s_2"), offer("s_3"), offer("s_4"), offer("s_5")];
    let taken = take(&world, "pod", TERMS, &offers).await;
    let expected = [(3, "s_1"), (2, "s_2"), (1, "s_3"), (4, "s_4")].map(|(id, manager)| (id, manager.to_owned()));
    assert_eq!(pairs(&taken, &offers), expected, "in the order of the slots");
    let again = take(&world, "pod", TERMS, &offers).await;
    assert_eq!(pairs(&again, &offers), expected, "the same answer again");
    let payloads = |taken: &Taken| taken.jobs.iter().map(|job| job.payload.clone()).collect::<Vec<_>>();
    assert_eq!(payloads(&again), payloads(&taken));
}

#[tokio::test]
async fn a_key_is_forgotten_after_a_while_and_without_memory_nothing_is_kept() {
    let world = world_with(&[("pod", "s_1", "one")]).await;
    let key = world.partition.key("affinity:one");
    let ttl = world.command("PTTL", &[&key]).await.as_u64().expect("ms");
    assert!((30_000..=60_000).contains(&ttl), "{ttl}");
    world.command("DEL", &[&key]).await;
    let none = Terms { affinity_memory: Duration::ZERO, ..TERMS };
    world.queue(with_key(1, "one")).await;
    let offers = [offer("s_2"), offer("s_1")];
    assert_eq!(pairs(&take(&world, "pod", none, &offers).await, &offers), [(1, "s_2".to_owned())]);
    assert!(!world.snapshot().await.contains_key("affinity:one"));
}

#[tokio::test]
async fn the_pod_of_the_manager_that_a_job_likes_is_woken_before_its_equals_and_told_which() {
    let world = world_with(&[("a", "s_1", "one"), ("b", "s_2", "two")]).await;
    for pod in ["a", "b"] {
        assert!(take(&world, pod, TERMS, &[offer("s_9")]).await.jobs.is_empty(), "both wait");
    }
    let queue = async |id, key, slot: Option<&str>| {
        let job = with_key(id, key);
        let slot =
            slot.map(|manager| HandOver { job_id: job.id, lane: instance_lane(), rank: 0, offer: offer(manager) });
        let entry = [(format!("{}-0", 1_790_000_000_000 + id), job)];
        let done = world.partition.fan_out(&name("a"), &entry, TERMS, slot.as_slice()).await.expect("fans out");
        !done.handed.is_empty()
    };
    let mail = async |pod: &str| world.snapshot().await.get(&format!("mail:{pod}")).cloned().unwrap_or_default();
    assert!(!queue(1, "two", Some("s_1")).await, "the other pod's manager may be free");
    let letters = mail("b").await;
    assert!(letters.contains("likes 1 s_2"), "{letters}");
    assert_eq!(take(&world, "b", TERMS, &[offer("s_2")]).await.jobs.len(), 1);
    // That pod is full now.
    assert!(queue(2, "two", Some("s_1")).await, "nobody of the other pod waits");
    assert!(queue(3, "two", Some("s_1")).await, "it likes that one now");
    assert!(queue(4, "one", Some("s_3")).await, "its own pod knows which of its managers are free");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_with_the_same_key_go_to_the_same_manager_of_whichever_pod() {
    let installation = Installation::new().await;
    let pods = [installation.pod("a").await, installation.pod("b").await];
    for runner in [1, 2] {
        installation.register(runner, json!({"description": runner.to_string()})).await;
    }
    let managers: Vec<Noting> = (0..6).map(|_| Noting::default()).collect();
    let mut runners = Vec::new();
    for (n, executor) in managers.iter().enumerate() {
        let (runner, system_id) = (1 + n as u64 / 3, format!("s_{n}"));
        runners.push(installation.runner(&pods[n % 2].url, runner, &system_id, 2, executor.clone()));
    }
    let keys = ["red", "green", "blue", "white", "black"];
    // One by one: of jobs that come together, a pod that is woken for one takes others along.
    for id in 1..=100 {
        installation.job(id, json!({"affinity": keys[(id as usize - 1) % keys.len()], "project_id": id})).await;
        installation.until_events("job.finished", id as usize).await;
    }
    let mut ran: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for (n, manager) in managers.iter().enumerate() {
        for id in manager.ran.lock().expect("no panic").iter() {
            ran.entry(keys[(*id as usize - 1) % keys.len()]).or_default().insert(n);
        }
    }
    assert!(ran.values().all(|managers| managers.len() == 1), "{ran:?}");
    for runner in runners {
        runner.stop().await;
    }
    for pod in pods {
        pod.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_does_not_wait_for_the_manager_that_it_likes() {
    let installation = Installation::new().await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let gates = [Gate::default(), Gate::default()];
    let first = installation.runner(&pod.url, 1, "s_1", 1, gates[0].clone());
    installation.job(1, json!({"affinity": "red"})).await;
    installation.until("it runs", async || (gates[0].started() == [1]).then_some(())).await;
    let second = installation.runner(&pod.url, 1, "s_2", 1, gates[1].clone());
    installation.job(2, json!({"affinity": "red"})).await;
    installation.until("the other has it", async || (gates[1].started() == [2]).then_some(())).await;
    gates.iter().for_each(|gate| gate.open.cancel());
    installation.until_events("job.finished", 2).await;
    for runner in [first, second] {
        runner.stop().await;
    }
    pod.stop().await;
}
