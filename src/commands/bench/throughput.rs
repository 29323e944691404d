//! How many whole lives a second one Redis and one pod carry, and what each costs them.

use std::time::Duration;

use anyhow::Context;
use job_router::redis::Redis;
use serde::Serialize;

use super::Common;
use super::fleet::{Door, Fleet, Jobs, Size};
use super::scripts;
use crate::commands::rig::{self, Rig};

/// How many jobs a second, from publish to finish, when there are always more
///
/// All jobs are published as fast as they go; runners end each at once. The rate is jobs over the time from the first
/// XADD to the last job's end on the event stream, by Redis' clock. CPU is that of the whole process over that time: of
/// redis-server with the XADDs, of all pods together.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  job-router bench throughput --jobs 60000 --runners 2 --slots 200")]
pub(super) struct Args {
    /// Jobs
    #[arg(long, default_value_t = 60_000)]
    jobs: u64,
    /// Tenants that take turns
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    tenants: u64,
    /// Projects of each tenant
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    projects: u64,
    /// Bytes of each payload
    #[arg(long, default_value_t = 1_024)]
    payload_bytes: usize,
    /// Pods
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    pods: u16,
    /// Runner processes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    runners: u16,
    /// Slots of each runner
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    slots: u32,
    /// Let the private Redis keep an append-only file
    #[arg(long)]
    append_only: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Measured {
    bench: &'static str,
    jobs: u64,
    jobs_per_s: f64,
    seconds: f64,
    publish_seconds: f64,
    redis_cpu_us_per_job: f64,
    /// Of that, in scripts, and how many calls of scripts it took.
    redis_script_us_per_job: f64,
    redis_script_calls_per_job: f64,
    pod_cpu_us_per_job: f64,
    lost: u64,
    doubled: u64,
    requeued: u64,
    tenants: u64,
    projects: u64,
    payload_bytes: usize,
    pods: u16,
    runners: u16,
    slots: u32,
    append_only: bool,
}

/// Measures.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    args.common.say("starting redis, pods and runners");
    let rig = Rig::start(args.common.redis_url.as_deref(), args.append_only).await?;
    let size = Size {
        pods: args.pods.into(),
        runners: args.runners.into(),
        managers: 1,
        slots: args.slots,
        job_time: Duration::ZERO,
        door: Door::Native,
    };
    let mut fleet = Fleet::start(rig, size).await?;
    let jobs = Jobs {
        first_id: 1,
        count: args.jobs,
        rate: 0.0,
        first_tenant: 1,
        tenants: args.tenants,
        in_blocks: false,
        projects: args.projects,
        payload_bytes: args.payload_bytes,
        hop_stream: None,
    };
    let before = (redis_cpu(&fleet.rig.redis).await?, pods_cpu(&fleet)?, scripts(&fleet.rig.redis).await?);
    let bar = args.common.bar(jobs.count, "jobs");
    let published = fleet.run(&jobs, &bar).await?;
    // Before the audit, which makes Redis work.
    let after = (redis_cpu(&fleet.rig.redis).await?, pods_cpu(&fleet)?, scripts(&fleet.rig.redis).await?);
    let audit = fleet.audit(std::slice::from_ref(&published)).await?;
    bar.finish_and_clear();
    fleet.end().await?;

    let us_per_job = |cpu: Duration| (cpu.as_secs_f64() * 1e7 / args.jobs as f64).round() / 10.0;
    args.common.print(&Measured {
        bench: "throughput",
        jobs: args.jobs,
        jobs_per_s: (args.jobs as f64 / audit.span.as_secs_f64()).round(),
        seconds: audit.span.as_secs_f64(),
        publish_seconds: published.seconds,
        redis_cpu_us_per_job: us_per_job(after.0 - before.0),
        redis_script_us_per_job: us_per_job(after.2.time - before.2.time),
        redis_script_calls_per_job: ((after.2.calls - before.2.calls) as f64 / args.jobs as f64 * 1e3).round() / 1e3,
        pod_cpu_us_per_job: us_per_job(after.1 - before.1),
        lost: audit.lost,
        doubled: audit.doubled,
        requeued: audit.requeued,
        tenants: args.tenants,
        projects: args.projects,
        payload_bytes: args.payload_bytes,
        pods: args.pods,
        runners: args.runners,
        slots: args.slots,
        append_only: args.append_only,
    })?;
    audit.check()
}

fn pods_cpu(fleet: &Fleet) -> anyhow::Result<Duration> {
    fleet.pods.iter().map(|pod| rig::cpu_time(pod.pid().context("a pod ended")?)).sum()
}

/// What `getrusage` says of redis-server, in µs and wherever it runs.
async fn redis_cpu(redis: &Redis) -> anyhow::Result<Duration> {
    let info = redis.command_at("bench", "INFO", ["cpu".into()]).await?;
    let info = info.as_str()?;
    let seconds = ["used_cpu_sys:", "used_cpu_user:"].map(|name| {
        let value = info.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|value| value.trim().parse::<f64>().ok()).context("INFO cpu is of another version")
    });
    let [system, user] = seconds;
    Ok(Duration::from_secs_f64(system? + user?))
}
