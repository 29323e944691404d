//! Redis' clock is moved by two hours: what is kept there by the time, and what goes on all the same.

use std::time::Duration;

use job_router::proto::router_message::Kind as Down;
use job_router::redis::{Arg, PrivateRedis, PrivateRedisOptions};
use serde_json::json;
use tempfile::TempDir;

use super::clocks::{Clock, Clocks, WRONG_BY_S};
use crate::support::pods::{Installation, Noting};
use crate::support::raw::{Raw, hello};
use crate::support::{instance_lane, job, name};

struct Moved {
    installation: Installation,
    clock: Clock,
    // In this order: the server ends before its clock goes.
    _server: PrivateRedis,
    _directory: TempDir,
}

// === impl Moved ===

impl Moved {
    /// An installation on a Redis whose clock can be moved, with short times.
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let clock = Clocks::new(directory.path()).of("redis");
        let options = PrivateRedisOptions { environment: clock.environment(), ..Default::default() };
        let (mut installation, server) = Installation::alone_with(options).await;
        let config = &mut installation.config;
        config.lease = Duration::from_secs(2);
        config.lease_margin = Duration::from_millis(500);
        config.beat_interval = Duration::from_millis(400);
        config.cancel_grace = Duration::from_secs(1);
        config.sweep_interval = Duration::from_millis(200);
        config.pod_heartbeat = Duration::from_millis(200);
        Self { installation, clock, _server: server, _directory: directory }
    }

    async fn now_ms(&self) -> u64 {
        let time = self.installation.command("TIME", &[]).await.into_array().expect("seconds and microseconds");
        time[0].as_str().expect("text").parse::<u64>().expect("a number") * 1_000
    }

    fn key(&self, name: &str) -> String {
        self.installation.partition().key(name)
    }
}

#[tokio::test]
async fn leases_run_out_and_graces_end_though_redis_clock_was_set_back() {
    let moved = Moved::new().await;
    let installation = &moved.installation;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let (mut runner, _) = Raw::open(&pod.url, 1, hello("s_1", 2)).await;
    for id in 1..=2 {
        installation.job(id, json!({})).await;
        let assign = runner.assign().await;
        runner.accept(&assign).await;
    }
    installation.publish("job.canceled", json!({"id": 2, "tenant": "ns:1", "reason": "user"})).await;
    runner.until(|kind| matches!(kind, Down::Cancel(_)).then_some(())).await;
    moved.clock.move_to(-WRONG_BY_S);
    drop(runner);
    installation.until_events("job.failed", 1).await;
    installation.until_events("job.canceled", 1).await;
    assert_eq!(installation.story_of(1).await, ["queued", "assigned", "running", "failed"]);
    pod.stop().await;
}

#[tokio::test]
async fn a_runner_that_beats_keeps_its_job_whatever_redis_clock_does() {
    let moved = Moved::new().await;
    let installation = &moved.installation;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let noting = Noting { duration: Duration::from_secs(8), ..Noting::default() };
    let runner = installation.runner(&pod.url, 1, "s_1", 1, noting);
    installation.job(1, json!({})).await;
    installation.until_events("job.running", 1).await;
    for ahead_s in [WRONG_BY_S, 0, -WRONG_BY_S] {
        moved.clock.move_to(ahead_s);
        tokio::time::sleep(Duration::from_millis(2_500)).await; // longer than a lease
    }
    installation.until_events("job.finished", 1).await;
    assert_eq!(installation.story_of(1).await, ["queued", "assigned", "running", "finished"]);
    assert_eq!(runner.stop().await.succeeded, 1);
    pod.stop().await;
}

#[tokio::test]
async fn jobs_find_their_runners_after_redis_clock_jumped_ahead() {
    let moved = Moved::new().await;
    let installation = &moved.installation;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let runner = installation.runner(&pod.url, 1, "s_1", 1, Noting::default());
    installation.job(1, json!({})).await;
    installation.until_events("job.finished", 1).await;
    moved.clock.move_to(WRONG_BY_S);
    // A sweep finds that the scope was not spoken for in two hours, unless somebody speaks first.
    let soon = moved.now_ms().await - 60_000;
    installation
        .until("the old word for the scope is gone", async || {
            let args = [moved.key("scopes"), "1".to_owned(), soon.to_string()].map(Arg::from);
            (installation.redis.command("ZCOUNT", args).await.ok()?.as_u64().ok()? == 0).then_some(())
        })
        .await;
    installation.job(2, json!({"project_id": 2, "tags": []})).await;
    installation.until_events("job.finished", 2).await;
    assert_eq!(runner.stop().await.succeeded, 2);
    pod.stop().await;
}

#[tokio::test]
async fn what_a_dead_pod_had_read_is_applied_though_redis_clock_was_set_back() {
    let moved = Moved::new().await;
    let installation = &moved.installation;
    let (inbox, group) = (&installation.config.inbox_stream, installation.config.inbox_group.as_str());
    installation.job(1, json!({})).await;
    let create = ["CREATE", inbox, group, "0"].map(Arg::from);
    installation.redis.command_at(inbox, "XGROUP", create).await.expect("a group");
    let read = ["GROUP", group, "dead", "STREAMS", inbox, ">"].map(Arg::from);
    installation.redis.command_at(inbox, "XREADGROUP", read).await.expect("an entry");
    moved.clock.move_to(-WRONG_BY_S);
    let pod = installation.pod("a").await;
    installation.until_events("job.queued", 1).await;
    installation.until_inbox_empty().await;
    pod.stop().await;
}

/// The ids of letters go by Redis' clock: those of a new mailbox would all stand before what was read of the old one.
#[tokio::test]
async fn a_pod_that_was_buried_hears_its_mail_though_redis_clock_was_set_back() {
    let mut moved = Moved::new().await;
    moved.installation.config.sweep_interval = Duration::from_secs(60); // nothing but mail tells it
    moved.clock.move_to(WRONG_BY_S);
    let installation = &moved.installation;
    let (pod, partition) = (installation.pod("a").await, installation.partition());
    installation.register(1, json!({})).await;
    let runner = installation.runner(&pod.url, 1, "s_1", 1, Noting::default());
    // Another pod queues them: the one with the runner is told by mail.
    let queue = async |id: u64| {
        let entry = (format!("{}-0", 1_790_000_000_000 + id), job(id));
        partition.fan_out(&name("other"), &[entry], Duration::from_secs(5), &[]).await.expect("fans out");
        installation.until_events("job.finished", id as usize).await;
    };
    let waits = async || {
        let waiting = partition.key(&format!("waiting:{}", instance_lane()));
        let rank = || installation.redis.command("ZSCORE", [waiting.as_str(), "a"].map(Arg::from));
        installation.until("it waits", async || rank().await.ok()?.into_option().map(drop)).await;
    };
    queue(1).await;
    waits().await;
    queue(2).await;
    moved.clock.move_to(-WRONG_BY_S);
    partition.bury(&name("a"), None).await.expect("buries");
    let pods = partition.key("pods");
    let known = || installation.redis.command("ZSCORE", [pods.as_str(), "a"].map(Arg::from));
    installation.until("it is back", async || known().await.ok()?.into_option().map(drop)).await;
    waits().await;
    queue(3).await;
    assert_eq!(runner.stop().await.succeeded, 3);
    pod.end().await;
}

/// As with mail: the log of changes is another one, with ids that all stand before what was read.
#[tokio::test]
async fn what_changes_of_a_runner_is_heard_though_redis_lost_its_data_and_its_clock_was_set_back() {
    let moved = Moved::new().await;
    moved.clock.move_to(WRONG_BY_S);
    let installation = &moved.installation;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let (mut runner, _) = Raw::open(&pod.url, 1, hello("s_1", 1)).await;
    moved.clock.move_to(-WRONG_BY_S);
    installation.command("FLUSHALL", &[]).await;
    let instance = moved.key("instance");
    let named = || installation.redis.command("GET", [Arg::from(&instance)]);
    installation.until("it has a name", async || named().await.ok()?.into_option().map(drop)).await;
    installation.register(1, json!({})).await;
    installation.publish("runner.deleted", json!({"id": 1})).await;
    assert_eq!(runner.end().await.expect_err("it is cut").code(), tonic::Code::Unauthenticated);
    pod.stop().await;
}
