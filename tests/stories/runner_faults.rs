//! What users see when runners misbehave: they flap, hang, freeze, lie, do not read, or die of their jobs.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::net::Balancer;
use crate::support::pods::{Gate, Installation, Noting, TestPod, token};
use crate::support::processes::{PodProcess, freeze, send};
use crate::support::raw::{self, Raw};
use crate::support::redis_url;
use job_router::client::{Assignment, Executor, JobContext, Outcome, Reason};
use job_router::job::LeaseId;
use job_router::proto;
use job_router::proto::router_message::Kind as Down;
use rustix::process::Signal;
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// The job that is fatal to whoever has it.
const POISON: u64 = 1;
/// A lease that runs out in a test, and one that does not.
const SHORT: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(60);

/// One pod, and runners 1 and 2.
async fn installation(lease: Duration) -> (Installation, TestPod) {
    let mut installation = Installation::new().await;
    installation.config.lease = lease;
    installation.config.beat_interval = lease / 6;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    installation.register(2, json!({})).await;
    (installation, pod)
}

/// The longest that a job other than the poison waited from its first queueing until it ran.
async fn longest_wait_ms(installation: &Installation) -> u64 {
    let events = installation.events().await;
    let first = |id, kind: &str| events.iter().find(|event| event.id == id && event.event_type.to_string() == kind);
    let started = events.iter().filter(|event| event.event_type.to_string() == "job.running");
    let others = started.filter(|event| event.id.is_some_and(|id| id.0 != POISON));
    others.filter_map(|event| Some(event.at_ms - first(event.id, "job.queued")?.at_ms)).max().unwrap_or(0)
}

/// Prints figures, for whoever compares them.
fn tell(figures: &serde_json::Value) {
    println!("{figures}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flapping_runner_fails_no_job_and_delays_none() {
    let (installation, pod) = installation(LONG).await;
    let gate = Gate::default();
    let steady = installation.runner(&pod.url, 1, "s_1", 1, gate.clone());
    installation.job(POISON, json!({})).await;
    installation.until_events("job.running", 1).await;
    // The steady one is full; the other comes ten times a second, has the next job, and goes.
    let (flapped, stop, url) = (Arc::new(AtomicU32::new(0)), CancellationToken::new(), pod.url.clone());
    let (count, stopped) = (flapped.clone(), stop.clone());
    let flapping = tokio::spawn(async move {
        while !stopped.is_cancelled() {
            let (mut flapper, _) = Raw::open(&url, 2, raw::hello("s_2", 1)).await;
            let _ = tokio::time::timeout(Duration::from_millis(50), flapper.assign()).await;
            drop(flapper);
            count.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    installation.job(2, json!({})).await;
    let since = Instant::now();
    let long_enough = || flapped.load(Ordering::Relaxed) >= 40 || since.elapsed() > Duration::from_secs(8);
    installation.until("it has flapped for a while", async || long_enough().then_some(())).await;
    gate.open.cancel();
    installation.until_events("job.finished", 2).await;
    for id in 3..=102 {
        installation.job(id, json!({})).await;
    }
    installation.until_events("job.finished", 102).await;
    stop.cancel();
    flapping.await.expect("no panic");
    let counts = installation.counts().await;
    assert!(!counts.contains_key("job.failed"), "{counts:?}");
    let mut ran = gate.started();
    ran.sort_unstable();
    assert_eq!(ran, (1..=102).collect::<Vec<_>>(), "each ran once");
    tell(
        &json!({"test": "flapping", "sessions": flapped.load(Ordering::Relaxed), "requeued": counts.get("job.requeued")}),
    );
    steady.stop().await;
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_hangs_with_a_running_job_loses_it_though_it_stays_connected() {
    let (installation, pod) = installation(SHORT).await;
    let (mut hung, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 2)).await;
    installation.job(1, json!({"max_attempts": 2})).await;
    let assign = hung.assign().await;
    let lost = hung.accept(&assign).await;
    // From here on it says nothing; its connection answers pings.
    let (mut other, _) = Raw::open(&pod.url, 2, raw::hello("s_2", 0)).await;
    installation.until_events("job.requeued", 1).await;
    other.say(raw::slots(1, 0)).await;
    let again = other.assign().await;
    assert_eq!((again.lease.as_ref().map(|lease| lease.job_id), again.attempt >= 2), (Some(1), true));
    let lease = other.accept(&again).await;
    hung.until(|kind| matches!(kind, Down::Revoked(revoked) if revoked.lease.as_ref() == Some(&lost)).then_some(()))
        .await;
    // It comes to, and is not heard.
    hung.say(raw::finished(&lost)).await;
    let ack = hung.until(|kind| if let Down::FinishedAck(ack) = kind { Some(ack.clone()) } else { None }).await;
    assert!(!ack.recorded);
    other.say(raw::finished(&lease)).await;
    installation.until_events("job.finished", 1).await;
    let told = installation.story_of(1).await;
    assert_eq!(told.iter().filter(|kind| *kind == "running").count(), 2, "{told:?}");
    assert_eq!(told.last().map(String::as_str), Some("finished"), "{told:?}");
    pod.end().await;
}

/// A `job-router runner`, killed when dropped.
struct Runner(Child);

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_frozen_for_longer_than_its_lease_fences_its_job_as_soon_as_it_goes_on() {
    let (installation, pod) = installation(SHORT).await;
    let balancer = Balancer::new(&[&pod.url]).await;
    let (home, scratch) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (token_file, mark) = (home.path().join("token"), home.path().join("mark"));
    std::fs::write(&token_file, token(1)).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_job-router"));
    command.args(["runner", "--url", &balancer.url, "--name", "s_1", "--log", "error", "--log-dir"]).arg(home.path());
    command.arg("--token-file").arg(&token_file).env("TMPDIR", scratch.path()).stdin(Stdio::null());
    let runner = Runner(command.spawn().expect("the binary starts"));
    let line = format!("echo $BASHPID > {0}.new; mv {0}.new {0}; sleep 600", mark.display());
    installation.job(1, json!({"payload": {"steps": [{"script": [line]}]}})).await;
    let pid = installation.until("the job runs", async || std::fs::read_to_string(&mark).ok()).await;
    freeze(&runner.0);
    installation.until_events("job.failed", 1).await;
    // Nobody tells it: what it does now it does by its own clock.
    balancer.point_to(&[]);
    balancer.cut();
    let stat = std::path::Path::new("/proc").join(pid.trim()).join("stat");
    let is_gone = || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
    assert!(!is_gone(), "a process of a frozen runner is not stopped by anybody");
    let since = Instant::now();
    send(&runner.0, Signal::CONT);
    installation.until("the job's process is gone", async || is_gone().then_some(())).await;
    tell(&json!({"test": "frozen runner", "thawed_to_fenced_ms": since.elapsed().as_millis() as u64}));
    // It goes on, and says nothing of the job that it lost.
    balancer.point_to(&[&pod.url]);
    installation.job(2, json!({"payload": {"steps": [{"script": ["true"]}]}})).await;
    installation.until_events("job.finished", 1).await;
    assert_eq!(installation.story_of(1).await, ["queued", "assigned", "running", "failed"]);
    assert_eq!(installation.story_of(2).await, ["queued", "assigned", "running", "finished"]);
    pod.end().await;
}

/// Everything that a runner may say of jobs, and none of it true: not of the one that was assigned to it, nor of those of others.
async fn lie(liar: &Raw, assigned: &proto::Lease, others: &[proto::Lease], sequence: u64) {
    let made_up = proto::Lease { lease_id: LeaseId::random(0).to_string(), ..assigned.clone() };
    let elsewhere = proto::Lease { job_id: assigned.job_id + 1, ..assigned.clone() };
    let lies: Vec<_> = [made_up, elsewhere].into_iter().chain(others.iter().cloned()).collect();
    for lease in &lies {
        liar.say(raw::accepted(lease)).await;
        liar.say(raw::finished(lease)).await;
        liar.say(raw::declined(lease)).await;
    }
    liar.say(raw::beat(sequence, &lies)).await;
    liar.say(raw::slots(3, u64::MAX)).await; // it has seen what was never sent
}

/// Jobs that run elsewhere, under leases that it cannot know: those are random, and told to their holder and to Rails alone.
async fn jobs_of_others(installation: &Installation) -> Vec<proto::Lease> {
    let events = installation.events().await;
    let running = events.iter().rev().filter(|event| event.event_type.to_string() == "job.running").take(5);
    let lease = |event: &job_router::contract::Event| {
        Some(proto::Lease { job_id: event.id?.0, lease_id: LeaseId::random(0).to_string() })
    };
    running.filter_map(lease).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_lies_in_every_message_moves_no_job_of_others() {
    const JOBS: u64 = 200;
    let (installation, pod) = installation(LONG).await;
    let noting = Noting { duration: Duration::from_millis(200), ..Noting::default() };
    let honest = installation.runner(&pod.url, 1, "s_1", 5, noting.clone());
    installation.job(1, json!({})).await;
    installation.until_events("job.running", 1).await;
    let (mut liar, _) = Raw::open(&pod.url, 2, raw::hello("s_2", 3)).await;
    for id in 2..=JOBS {
        installation.job(id, json!({})).await;
    }
    let (mut lied_of, mut ran) = (0, Vec::new());
    for sequence in 1..=20 {
        let next = tokio::time::timeout(Duration::from_secs(3), liar.assign()).await;
        let Ok(assign) = next else { break }; // the honest one had them all
        let lease = assign.lease.clone().expect("a lease");
        let others = jobs_of_others(&installation).await;
        lied_of += others.iter().filter(|other| !ran.contains(&other.job_id)).count();
        lie(&liar, &lease, &others, sequence).await;
        if sequence % 2 == 0 {
            liar.say(raw::finished(&lease)).await; // never accepted
        } else {
            liar.say(raw::accepted(&lease)).await;
            liar.accept(&assign).await; // the second time
            ran.push(lease.job_id);
            liar.say(raw::finished(&lease)).await;
            liar.say(raw::finished(&lease)).await;
        }
    }
    assert!(lied_of > 0 && !ran.is_empty(), "it had nothing to lie of");
    liar.say(raw::slots(10_000, 0)).await; // it never had so many
    let all = async { while let Ok(Some(_)) = liar.next().await {} };
    let _ = tokio::time::timeout(Duration::from_secs(1), all).await;
    drop(liar);
    installation.until("all end", async || (ended(&installation).await == JOBS as usize).then_some(())).await;
    let counts = installation.counts().await;
    assert_eq!(counts.get("job.finished"), Some(&(JOBS as usize)), "{counts:?}");
    tell(
        &json!({"test": "lying", "others_jobs_lied_of": lied_of, "ran_by_liar": ran.len(), "assigned": counts["job.assigned"]}),
    );
    ran.extend(noting.ran.lock().expect("no panic").iter());
    ran.sort_unstable();
    assert_eq!(
        ran,
        (1..=JOBS).collect::<Vec<_>>(),
        "each ran once, and the liar's were those that it was told to start"
    );
    honest.stop().await;
    pod.end().await;
}

async fn ended(installation: &Installation) -> usize {
    let counts = installation.counts().await;
    ["job.finished", "job.failed", "job.canceled"].iter().filter_map(|kind| counts.get(*kind)).sum()
}

/// Memory of a process in MiB.
fn resident_mib(pod: &PodProcess) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pod.pid())).expect("it is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn runners_that_never_read_cost_a_pod_no_more_than_their_bound_and_their_jobs_go_to_others() {
    let installation = Installation::new().await;
    let config = &installation.config;
    let pod = PodProcess::start(
        &[
            format!("--redis-url={}", redis_url()),
            format!("--key-prefix={}", config.key_prefix),
            format!("--inbox-stream={}", config.inbox_stream),
            "--accept-timeout=500ms".to_owned(),
            "--drain-timeout=2s".to_owned(),
        ],
        "pod ready",
    );
    installation.register(1, json!({})).await;
    let before = resident_mib(&pod);
    let mut deaf = Vec::new();
    for number in 0..2 {
        deaf.push(Raw::open(&pod.url(), 1, raw::hello(&format!("deaf_{number}"), 1_000)).await.0);
    }
    let payload = json!({"text": "x".repeat(200_000)});
    let mut most = 0;
    for id in 1..=100 {
        installation.job(id, json!({"payload": payload})).await;
    }
    // Pushed, given back and pushed again, three times over.
    let requeued = async || installation.counts().await.get("job.requeued").copied().unwrap_or(0);
    installation
        .until("all were pushed again and again", async || {
            most = most.max(resident_mib(&pod));
            (requeued().await >= 300).then_some(())
        })
        .await;
    drop(deaf);
    let noting = Noting::default();
    let reads = installation.runner(&pod.url(), 1, "s_1", 10, noting.clone());
    installation.until_events("job.finished", 100).await;
    let mut ran = noting.ran.lock().expect("no panic").clone();
    ran.sort_unstable();
    assert_eq!(ran, (1..=100).collect::<Vec<_>>(), "each ran once");
    tell(&json!({"test": "never reading", "before_mib": before, "most_mib": most, "payloads_mib": 20}));
    // 20 MiB wait for runners, and pass through a few buffers on their way; nothing piles up as they come again.
    assert!(most - before < 150, "{before} MiB before, {most} MiB at most");
    reads.stop().await;
    pod.signal(Signal::TERM);
    pod.drained();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_every_runner_that_starts_it_fails_after_its_attempts_and_delays_nobody() {
    let (installation, pod) = installation(SHORT).await;
    let stop = CancellationToken::new();
    let mut runners = tokio::task::JoinSet::new();
    for number in 1..=2 {
        let (url, stop) = (pod.url.clone(), stop.clone());
        runners.spawn(async move {
            while !stop.is_cancelled() {
                let (mut runner, _) = Raw::open(&url, 1, raw::hello(&format!("s_{number}"), 1)).await;
                serve_until_poisoned(&mut runner, &stop).await;
            }
        });
    }
    installation.job(POISON, json!({"max_attempts": 3})).await;
    for id in 2..=101 {
        installation.job(id, json!({})).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    installation.until_events("job.finished", 100).await;
    installation.until_events("job.failed", 1).await;
    stop.cancel();
    let told = installation.story_of(POISON).await;
    assert_eq!(told.iter().filter(|kind| *kind == "running").count(), 3, "{told:?}");
    let events = installation.events().await;
    let failed = events.iter().find(|event| event.event_type.to_string() == "job.failed").expect("counted");
    assert_eq!((failed.id.map(|id| id.0), failed.text("failure_reason")), (Some(POISON), Some("runner_lost")));
    let longest = longest_wait_ms(&installation).await;
    tell(&json!({"test": "poison at run", "attempts": 3, "others_longest_wait_ms": longest}));
    // So long would be the wait behind a job whose runner is dead.
    assert!(longest < SHORT.as_millis() as u64, "{longest} ms");
    while runners.join_next().await.is_some() {}
    pod.end().await;
}

/// Runs each job at once, until one is the poison: then the runner is dead, just when it was told to start.
async fn serve_until_poisoned(runner: &mut Raw, stop: &CancellationToken) {
    for seen in 1.. {
        let assign = tokio::select! {
            assign = runner.assign() => assign,
            () = stop.cancelled() => return,
        };
        let lease = runner.accept(&assign).await;
        if lease.job_id == POISON {
            return;
        }
        runner.say(raw::finished(&lease)).await;
        runner.say(raw::slots(1, seen)).await;
    }
}

/// Panics over the poison, before it is accepted or when it runs.
#[derive(Clone, Default)]
struct Choking {
    in_run: bool,
    noting: Noting,
}

impl Executor for Choking {
    fn accept(&self, assignment: &Assignment) -> Result<(), Reason> {
        assert!(self.in_run || assignment.lease.job_id.0 != POISON, "the decoder chokes");
        Ok(())
    }

    async fn run(&self, job: JobContext) -> Outcome {
        assert!(job.assignment.lease.job_id.0 != POISON, "the job is poison");
        self.noting.run(job).await
    }
}

/// How the poison ends among 50 jobs, and what the others waited for at most.
async fn choke(in_run: bool) -> (String, u64) {
    let (installation, pod) = installation(LONG).await;
    let choking = Choking { in_run, ..Choking::default() };
    let managers: Vec<_> =
        (1..=4).map(|n| installation.runner(&pod.url, 1, &format!("s_{n}"), 2, choking.clone())).collect();
    for id in 1..=50 {
        installation.job(id, json!({})).await;
    }
    installation.until("all end", async || (ended(&installation).await == 50).then_some(())).await;
    let events = installation.events().await;
    let reason = |event: &job_router::contract::Event| {
        event.text("failure_reason").filter(|reason| !reason.is_empty()).map(str::to_owned)
    };
    let failed: Vec<_> = events.iter().filter_map(|event| Some((event.id?.0, reason(event)?))).collect();
    assert!(matches!(&failed[..], [(POISON, _)]), "{failed:?}");
    let reason = failed[0].1.clone();
    for manager in managers {
        manager.stop().await; // all are alive
    }
    let longest = longest_wait_ms(&installation).await;
    pod.end().await;
    (reason, longest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_a_decoder_chokes_on_fails_as_undeliverable_and_ends_no_runner() {
    let (reason, longest) = Box::pin(choke(false)).await;
    tell(&json!({"test": "decoder chokes", "reason": reason, "others_longest_wait_ms": longest}));
    assert_eq!(reason, "undeliverable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_panics_its_executor_fails_at_once_and_ends_no_runner() {
    let (reason, longest) = Box::pin(choke(true)).await;
    tell(&json!({"test": "executor panics", "reason": reason, "others_longest_wait_ms": longest}));
    assert_eq!(reason, "runner_system_failure");
}
