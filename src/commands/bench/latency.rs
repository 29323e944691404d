//! How long from the `XADD` until a runner has the job, with runners idle; and the floor below it.

use std::time::Duration;

use anyhow::ensure;
use serde::Serialize;

use super::Common;
use super::fleet::{Door, Fleet, Jobs, Size};
use super::load::REPORT;
use super::records::{self, Percentiles, percentiles};
use crate::commands::rig::{Child, Rig};

/// Where the floor's raw entries go.
const HOP_STREAM: &str = "bench-hop";

/// How soon a runner has a job, at a low rate
///
/// From just before the XADD is sent until the runner's library shows the job to its executor, on one clock. In turns with
/// the jobs, raw entries hop from the same publisher through the same Redis to a blocked XREADGROUP in another process:
/// the floor, measured at the same rate in the same run. Arrivals are at random (Poisson).
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  job-router bench latency --rate 100 --jobs 3000")]
pub(super) struct Args {
    /// Jobs a second
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Jobs to measure
    #[arg(long, default_value_t = 2_000)]
    jobs: u64,
    /// Jobs before these that are not measured: caches and connections warm up
    #[arg(long, default_value_t = 200)]
    warm_up: u64,
    /// Bytes of each payload
    #[arg(long, default_value_t = 1_024)]
    payload_bytes: usize,
    /// Pods
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    pods: u16,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Measured {
    bench: &'static str,
    rate_per_s: f64,
    jobs: u64,
    publish_to_runner_ms: Percentiles,
    floor_ms: Percentiles,
    ratio_p50: f64,
    lost: u64,
    doubled: u64,
    requeued: u64,
    pods: u16,
    payload_bytes: usize,
}

/// Measures.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    args.common.say("starting redis, pods and runners");
    let rig = Rig::start(args.common.redis_url.as_deref(), false).await?;
    let mut fleet = Fleet::start(
        rig,
        Size {
            pods: args.pods.into(),
            runners: 2,
            managers: 1,
            slots: 50,
            job_time: Duration::ZERO,
            door: Door::Native,
        },
    )
    .await?;
    let hop_stream = format!("{}:{HOP_STREAM}", fleet.rig.config.key_prefix);
    let hop_records = fleet.rig.scratch.path().join("hop");
    let mut hop_args = vec!["bench-load".to_owned(), "hop".to_owned(), format!("--stream={hop_stream}")];
    hop_args.push(format!("--records={}", hop_records.display()));
    hop_args.extend(fleet.rig.args.flags());
    let mut hop = Child::spawn("hop", &hop_args, false)?;
    ensure!(hop.line().await? == "ready", "the hop reader is out of step");

    let jobs = Jobs {
        first_id: 1,
        count: args.warm_up + args.jobs,
        rate: args.rate,
        first_tenant: 1,
        tenants: 20,
        in_blocks: false,
        projects: 3,
        payload_bytes: args.payload_bytes,
        hop_stream: Some(hop_stream),
    };
    let bar = args.common.bar(jobs.count, "jobs");
    let published = fleet.run(&jobs, &bar).await?;
    let audit = fleet.audit(std::slice::from_ref(&published)).await?;
    bar.finish_and_clear();
    hop.tell(REPORT).await?;
    ensure!(hop.line().await? == "reported", "the hop reader is out of step");
    let hops = records::read(&hop_records)?;
    hop.end().await?;
    fleet.end().await?;

    let measured = |records: Vec<(u64, u64)>, first: u64| {
        percentiles(records.into_iter().filter(move |(id, _)| *id >= first).map(|(_, ns)| ns))
    };
    let (lost, doubled, requeued, checked) = (audit.lost, audit.doubled, audit.requeued, audit.check());
    let publish_to_runner_ms = measured(audit.received, 1 + args.warm_up);
    let floor_ms = measured(hops, args.warm_up); // numbered from 0
    args.common.print(&Measured {
        bench: "latency",
        rate_per_s: args.rate,
        jobs: args.jobs,
        publish_to_runner_ms,
        floor_ms,
        ratio_p50: publish_to_runner_ms.p50 / floor_ms.p50,
        lost,
        doubled,
        requeued,
        pods: args.pods,
        payload_bytes: args.payload_bytes,
    })?;
    checked
}
