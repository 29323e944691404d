//! A pod is killed and all its runners come to another at once: how long until each of them has a job.

use std::time::Duration;

use anyhow::ensure;
use job_router::clock::unix_ms;
use rustix::process::Signal;
use serde::Serialize;

use super::Common;
use super::fleet::{Door, Fleet, Jobs, Size, until_connected};
use super::records::{Percentiles, percentiles};
use crate::commands::balancer::Balancer;
use crate::commands::rig::{Pod, Rig};

/// How soon all runners of a killed pod have work on another
///
/// Two pods behind a load balancer; all runners, each with a connection and one slot, are at the first. It is killed (SIGKILL), the
/// balancer leads to the other from then on, and as many jobs are published at once as there are runners. A job lasts so long that no
/// runner has a second one before each has had its first. Measured from the kill until a job is recorded as running.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  job-router bench reconnect --runners 1000")]
pub(super) struct Args {
    /// Managers of a runner, each with a connection of its own
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u16).range(1..=8000))]
    runners: u16,
    /// How long a job lasts
    #[arg(long, default_value_t = 12_000, value_parser = clap::value_parser!(u64).range(1000..=14_000))]
    job_ms: u64,
    /// Bytes of each payload
    #[arg(long, default_value_t = 1_024)]
    payload_bytes: usize,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Measured {
    bench: &'static str,
    runners: u16,
    /// Until the last session was open again.
    reconnected_s: f64,
    longest_without_session_ms: f64,
    kill_to_running_ms: Percentiles,
    lost: u64,
    doubled: u64,
    requeued: u64,
}

/// Measures.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    args.common.say("starting redis, pods and runners");
    let rig = Rig::start(args.common.redis_url.as_deref(), false).await?;
    let balancer = Balancer::start().await?;
    let (goes, stays) = (rig.pod(0).await?, rig.pod(1).await?);
    balancer.point_to([goes.grpc_url.as_str()]);
    let (managers, job_time) = (args.runners.into(), Duration::from_millis(args.job_ms));
    let size = Size { pods: 2, runners: 1, managers, slots: 1, job_time, door: Door::Native };
    let mut fleet = Fleet::connect(rig, Vec::new(), std::slice::from_ref(&balancer.url), size).await?;
    until_connected(std::slice::from_ref(&goes), managers).await?;

    let jobs = Jobs {
        first_id: 1,
        count: args.runners.into(),
        rate: 0.0,
        first_tenant: 1,
        tenants: 20,
        in_blocks: false,
        projects: 3,
        payload_bytes: args.payload_bytes,
        hop_stream: None,
    };
    let bar = args.common.bar(jobs.count, "jobs");
    let killed_ms = unix_ms();
    goes.signal(Signal::KILL).await?;
    balancer.point_to([stays.grpc_url.as_str()]);
    let (published, reconnected_ms) = tokio::try_join!(fleet.run(&jobs, &bar), reconnected(&stays, managers))?;
    bar.finish_and_clear();
    let audit = fleet.audit(std::slice::from_ref(&published)).await?;
    let longest_away = fleet.end_runners().await?;
    let after_ms: Vec<_> = (1..=jobs.count).map(|id| fleet.life(id).started_at_ms.saturating_sub(killed_ms)).collect();
    stays.end().await?;
    fleet.end().await?;
    args.common.print(&Measured {
        bench: "reconnect",
        runners: args.runners,
        reconnected_s: Duration::from_millis(reconnected_ms - killed_ms).as_secs_f64(),
        longest_without_session_ms: longest_away.as_secs_f64() * 1e3,
        kill_to_running_ms: percentiles(after_ms.iter().map(|ms| ms * 1_000_000)),
        lost: audit.lost,
        doubled: audit.doubled,
        requeued: audit.requeued,
    })?;
    audit.check()?;
    let (first, last) = (after_ms.iter().min(), after_ms.iter().max());
    let span = last.zip(first).map_or(0, |(last, first)| last - first);
    ensure!(span < args.job_ms, "it took longer than a job, so that a runner may have had two of them: raise --job-ms");
    Ok(())
}

/// When all are connected to this pod, in Unix ms.
async fn reconnected(pod: &Pod, managers: usize) -> anyhow::Result<u64> {
    until_connected(std::slice::from_ref(pod), managers).await?;
    Ok(unix_ms())
}
