//! A rolling deployment to another version under load: what it costs the jobs and the runners.

use std::time::Duration;

use anyhow::Context;
use job_router::clock::unix_ms;
use job_router::redis::Redis;
use rustix::process::Signal;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::Common;
use super::fleet::{Door, Fleet, Jobs, Size};
use super::records::{Percentiles, percentiles};
use crate::commands::balancer::Balancer;
use crate::commands::rig::{Pod, Rig};

/// How long a pod may drain: the default of `serve`.
const DRAIN_MAX: &str = "25s";
/// What makes the scripts of the pods that go those of another version.
const OLD: &str = "of the version before";
/// How long jobs are published before the first pod goes.
const LEAD: Duration = Duration::from_secs(3);
/// Between one pod's being there and the next one's going.
const PAUSE: Duration = Duration::from_secs(1);

/// What a rolling deployment does to waits, at a steady rate
///
/// Pods behind a load balancer, runners with a connection each, jobs at random times. Each pod in turn gets a SIGTERM and leaves the
/// balancer, and when it has ended, another takes its place whose scripts are of another version. Measured from the XADD until the
/// runner's library has the job, for jobs queued before and during the roll.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  job-router bench roll --runners 50 --rate 100 --jobs 2000")]
pub(super) struct Args {
    /// Pods
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=16))]
    pods: u16,
    /// Managers of a runner, each with a connection of its own
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=8000))]
    runners: u16,
    /// Jobs that each may run at once
    #[arg(long, default_value_t = 2)]
    slots: u32,
    /// How long a job lasts
    #[arg(long, default_value_t = 200)]
    job_ms: u64,
    /// Jobs a second
    #[arg(long, default_value_t = 300.0)]
    rate: f64,
    /// Jobs to publish; enough for the whole roll
    #[arg(long, default_value_t = 6_000)]
    jobs: u64,
    /// Bytes of each payload
    #[arg(long, default_value_t = 1_024)]
    payload_bytes: usize,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Measured {
    bench: &'static str,
    pods: u16,
    runners: u16,
    rate_per_s: f64,
    jobs: u64,
    /// Queued during the roll.
    jobs_in_roll: usize,
    roll_s: f64,
    /// How much of it no job was published in: raise --jobs if it is not 0.
    without_jobs_s: f64,
    /// From SIGTERM to the end of the process, the longest.
    drain_s: f64,
    publish_to_runner_before_ms: Percentiles,
    publish_to_runner_in_roll_ms: Percentiles,
    longest_without_session_ms: f64,
    script_versions: usize,
    lost: u64,
    doubled: u64,
    requeued: u64,
}

/// What was done to the pods.
struct Rolled {
    pods: Vec<Pod>,
    /// From when to when, in Unix ms.
    span_ms: (u64, u64),
    longest_drain: Duration,
}

/// Measures.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    args.common.say("starting redis, pods and runners");
    let rig = Rig::start(args.common.redis_url.as_deref(), false).await?;
    let (balancer, flags) = (Balancer::start().await?, rig.args.flags());
    let mut pods = Vec::new();
    for number in 0..args.pods.into() {
        pods.push(Pod::start(&flags, number, DRAIN_MAX, Some(OLD)).await?);
    }
    balancer.point_to(pods.iter().map(|pod| pod.grpc_url.as_str()));
    let size = Size {
        pods: args.pods.into(),
        runners: 1,
        managers: args.runners.into(),
        slots: args.slots,
        job_time: Duration::from_millis(args.job_ms),
        door: Door::Native,
    };
    let mut fleet = Fleet::connect(rig, Vec::new(), std::slice::from_ref(&balancer.url), size).await?;
    super::fleet::until_connected(&pods, size.managers).await?;

    let jobs = Jobs {
        first_id: 1,
        count: args.jobs,
        rate: args.rate,
        first_tenant: 1,
        tenants: 20,
        in_blocks: false,
        projects: 3,
        payload_bytes: args.payload_bytes,
        hop_stream: None,
    };
    let bar = args.common.bar(jobs.count, "jobs");
    let (published, rolled) = tokio::try_join!(fleet.run(&jobs, &bar), roll(pods, &flags, &balancer))?;
    bar.finish_and_clear();
    let audit = fleet.audit(std::slice::from_ref(&published)).await?;
    let (begun_ms, ended_ms) = rolled.span_ms;
    let last_ms = published.first_ms()? + (published.seconds * 1e3) as u64;
    let script_versions = script_versions(&fleet.rig.redis).await?;
    let longest_away = fleet.end_runners().await?;
    let waits = |in_roll: bool| -> Vec<u64> {
        let is_of =
            |queued_ms: u64| if in_roll { (begun_ms..=ended_ms).contains(&queued_ms) } else { queued_ms < begun_ms };
        let of = audit.received.iter().filter(|(id, _)| is_of(fleet.life(*id).queued_at_ms));
        of.map(|(_, ns)| *ns).collect()
    };
    let in_roll = waits(true);
    args.common.print(&Measured {
        bench: "roll",
        pods: args.pods,
        runners: args.runners,
        rate_per_s: args.rate,
        jobs: args.jobs,
        jobs_in_roll: in_roll.len(),
        roll_s: Duration::from_millis(ended_ms - begun_ms).as_secs_f64(),
        without_jobs_s: Duration::from_millis(ended_ms.saturating_sub(last_ms)).as_secs_f64(),
        drain_s: rolled.longest_drain.as_secs_f64(),
        publish_to_runner_before_ms: percentiles(waits(false)),
        publish_to_runner_in_roll_ms: percentiles(in_roll),
        longest_without_session_ms: longest_away.as_secs_f64() * 1e3,
        script_versions,
        lost: audit.lost,
        doubled: audit.doubled,
        requeued: audit.requeued,
    })?;
    for pod in rolled.pods {
        pod.end().await?;
    }
    fleet.end().await?;
    audit.check()
}

/// Replaces the pods one by one.
async fn roll(pods: Vec<Pod>, flags: &[String], balancer: &Balancer) -> anyhow::Result<Rolled> {
    sleep(LEAD).await;
    let (begun_ms, count) = (unix_ms(), pods.len());
    let (mut old, mut new): (_, Vec<Pod>) = (pods.into_iter(), Vec::new());
    let mut longest_drain = Duration::ZERO;
    while let Some(goes) = old.next() {
        let urls = |new: &[Pod]| old.as_slice().iter().chain(new).map(|pod| pod.grpc_url.clone()).collect::<Vec<_>>();
        balancer.point_to(urls(&new).iter().map(String::as_str));
        let since = Instant::now();
        goes.signal(Signal::TERM).await?;
        longest_drain = longest_drain.max(since.elapsed());
        new.push(Pod::start(flags, count + new.len(), DRAIN_MAX, None).await?);
        balancer.point_to(urls(&new).iter().map(String::as_str));
        sleep(PAUSE).await;
    }
    Ok(Rolled { pods: new, span_ms: (begun_ms, unix_ms()), longest_drain })
}

/// How many versions of a script Redis has.
async fn script_versions(redis: &Redis) -> anyhow::Result<usize> {
    let args = ["LIST", "LIBRARYNAME", "job_router_take_*"].map(Into::into);
    let versions = redis.command_at("bench", "FUNCTION", args).await?.into_array();
    Ok(versions.context("FUNCTION LIST is of another version")?.len())
}
