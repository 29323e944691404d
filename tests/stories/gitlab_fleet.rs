//! Fleets of unmodified GitLab Runners, as processes of the emulator: whatever happens to pods, Redis and runners, each job runs
//! once, and no runner turns away from the router.

mod fleet;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use job_router::redis::{PrivateRedisOptions, ReservedPort};
use serde_json::json;
use tokio::net::TcpListener;

use crate::emulator::{Config, Process};
use crate::support::pods::{Installation, TestPod};
use crate::support::processes::PodProcess;
use crate::support::redis_url;
use fleet::{Allowed, Fleet, entry, set};

/// Stops them; none has a job any more.
async fn stop(processes: Vec<Process>) {
    futures::future::join_all(processes.into_iter().map(Process::stop)).await;
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_managers_share_a_token() {
    let installation = set(Installation::new().await);
    let pod = installation.pod("a").await;
    let fleet = Fleet::new(installation, &[&pod]);
    let managers = fleet.managers(50, 2).await;
    fleet.publish(1..=600, ms(10), ms(500)).await;
    fleet.until_ended(600).await;
    fleet.judge("50 managers on one token", Allowed::default()).await;
    let ran: BTreeSet<String> = fleet.notes.read().runs.iter().map(|run| run.system_id.clone()).collect();
    assert!(ran.len() > 25, "{} of them had a job", ran.len());
    stop(managers).await;
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_one_process_share_its_workers() {
    let installation = set(Installation::new().await);
    let pod = installation.pod("a").await;
    let fleet = Fleet::new(installation, &[&pod]);
    for (id, tag) in [(1, "red"), (2, "blue"), (3, "green")] {
        fleet.installation.register(id, json!({"tags": [tag], "run_untagged": false})).await;
    }
    let mut entries = [1, 2, 3].map(entry);
    entries[2].limit = 2;
    let process = fleet.start(Config { concurrent: 6, ..Config::new("s_1", entries.into()) });
    for round in 0..50 {
        for (number, tag) in ["red", "blue", "green"].iter().enumerate() {
            fleet.rails.publish(round * 3 + number as u64 + 1, &[tag], ms(100));
        }
    }
    fleet.until_ended(150).await;
    fleet.judge("3 entries in one process", Allowed::default()).await;
    let runs = fleet.notes.read().runs.clone();
    assert!(runs.iter().all(|run| run.runner_id == (run.job - 1) % 3 + 1), "each at the runner with its tag");
    // Who runs when one begins, the one that begins among them.
    let at_once = |of: fn(u64) -> bool| {
        let of: Vec<_> = runs.iter().filter(|run| of(run.runner_id)).collect();
        let runs_at = |at| of.iter().filter(|run| run.began <= at && run.ended.is_none_or(|ended| ended > at)).count();
        of.iter().map(|run| runs_at(run.began)).max().expect("some ran")
    };
    println!("at once: {} of 6 in all, {} of 2 green", at_once(|_| true), at_once(|id| id == 3));
    assert!(at_once(|_| true) <= 6 && at_once(|id| id == 3) <= 2);
    process.stop().await;
    pod.end().await;
}

/// What a runner costs itself that has fewer workers than entries: while one entry's call is held, the other does not ask.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_without_a_worker_of_its_own_waits_for_the_held_call_of_another() {
    let installation = set(Installation::new().await);
    let pod = installation.pod("a").await;
    let fleet = Fleet::new(installation, &[&pod]);
    for (id, tag) in [(1, "red"), (2, "blue")] {
        fleet.installation.register(id, json!({"tags": [tag], "run_untagged": false})).await;
    }
    let process = fleet.start(Config::new("s_1", [1, 2].map(entry).into()));
    for id in 1..=4 {
        fleet.rails.publish(id, &["blue"], ms(10));
        fleet.until_ended(id as usize).await;
    }
    fleet.judge("2 entries, 1 worker, calls held for 2 s", Allowed::default()).await;
    process.stop().await;
    pod.end().await;
}

/// A pod at an address that outlives it.
async fn pod_at(installation: &Installation, name: &str, port: &ReservedPort) -> TestPod {
    let grpc = TcpListener::bind(("127.0.0.1", port.get())).await.expect("the port is ours");
    installation.pod_at(name, grpc).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_restarted_one_after_the_other_under_load() {
    let installation = set(Installation::new().await);
    let ports = [(); 3].map(|()| ReservedPort::new().expect("a free port"));
    let mut pods = Vec::new();
    for (number, port) in ports.iter().enumerate() {
        pods.push(pod_at(&installation, &format!("old-{number}"), port).await);
    }
    let fleet = Fleet::new(installation, &pods.iter().collect::<Vec<_>>());
    let managers = fleet.managers(10, 2).await;
    let restart_all = async {
        let mut restarted = Vec::new();
        for (number, pod) in pods.into_iter().enumerate() {
            fleet.until_ended(100 * (number + 1)).await;
            pod.stop().await;
            let pod = pod_at(&fleet.installation, &format!("new-{number}"), &ports[number]).await;
            fleet.installation.until("it is ready", async || (pod.admin("/readyz").await.0 == 200).then_some(())).await;
            restarted.push(pod);
        }
        restarted
    };
    let (pods, ()) = tokio::join!(restart_all, fleet.publish(1..=600, ms(20), ms(50)));
    fleet.until_ended(600).await;
    fleet.judge("3 pods restarted under load", Allowed::default()).await;
    stop(managers).await;
    for pod in pods {
        pod.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_killed_under_load() {
    let mut installation = set(Installation::new().await);
    installation.config.gitlab_ack_timeout = Duration::from_secs(2);
    let stays = installation.pod("stays").await;
    let config = &installation.config;
    let flags = [
        format!("--redis-url={}", redis_url()),
        format!("--key-prefix={}", config.key_prefix),
        format!("--inbox-stream={}", config.inbox_stream),
        "--pod-id=dies".to_owned(),
        "--gitlab-hold=2s".to_owned(),
        "--gitlab-ack-timeout=2s".to_owned(),
    ];
    let dies = PodProcess::start(&flags, "pod ready");
    let mut fleet = Fleet::new(installation, &[&stays]);
    fleet.add_pod(&dies.address);
    let managers = fleet.managers(10, 2).await;
    let kill = async {
        fleet.until_ended(100).await;
        // It has some of these at any stage.
        for id in 1_001..=1_020 {
            fleet.rails.publish(id, &[], ms(50));
        }
        drop(dies);
    };
    tokio::join!(kill, fleet.publish(1..=400, ms(20), ms(50)));
    fleet.until_ended(420).await;
    fleet.judge("1 of 2 pods killed under load", Allowed::default()).await;
    stop(managers).await;
    stays.stop().await;
}

/// Their calls are cancelled at any moment, also while a job is on its way to them.
#[tokio::test(flavor = "multi_thread")]
async fn runners_are_restarted_one_after_the_other_under_load() {
    let mut installation = set(Installation::new().await);
    installation.config.gitlab_ack_timeout = Duration::from_secs(1);
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    let fleet = Fleet::new(installation, &[&a, &b]);
    let mut managers = VecDeque::from(fleet.managers(8, 2).await);
    let restart_all = async {
        for number in 0..160 {
            managers.pop_front().expect("there are eight").stop().await;
            let config = Config { concurrent: 2, ..Config::new(&format!("s_{}", number % 8), vec![entry(1)]) };
            managers.push_back(fleet.start(config));
        }
    };
    tokio::join!(restart_all, fleet.publish(1..=400, ms(20), ms(50)));
    fleet.until_ended(400).await;
    fleet.judge("8 managers restarted 20 times each under load", Allowed::default()).await;
    stop(managers.into()).await;
    a.end().await;
    b.end().await;
}

/// Twenty seconds without Redis: stopped, so that connections are refused, or frozen, so that nothing answers.
async fn without_redis(story: &str, frozen: bool) {
    let options = PrivateRedisOptions { append_only: true, ..PrivateRedisOptions::default() };
    let (installation, mut redis) = Installation::alone_with(options).await;
    let mut installation = set(installation);
    installation.config.gitlab_hold = Duration::from_secs(10); // a part of the 50 s that it is, as the outage is of a long one
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    let fleet = Fleet::new(installation, &[&a, &b]);
    let managers = fleet.managers(6, 2).await;
    let load = fleet.publish(1..=300, ms(100), ms(50));
    let outage = async {
        fleet.until_ended(30).await;
        if frozen { redis.pause() } else { redis.stop() }.expect("it is away");
        // A process that starts now is known to no pod.
        let new = fleet.start(Config { concurrent: 2, ..Config::new("s_new", vec![entry(1)]) });
        tokio::time::sleep(Duration::from_secs(20)).await;
        if frozen { redis.resume() } else { redis.restart() }.expect("it is back");
        new
    };
    let ((), new) = tokio::join!(load, outage);
    fleet.until_ended(300).await;
    fleet.judge(story, Allowed::default()).await;
    stop(managers).await;
    new.stop().await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_stopped_for_twenty_seconds_under_load() {
    Box::pin(without_redis("Redis stopped for 20 s under load", false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_frozen_for_twenty_seconds_under_load() {
    Box::pin(without_redis("Redis frozen for 20 s under load", true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_to_ten_pods_in_turn() {
    let installation = set(Installation::new().await);
    let mut pods = Vec::new();
    for number in 0..10 {
        pods.push(installation.pod(&format!("p-{number}")).await);
    }
    let fleet = Fleet::new(installation, &pods.iter().collect::<Vec<_>>());
    let managers = fleet.managers(20, 2).await;
    fleet.publish(1..=600, ms(10), ms(50)).await;
    fleet.until_ended(600).await;
    fleet.judge("20 managers, 10 pods in turn", Allowed::default()).await;
    let events = fleet.installation.events().await;
    let assigned = events.iter().filter(|event| event.event_type.to_string() == "job.assigned");
    let pods_of_jobs: BTreeSet<String> = assigned.filter_map(|event| Some(event.pod.as_ref()?.to_string())).collect();
    assert_eq!(pods_of_jobs.len(), 10, "{pods_of_jobs:?}");
    stop(managers).await;
    for pod in pods {
        pod.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_is_killed_with_a_job_that_rails_has_not_heard_of() {
    let mut installation = set(Installation::new().await);
    installation.config.gitlab_ack_timeout = Duration::from_secs(1);
    let pod = installation.pod("a").await;
    let fleet = Fleet::new(installation, &[&pod]);
    fleet.installation.register(1, json!({})).await;
    let dies = fleet.start(Config { dies_with_a_job: true, ..Config::new("s_dies", vec![entry(1)]) });
    fleet.rails.publish(1, &[], ms(50));
    fleet.installation.until("it has died", async || dies.is_dead().then_some(())).await;
    let other = fleet.start(Config::new("s_other", vec![entry(1)]));
    fleet.until_ended(1).await;
    fleet.judge("a runner killed before its PUT", Allowed::default()).await;
    assert_eq!(
        fleet.installation.story_of(1).await,
        ["queued", "assigned", "requeued", "assigned", "running", "finished"]
    );
    assert_eq!(fleet.notes.read().received.len(), 2);
    assert_eq!(fleet.rails.records()[&1].runner, Some((1, "s_other".to_owned())));
    other.stop().await;
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runners_that_are_killed_while_their_calls_are_held_take_no_job_with_them() {
    let mut installation = set(Installation::new().await);
    installation.config.gitlab_ack_timeout = Duration::from_secs(1); // of a job on its way into a socket that has closed
    let pod = installation.pod("a").await;
    let fleet = Fleet::new(installation, &[&pod]);
    let mut managers = fleet.managers(10, 1).await;
    fleet.installation.until_free("a", 10).await;
    managers.truncate(4);
    fleet.publish(1..=60, ms(100), ms(20)).await;
    fleet.until_ended(60).await;
    fleet.judge("6 of 10 managers killed", Allowed::default()).await;
    stop(managers).await;
    fleet.installation.until_free("a", 0).await;
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_a_runner_through_rails() {
    let installation = set(Installation::new().await);
    let pod = installation.pod("a").await;
    let fleet = Fleet::new(installation, &[&pod]);
    let managers = fleet.managers(2, 1).await;
    fleet.rails.publish(1, &[], Duration::from_secs(3_600));
    fleet.rails.publish(2, &[], ms(50));
    fleet.installation.until_events("job.running", 2).await;
    fleet.rails.cancel(1);
    fleet.until_ended(2).await;
    fleet.judge("a job canceled while it runs", Allowed { canceled: 1 }).await;
    assert_eq!(fleet.installation.story_of(1).await.last().map(String::as_str), Some("canceled"));
    assert!(fleet.notes.read().runs.iter().any(|run| run.job == 1 && run.aborted));
    stop(managers).await;
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_loses_its_data_and_no_runner_is_refused_until_rails_has_told_of_it_again() {
    let (installation, _redis) = Installation::alone().await;
    let installation = set(installation);
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    let fleet = Fleet::new(installation, &[&a, &b]);
    let managers = fleet.managers(10, 2).await;
    fleet.installation.until("all have called", async || (fleet.notes.read().calls >= 10).then_some(())).await;
    fleet.installation.command("FLUSHALL", &[]).await;
    fleet.installation.until_events("redis.empty", 1).await;
    // Known to no pod, and its calls come five times a second.
    let new = fleet.start(Config { concurrent: 2, ..Config::new("s_new", vec![entry(1)]) });
    tokio::time::sleep(Duration::from_secs(3)).await;
    fleet.installation.register(1, json!({})).await;
    fleet.publish(1..=100, ms(20), ms(50)).await;
    fleet.until_ended(100).await;
    fleet.judge("Redis lost its data", Allowed::default()).await;
    stop(managers).await;
    new.stop().await;
    a.stop().await;
    b.stop().await;
}
