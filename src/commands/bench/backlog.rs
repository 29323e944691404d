//! Whether a take costs more when more jobs wait.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Common;
use super::takes::{Asking, BATCH, Cost, Rounds, Shape, World, rounded};
use crate::commands::rig::Rig;

/// Whose jobs they are: the same at every size, so that only the depth differs.
const TENANTS: u64 = 20;
const PROJECTS: u64 = 3;

/// What a take costs Redis with few and with very many jobs queued
///
/// Each size has a Redis of its own. Sizes take turns, 100 jobs each, one a take unless --slots says more, and the jobs taken are ended and replaced in
/// between, so that what the machine does meanwhile meets all sizes alike. The cost is what Redis itself counts for the
/// scripts (INFO commandstats) for each job taken, the median of the rounds' means.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  job-router bench backlog --sizes 1000,100000")]
pub(super) struct Args {
    /// Jobs queued
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 100_000, 1_000_000], value_parser = clap::value_parser!(u64).range(100..))]
    sizes: Vec<u64>,
    /// Takes in a round, at each size
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(100..))]
    takes: u64,
    /// Jobs of one take: a pod takes as many as it has free slots
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    slots: u64,
    /// Rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Measured {
    bench: &'static str,
    take_us: BTreeMap<u64, f64>,
    take_us_spread: BTreeMap<u64, [f64; 2]>,
    ratio: f64,
    memory_bytes_per_job: BTreeMap<u64, f64>,
    takes: u64,
    slots: u64,
    rounds: u64,
}

/// One Redis with so many jobs queued.
struct Depth {
    world: World,
    memory_per_job: f64,
    rounds: Rounds,
}

/// Measures.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let mut depths = Vec::new();
    for jobs in &args.sizes {
        let rig = Rig::start(args.common.redis_url.as_deref(), false).await?;
        let shape = Shape { jobs: *jobs, tenants: TENANTS, projects: PROJECTS, lanes: 1 };
        let mut world = World::new(rig, shape).await?;
        let before = world.used_memory().await?;
        world.fill(&args.common.bar(*jobs, "queueing")).await?;
        let memory_per_job = (world.used_memory().await? - before) as f64 / *jobs as f64;
        depths.push(Depth { world, memory_per_job, rounds: Rounds::default() });
    }
    let asking = Asking { lanes: 1, slots: args.slots };
    let bar = args.common.bar(args.rounds * args.takes * depths.len() as u64, "takes");
    for _ in 0..args.rounds {
        let mut totals = vec![Cost::default(); depths.len()];
        while totals.iter().any(|total| total.jobs < args.takes) {
            for (depth, total) in depths.iter_mut().zip(&mut totals) {
                total.add(depth.world.turn(asking).await?);
                bar.inc(BATCH);
            }
        }
        for (depth, total) in depths.iter_mut().zip(totals) {
            depth.rounds.push(total.take_us());
        }
    }
    bar.finish_and_clear();
    let (mut take_us, mut spread, mut memory) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for depth in depths {
        let jobs = depth.world.shape.jobs;
        take_us.insert(jobs, depth.rounds.median());
        spread.insert(jobs, depth.rounds.spread());
        memory.insert(jobs, depth.memory_per_job.round());
        depth.world.rig.end().await?;
    }
    let ratio = take_us.last_key_value().zip(take_us.first_key_value()).map(|((_, most), (_, least))| most / least);
    args.common.print(&Measured {
        bench: "backlog",
        ratio: rounded(ratio.expect("there is a size")),
        take_us,
        take_us_spread: spread,
        memory_bytes_per_job: memory,
        takes: args.takes,
        slots: args.slots,
        rounds: args.rounds,
    })
}
