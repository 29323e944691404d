//! With `require_replicas`: nothing is acted on that a failover could take back. And what holds an expiry up: another primary, and too
//! many at once.

use std::time::{Duration, Instant};

use crate::support::net::Balancer;
use crate::support::pods::Installation;
use crate::support::raw::{self, Raw};
use crate::support::{instance_lane, job, name, start_redis};
use job_router::job::{OfferId, RunnerId};
use job_router::proto::{self, router_message::Kind as Down};
use job_router::redis::scripts::Outcome;
use job_router::redis::{
    Offer, Partition, PrivateRedis, PrivateRedisOptions, Redis, RedisError, RedisSettings, Report,
};
use serde_json::json;

/// A wait for replicas takes a quarter of it.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(800);
const LONG: Duration = Duration::from_secs(3600);

/// A primary and its replica, which follows it.
async fn pair() -> (PrivateRedis, PrivateRedis) {
    let primary = start_redis(PrivateRedisOptions { tcp: true, ..Default::default() });
    let url = primary.tcp_url().expect("it listens");
    let port = url.rsplit(':').next().expect("a port");
    let config = vec![format!("replicaof 127.0.0.1 {port}")];
    let options = PrivateRedisOptions { tcp: true, config, ..Default::default() };
    let replica = start_redis(options);
    let redis = Redis::connect(&RedisSettings::new(primary.url())).await.expect("connects");
    let limit = Instant::now() + Duration::from_secs(20);
    while redis.command_at("any", "WAIT", [1_i64.into(), 100_i64.into()]).await.expect("a reply").as_i64().ok()
        != Some(1)
    {
        assert!(Instant::now() < limit, "the replica follows in time");
    }
    (primary, replica)
}

fn settings(primary: &PrivateRedis) -> RedisSettings {
    RedisSettings { replicas: 1, command_timeout: COMMAND_TIMEOUT, ..RedisSettings::new(primary.url()) }
}

/// An installation whose pods wait for the replica.
async fn on(primary: &PrivateRedis) -> Installation {
    let mut installation = Installation::new().await;
    installation.config.redis_url = primary.url().parse().expect("a URL");
    installation.config.redis_command_timeout = COMMAND_TIMEOUT;
    installation.config.require_replicas = 1;
    installation.redis = Redis::connect(&RedisSettings::new(primary.url())).await.expect("connects");
    installation
}

fn entry(id: u64) -> (String, job_router::job::PendingJob) {
    (format!("178000000000{id}-0"), job(id))
}

fn is_not_replicated<T: std::fmt::Debug>(answer: &Result<T, RedisError>) -> bool {
    matches!(answer, Err(error @ RedisError::NotReplicated { wanted: 1, have: 0, .. }) if error.is_retryable())
}

/// Makes a call until the replica is there in time, as a pod does.
async fn once_there<T: std::fmt::Debug>(mut call: impl AsyncFnMut() -> Result<T, RedisError>) -> T {
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        match call().await {
            answer if is_not_replicated(&answer) && Instant::now() < limit => {}
            answer => return answer.expect("with a replica"),
        }
    }
}

#[tokio::test]
async fn a_call_is_answered_once_a_replica_has_what_it_wrote() {
    let (primary, replica) = pair().await;
    let redis = Redis::connect(&settings(&primary)).await.expect("connects");
    let partition = Partition::new(redis, "{t:0}:");
    let (pod, offer) = (
        name("pod"),
        Offer { id: OfferId::random(0), runner_id: RunnerId(1), system_id: name("s"), accept_timeout: None },
    );
    let (jobs, terms) = ([entry(1)], Duration::from_secs(5));
    partition.heartbeat(&pod, "0", LONG, &crate::support::empty()).await.expect("beats");
    partition.scope(job_router::runner::Scope::Instance, true).await.expect("opens");
    let fanned_out = once_there(async || partition.fan_out(&pod, &jobs, terms, &[]).await).await;
    assert!([Outcome::Ok, Outcome::Known].contains(&fanned_out.outcomes[0]), "{fanned_out:?}");

    replica.pause().expect("freezes");
    let take = async || partition.take(&pod, terms, 0, &[instance_lane()], std::slice::from_ref(&offer)).await;
    assert!(is_not_replicated(&take().await));
    assert!(is_not_replicated(&take().await), "on another connection, which wrote nothing new");
    replica.resume().expect("goes on");
    let taken = once_there(take).await;
    assert_eq!(taken.jobs.len(), 1, "the same answer");
    let lease = taken.jobs[0].lease;

    replica.pause().expect("freezes");
    let start = [lease];
    let report = [Report {
        job_id: lease.job_id,
        lease_id: Some(lease.lease_id),
        status: "success",
        exit_code: 0,
        failure_reason: String::new(),
    }];
    assert!(is_not_replicated(&partition.start(LONG, &start).await));
    let resumed = partition.resume_running(&pod, LONG, &[lease]).await;
    assert!(is_not_replicated(&resumed), "who goes on by it would do so without a start that lasts");
    assert!(partition.renew(&pod, LONG, &[lease]).await.is_ok(), "a beat waits for nobody");
    assert!(is_not_replicated(&partition.finish(LONG, &report).await));
    let canceled = partition.cancel(lease.job_id, "user", Duration::ZERO, LONG).await;
    assert!(is_not_replicated(&canceled), "though it had ended");
    replica.resume().expect("goes on");
    let finish = async || partition.finish(LONG, &report).await;
    assert_eq!(once_there(finish).await, [Outcome::Ok], "it was recorded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_is_told_nothing_that_a_failover_could_take_back() {
    let (primary, mut replica) = pair().await;
    let installation = on(&primary).await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let (mut runner, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 1)).await;
    let mut beats = 0;
    let mut told = async |runner: &mut Raw| {
        beats += 1;
        tokio::time::sleep(COMMAND_TIMEOUT).await; // for what would be told to be told
        runner.so_far(beats).await
    };

    replica.pause().expect("freezes");
    installation.job(1, json!({})).await;
    assert!(told(&mut runner).await.is_empty());
    replica.resume().expect("goes on");
    let assign = runner.assign().await;
    let lease = assign.lease.clone().expect("a lease");

    replica.pause().expect("freezes");
    runner.say(raw::accepted(&lease)).await;
    assert!(told(&mut runner).await.is_empty());
    replica.resume().expect("goes on");
    let started =
        |kind: &Down| matches!(kind, Down::Start(start) if start.lease.as_ref() == Some(&lease)).then_some(());
    runner.until(started).await;

    // The primary is gone for good, and with it all that no replica had: nothing of what the runner knows.
    drop(primary);
    let promoted = Redis::connect(&RedisSettings::new(replica.url())).await.expect("connects");
    promoted.command_at("any", "REPLICAOF", ["NO".into(), "ONE".into()]).await.expect("promoted");
    let key = format!("{{{}:0}}:job:1", installation.config.key_prefix);
    let state = promoted.command("HMGET", [key.into(), "state".into(), "lease".into()]).await.expect("a reply");
    let state = state.into_array().expect("two fields");
    assert_eq!(state[0].as_str().ok(), Some("running"));
    assert!(state[1].as_str().expect("a lease").starts_with(&lease.lease_id));
    pod.kill().await;
    replica.stop().expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_runner_goes_on_only_once_a_replica_knows() {
    let (primary, replica) = pair().await;
    let installation = on(&primary).await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let (mut runner, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 1)).await;
    installation.job(1, json!({})).await;
    let assign = runner.assign().await;
    let lease = runner.accept(&assign).await;
    drop(runner);
    replica.pause().expect("freezes");
    let again = proto::Hello { running: vec![lease.clone()], ..raw::hello("s_1", 0) };
    let mut refused = Raw::greet(&pod.url, 1, again.clone()).await;
    assert_eq!(refused.next().await.expect_err("not let in").code(), tonic::Code::Unavailable);
    replica.resume().expect("goes on");
    let (_, welcome) = Raw::open(&pod.url, 1, again).await;
    assert_eq!(welcome.resumed[0].lease, Some(lease));
    pod.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_lease_runs_out_on_what_was_seen_before_redis_started_anew() {
    let mut server = start_redis(PrivateRedisOptions { append_only: true, ..Default::default() });
    let mut installation = Installation::new().await;
    installation.config.redis_url = server.url().parse().expect("a URL");
    installation.config.lease = Duration::from_secs(2);
    installation.config.beat_interval = Duration::from_millis(500);
    installation.config.sweep_interval = Duration::from_millis(200);
    installation.redis = Redis::connect(&RedisSettings::new(server.url())).await.expect("connects");
    let pod = installation.pod("a").await;
    let balancer = Balancer::new(&[&pod.url]).await;
    installation.register(1, json!({})).await;
    let (mut lost, _) = Raw::open(&balancer.url, 1, raw::hello("s_1", 1)).await;
    installation.job(1, json!({})).await;
    let assign = lost.assign().await;
    lost.accept(&assign).await;
    balancer.cut();
    // It has been seen without a beat for most of a lease: from 0.75 s on, when the lease is near its end.
    tokio::time::sleep(Duration::from_millis(2_000)).await;
    let restarted = Instant::now();
    server.kill_hard().expect("dies");
    server.restart().expect("starts");
    installation
        .until("the job fails", async || {
            installation.redis.command("XLEN", ["none".into()]).await.ok()?; // it is back
            (installation.counts().await.get("job.failed") == Some(&1)).then_some(())
        })
        .await;
    assert!(restarted.elapsed() >= installation.config.lease, "{:?}", restarted.elapsed());
    pod.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_leases_lost_at_once_are_held_up_for_a_while_and_expire_together() {
    let mut installation = Installation::new().await;
    installation.config.lease = Duration::from_secs(4);
    installation.config.beat_interval = Duration::from_millis(500);
    installation.config.sweep_interval = Duration::from_millis(200);
    installation.config.mass_expiry_hold = Duration::from_secs(6);
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let (mut lost, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 700)).await;
    for id in 1..=700 {
        installation.job(id, json!({})).await;
    }
    let mut leases = Vec::new();
    for _ in 1..=700 {
        let lease = lost.assign().await.lease.expect("a lease");
        lost.say(raw::accepted(&lease)).await;
        leases.push(lease);
    }
    installation.until_events("job.running", 700).await;
    lost.say(raw::beat(1, &leases)).await;
    lost.until(|kind| matches!(kind, Down::BeatAck(_)).then_some(())).await;
    drop(lost);
    let since = Instant::now();
    installation
        .until("the alarm", async || pod.admin("/metrics").await.1.contains("job_router_mass_expiry 1").then_some(()))
        .await;
    installation.until_events("job.failed", 700).await;
    assert!(
        since.elapsed() > installation.config.lease * 2 - installation.config.beat_interval,
        "seen silent once more"
    );
    let events = installation.events().await;
    let failed = events.iter().filter(|event| event.event_type.to_string() == "job.failed").map(|event| event.at_ms);
    let (first, last) = (failed.clone().min().expect("700"), failed.max().expect("700"));
    assert!(last - first < 6_000, "the last is {} ms after the first", last - first);
    pod.end().await;
}
