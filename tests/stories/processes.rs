//! Several real processes of the binary, and signals to them.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::net::Balancer;
use crate::support::pods::{Gate, Installation, Noting};
use crate::support::processes::PodProcess;
use crate::support::redis_url;
use job_router::redis::Redis;
use serde_json::json;

fn start(installation: &Installation, name: &str) -> PodProcess {
    let config = &installation.config;
    let flags = [
        format!("--redis-url={}", redis_url()),
        format!("--key-prefix={}", config.key_prefix),
        format!("--inbox-stream={}", config.inbox_stream),
        format!("--pod-id={name}"),
        "--drain-timeout=5s".to_owned(),
    ];
    PodProcess::start(&flags, "pod ready")
}

async fn lengths(redis: &Redis, installation: &Installation) -> u64 {
    redis
        .command("XLEN", [(&installation.config.inbox_stream).into()])
        .await
        .expect("a reply")
        .as_u64()
        .expect("a length")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_deployment_delays_and_loses_nothing() {
    let installation = Installation::new().await;
    let (a, b) = (start(&installation, "a"), start(&installation, "b"));
    let balancer = Balancer::new(&[&a.url(), &b.url()]).await;
    installation.register(1, json!({})).await;
    let runners: Vec<_> = (1..=4)
        .map(|n| {
            let noting = Noting { duration: Duration::from_millis(5), ..Noting::default() };
            (installation.runner(&balancer.url, 1, &format!("s_{n}"), 5, noting.clone()), noting)
        })
        .collect();
    for id in 1..=1_000 {
        installation.job(id, json!({})).await;
    }
    installation.until_events("job.finished", 200).await;
    let c = start(&installation, "c");
    balancer.point_to(&[&b.url(), &c.url()]);
    a.signal(rustix::process::Signal::TERM);
    for id in 1_001..=2_000 {
        installation.job(id, json!({})).await;
    }
    a.drained();
    installation.until_events("job.finished", 2_000).await;
    let mut ran: Vec<u64> =
        runners.iter().flat_map(|(_, noting)| noting.ran.lock().expect("no panic").clone()).collect();
    ran.sort_unstable();
    assert_eq!(ran, (1..=2_000).collect::<Vec<_>>(), "each ran once");
    let counts = installation.counts().await;
    assert!(!counts.contains_key("job.failed") && counts["job.assigned"] < 2_200, "{counts:?}");
    assert_eq!(lengths(&installation.redis, &installation).await, 0);
    for (runner, _) in runners {
        runner.stop().await;
    }
    c.signal(rustix::process::Signal::TERM);
    c.drained();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_pods_jobs_go_to_others_within_five_seconds_and_running_ones_run_on() {
    let installation = Installation::new().await;
    let a = start(&installation, "a");
    installation.register(1, json!({})).await;
    let balancer = Balancer::new(&[&a.url()]).await;
    // One runs three jobs; another holds two that it has not accepted.
    let gate = Gate::default();
    let running = installation.runner(&balancer.url, 1, "s_1", 3, gate.clone());
    for id in 1..=3 {
        installation.job(id, json!({})).await;
    }
    installation.until_events("job.running", 3).await;
    let (mut silent, _) = crate::support::raw::Raw::open(&a.url(), 1, crate::support::raw::hello("s_2", 2)).await;
    for id in 4..=5 {
        installation.job(id, json!({})).await;
        silent.assign().await;
    }
    let b = start(&installation, "b");
    let (mut other, _) = crate::support::raw::Raw::open(&b.url(), 1, crate::support::raw::hello("s_3", 2)).await;
    balancer.point_to(&[&b.url()]);
    a.signal(rustix::process::Signal::KILL);
    let since = Instant::now();
    for id in 4..=5 {
        assert_eq!(other.assign().await.lease.expect("a lease").job_id, id, "they keep their places");
    }
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    installation
        .until("it has resumed", async || {
            let key = format!("{{{}:0}}:pod:b:jobs", installation.config.key_prefix);
            let held = installation.redis.command("SCARD", [key.into()]).await.ok()?.as_u64().ok()?;
            (held == 5).then_some(())
        })
        .await;
    gate.open.cancel();
    installation.until_events("job.finished", 3).await;
    let summary = running.stop().await;
    assert_eq!((summary.succeeded, summary.lost), (3, 0));
    for id in 1..=3 {
        assert_eq!(installation.story_of(id).await, ["queued", "assigned", "running", "finished"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_was_frozen_for_longer_than_it_counts_as_dead_starts_nothing_stale() {
    let installation = Installation::new().await;
    let (a, b) = (start(&installation, "a"), start(&installation, "b"));
    installation.register(1, json!({})).await;
    let (mut first, _) = crate::support::raw::Raw::open(&a.url(), 1, crate::support::raw::hello("s_1", 1)).await;
    installation.job(1, json!({})).await;
    let stale = first.assign().await.lease.expect("a lease");
    a.freeze();
    first.say(crate::support::raw::accepted(&stale)).await;
    let (mut second, _) = crate::support::raw::Raw::open(&b.url(), 1, crate::support::raw::hello("s_2", 1)).await;
    let assign = second.assign().await;
    let lease = second.accept(&assign).await;
    a.signal(rustix::process::Signal::CONT);
    let answer = first.next().await.expect("no error").expect("no end");
    assert!(!matches!(answer, job_router::proto::router_message::Kind::Start(_)), "{answer:?}");
    second.say(crate::support::raw::finished(&lease)).await;
    installation.until_events("job.finished", 1).await;
    // It has joined again: what is queued now reaches its runner.
    let (mut third, _) = crate::support::raw::Raw::open(&a.url(), 1, crate::support::raw::hello("s_4", 1)).await;
    installation.job(2, json!({})).await;
    let next = tokio::select! { assign = third.assign() => assign, assign = first.assign() => assign };
    assert_eq!(next.lease.expect("a lease").job_id, 2);
    installation
        .until("both are known", async || {
            let key = format!("{{{}:0}}:pods", installation.config.key_prefix);
            let pods = installation.redis.command("ZCARD", [key.into()]).await.ok()?.as_u64().ok()?;
            (pods == 2).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_runner_leaves_neither_processes_nor_directories_of_its_jobs_behind() {
    let installation = Installation::new().await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let (home, scratch) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (token, mark) = (home.path().join("token"), home.path().join("mark"));
    std::fs::write(&token, crate::support::pods::token(1)).expect("written");
    let mut runner = Command::new(env!("CARGO_BIN_EXE_job-router"))
        .args(["runner", "--url", &pod.url, "--name", "s_1", "--log", "error", "--log-dir"])
        .arg(home.path())
        .arg("--token-file")
        .arg(&token)
        .env("TMPDIR", scratch.path())
        .stdin(Stdio::null())
        .spawn()
        .expect("the binary starts");
    // The leader waits for a child that hears no signal but SIGKILL.
    let line = format!("(trap '' TERM HUP INT; echo $BASHPID > {0}.new; mv {0}.new {0}; sleep 600; :)", mark.display());
    installation.job(1, json!({"payload": {"steps": [{"script": [line]}]}})).await;
    let pid = installation.until("the job runs", async || std::fs::read_to_string(&mark).ok()).await;
    let stat = std::path::Path::new("/proc").join(pid.trim()).join("stat");
    assert!(stat.exists() && std::fs::read_dir(scratch.path()).expect("a directory").next().is_some());
    runner.kill().expect("ours");
    runner.wait().expect("ours");
    // Whoever adopts the processes may be slow to wait for them.
    let is_gone = || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
    installation.until("the job's process is gone", async || is_gone().then_some(())).await;
    let is_empty = || std::fs::read_dir(scratch.path()).is_ok_and(|mut entries| entries.next().is_none());
    installation.until("its directory is gone", async || is_empty().then_some(())).await;
}
