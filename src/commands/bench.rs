//! `job-router bench`: measures this build on this machine, each time from nothing.
//!
//! Each benchmark starts its own Redis, pods and load as processes, checks that no job was lost or run twice, and prints
//! one line of JSON last. Progress goes to stderr.

use std::future::Future;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use job_router::redis::Redis;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::output;

mod backlog;
mod fairness;
mod fleet;
mod gitlab;
mod hold;
mod lanes;
mod latency;
pub(super) mod load;
mod reconnect;
mod records;
mod roll;
mod takes;
mod throughput;

pub(super) use records::{Percentiles, percentiles};

/// Measure this build on this machine
///
/// Each benchmark starts a private Redis (needs redis-server), pods, runners and a publisher, all as processes on this
/// machine, and prints one line of JSON last. A job lost or run twice is an error. Build with --release first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  job-router bench latency\n  job-router bench throughput --json | jq .jobs_per_s")]
pub(super) struct Args {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, clap::Subcommand)]
enum BenchCommand {
    Latency(latency::Args),
    Throughput(throughput::Args),
    Backlog(backlog::Args),
    Lanes(lanes::Args),
    Fairness(fairness::Args),
    Roll(roll::Args),
    Reconnect(reconnect::Args),
    Gitlab(gitlab::Args),
}

/// What all benchmarks understand.
#[derive(Debug, Clone, clap::Args)]
struct Common {
    /// Use this Redis, under keys of its own that are removed afterwards, and no private one
    #[arg(long = "redis", value_name = "URL")]
    redis_url: Option<String>,
    /// Print nothing but the line of JSON
    #[arg(long)]
    json: bool,
}

/// Runs one benchmark.
pub(super) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    match args.command {
        BenchCommand::Latency(args) => until(stop, Box::pin(latency::run(args))).await,
        BenchCommand::Throughput(args) => until(stop, Box::pin(throughput::run(args))).await,
        BenchCommand::Backlog(args) => until(stop, Box::pin(backlog::run(args))).await,
        BenchCommand::Lanes(args) => until(stop, Box::pin(lanes::run(args))).await,
        BenchCommand::Fairness(args) => until(stop, Box::pin(fairness::run(args))).await,
        BenchCommand::Roll(args) => until(stop, Box::pin(roll::run(args))).await,
        BenchCommand::Reconnect(args) => until(stop, Box::pin(reconnect::run(args))).await,
        BenchCommand::Gitlab(args) => until(stop, Box::pin(gitlab::run(args))).await,
    }
}

/// Runs `work` until `stop`: dropping it ends all its processes.
pub(super) async fn until(
    stop: CancellationToken,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    tokio::select! {
        done = work => done,
        () = stop.cancelled() => anyhow::bail!("interrupted"),
    }
}

// === impl Common ===

impl Common {
    /// A progress bar on stderr; none with `--json`, nor where stderr is no terminal.
    fn bar(&self, len: u64, what: &'static str) -> ProgressBar {
        if self.json { ProgressBar::hidden() } else { bar(len, what) }
    }

    /// Says something on stderr, for people.
    fn say(&self, text: &str) {
        if !self.json {
            eprintln!("{text}");
        }
    }

    /// The last line.
    fn print(&self, result: &impl Serialize) -> anyhow::Result<()> {
        output::line(&serde_json::to_string(result)?)
    }
}

/// A progress bar on stderr, where that is a terminal.
pub(super) fn bar(len: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:12} {bar:30} {pos}/{len} {elapsed}").expect("a sound template");
    let bar = ProgressBar::new(len).with_style(style).with_message(what);
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// What Redis has spent in scripts.
struct Scripts {
    calls: u64,
    time: Duration,
}

async fn scripts(redis: &Redis) -> anyhow::Result<Scripts> {
    let info = redis.command_at("bench", "INFO", ["commandstats".into()]).await?;
    let line = info.as_str()?.lines().find_map(|line| line.strip_prefix("cmdstat_fcall:"));
    let number =
        |name: &str| -> Option<u64> { line?.split(',').find_map(|part| part.strip_prefix(name))?.parse().ok() };
    let (calls, us) = number("calls=").zip(number("usec=")).context("INFO commandstats is of another version")?;
    Ok(Scripts { calls, time: Duration::from_micros(us) })
}
