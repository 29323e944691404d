//! How soon a GitLab Runner's held call is answered, and how few calls an idle one makes.

use std::time::Duration;

use anyhow::ensure;
use serde::Serialize;

use super::Common;
use super::fleet::{Door, Fleet, Jobs, Size};
use super::records::{Percentiles, percentiles};
use crate::commands::rig::Rig;

/// How often a runner that polls asks, for each job that it could take.
const POLL_EVERY: Duration = Duration::from_secs(3);

/// How soon GitLab Runners have their jobs, and what they ask when there are none
///
/// Processes that ask as unmodified GitLab Runners do, each a runner with many managers on one connection. First all are idle: their
/// calls are counted, against a poll every 3 s for each slot. Then jobs come at a low rate: from just before the XADD is sent until
/// the call is answered, on one clock. Rails is told of each job as such runners tell it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  job-router bench gitlab --managers 100 --idle-s 0")]
pub(super) struct Args {
    /// Runners, each a process with one token and one connection
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    runners: u16,
    /// Managers of each runner
    #[arg(long, default_value_t = 100)]
    managers: usize,
    /// Calls that a manager holds at a time
    #[arg(long, default_value_t = 2)]
    calls: u32,
    /// Jobs a second
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Jobs to measure
    #[arg(long, default_value_t = 3_000)]
    jobs: u64,
    /// How long to count the calls of idle runners, in seconds; 0: not at all
    #[arg(long, default_value_t = 120)]
    idle_s: u64,
    /// How long a job lasts, in milliseconds
    #[arg(long, default_value_t = 100)]
    job_ms: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Measured {
    bench: &'static str,
    managers: usize,
    calls_each: u32,
    idle_calls: u64,
    idle_polls: f64,
    idle_ratio: f64,
    rate_per_s: f64,
    jobs: u64,
    publish_to_response_ms: Percentiles,
    failed_calls: u64,
    lost: u64,
    doubled: u64,
    requeued: u64,
}

/// Measures.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    args.common.say("starting redis, a pod and runners");
    let rig = Rig::start(args.common.redis_url.as_deref(), false).await?;
    let size = Size {
        pods: 1,
        runners: args.runners.into(),
        managers: args.managers,
        slots: args.calls,
        job_time: Duration::from_millis(args.job_ms),
        door: Door::GitLab,
    };
    let mut fleet = Fleet::start(rig, size).await?;
    let before = fleet.calls().await?;
    if args.idle_s > 0 {
        args.common.say(&format!("counting the calls of idle runners for {} s", args.idle_s));
        tokio::time::sleep(Duration::from_secs(args.idle_s)).await;
    }
    let idle_calls = fleet.calls().await?.0 - before.0;
    let managers = args.managers * usize::from(args.runners);
    let slots = managers as f64 * f64::from(args.calls);
    let idle_polls = slots * args.idle_s as f64 / POLL_EVERY.as_secs_f64();

    let jobs = Jobs {
        first_id: 1,
        count: args.jobs,
        rate: args.rate,
        first_tenant: 1,
        tenants: 20,
        in_blocks: false,
        projects: 3,
        payload_bytes: 1_024,
        hop_stream: None,
    };
    let bar = args.common.bar(jobs.count, "jobs");
    let published = fleet.run(&jobs, &bar).await?;
    let audit = fleet.audit(std::slice::from_ref(&published)).await?;
    bar.finish_and_clear();
    let failed_calls = fleet.calls().await?.1;
    fleet.end().await?;
    let (lost, doubled, requeued, checked) = (audit.lost, audit.doubled, audit.requeued, audit.check());
    args.common.print(&Measured {
        bench: "gitlab",
        managers,
        calls_each: args.calls,
        idle_calls,
        idle_polls,
        idle_ratio: idle_calls as f64 / idle_polls,
        rate_per_s: args.rate,
        jobs: args.jobs,
        publish_to_response_ms: percentiles(audit.received.into_iter().map(|(_, ns)| ns)),
        failed_calls,
        lost,
        doubled,
        requeued,
    })?;
    ensure!(failed_calls == 0, "{failed_calls} calls failed: a runner would have taken them for more than they are");
    checked
}
