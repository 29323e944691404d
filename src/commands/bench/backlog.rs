//! Whether a take costs more when more jobs wait.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use job_router::contract::{Entry, Limits, Message};
use job_router::job::{JobId, LeaseId, Name, PendingJob, RunnerId};
use job_router::redis::{Offer, Partition, Redis, Report, scripts};
use job_router::runner::{Lane, Scope};
use serde::Serialize;

use super::{Common, scripts as script_calls};
use crate::commands::connection;
use crate::commands::rig::Rig;

/// Jobs of one fan-out call, and takes between two looks at a size.
const BATCH: u64 = 100;
/// Whose jobs they are: the same at every size, so that only the depth differs.
const TENANTS: u64 = 20;
const PROJECTS: u64 = 3;
/// Nothing here waits for a deadline.
const TIMEOUT: Duration = Duration::from_secs(600);

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
    size: u64,
    rig: Rig,
    partition: Partition,
    pod: Name,
    lane: Lane,
    /// A job to make others from.
    model: PendingJob,
    next_id: u64,
    memory_per_job: f64,
    rounds_us: Vec<f64>,
}

/// Measures.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let mut depths = Vec::new();
    for size in &args.sizes {
        let rig = Rig::start(args.common.redis_url.as_deref(), false).await?;
        let mut depth = Depth::new(rig, *size).await?;
        depth.fill(&args.common.bar(*size, "queueing")).await?;
        depths.push(depth);
    }
    let bar = args.common.bar(args.rounds * args.takes * depths.len() as u64, "takes");
    for _ in 0..args.rounds {
        let mut totals = vec![(0, Duration::ZERO); depths.len()];
        while totals.iter().any(|(takes, _)| *takes < args.takes) {
            for (depth, total) in depths.iter_mut().zip(&mut totals) {
                total.1 += depth.takes(args.slots).await?;
                total.0 += BATCH;
                bar.inc(BATCH);
            }
        }
        for (depth, (takes, cost)) in depths.iter_mut().zip(totals) {
            depth.rounds_us.push(cost.as_secs_f64() * 1e6 / takes as f64);
        }
    }
    bar.finish_and_clear();
    let (mut take_us, mut spread, mut memory) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for depth in &mut depths {
        depth.rounds_us.sort_by(f64::total_cmp);
        let rounds = &depth.rounds_us;
        take_us.insert(depth.size, rounded(rounds[rounds.len() / 2]));
        spread.insert(depth.size, [rounded(rounds[0]), rounded(rounds[rounds.len() - 1])]);
        memory.insert(depth.size, depth.memory_per_job.round());
    }
    for depth in depths {
        depth.rig.end().await?;
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

fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

// === impl Depth ===

impl Depth {
    async fn new(rig: Rig, size: u64) -> anyhow::Result<Self> {
        let prefix = connection::keys(&rig.config).partition(0);
        let partition = Partition::new(rig.redis.clone(), &prefix);
        let pod = Name::new("bench").expect("letters");
        rig.redis.load(&scripts::ALL, &prefix).await?;
        partition.scope(Scope::Instance, true).await?;
        let line = r#"{"type":"job.pending","data":{"id":1,"project_id":1,"namespace_ids":[1],"tags":["bench"],"payload":{"n":1}}}"#;
        let entry = Entry::from_line(line).expect("a line in the shape that from_line documents");
        let Ok(Message::JobPending(model)) = entry.check(&Limits::default()) else { unreachable!("it is a sound job") };
        let lane = Lane { scope: Scope::Instance, fingerprint: model.capability.fingerprint() };
        let (next_id, memory_per_job, rounds_us) = (1, 0.0, Vec::new());
        Ok(Self { size, rig, partition, pod, lane, model: *model, next_id, memory_per_job, rounds_us })
    }

    async fn fill(&mut self, bar: &ProgressBar) -> anyhow::Result<()> {
        let before = used_memory(&self.rig.redis).await?;
        while self.next_id <= self.size {
            self.queue(BATCH.min(self.size + 1 - self.next_id)).await?;
            bar.set_position(self.next_id);
            // Events are not what is measured; a million would cost more memory than the jobs.
            if self.next_id % 10_000 < BATCH {
                self.rig.redis.command("DEL", [self.rig.events().into()]).await?;
            }
        }
        self.rig.redis.command("DEL", [self.rig.events().into()]).await?;
        self.memory_per_job = (used_memory(&self.rig.redis).await? - before) as f64 / self.size as f64;
        bar.finish_and_clear();
        Ok(())
    }

    async fn queue(&mut self, count: u64) -> anyhow::Result<()> {
        let jobs: Vec<(String, PendingJob)> = (self.next_id..self.next_id + count)
            .map(|id| {
                let mut job = self.model.clone();
                let tenant = id % TENANTS + 1;
                job.id = JobId(id);
                job.tenant = job_router::job::Tenant::of_namespace(tenant);
                job.project.id = job_router::job::ProjectId(tenant * 10_000 + id / TENANTS % PROJECTS);
                job.project.namespace_ids = vec![tenant];
                (format!("{}-0", 1_700_000_000_000 + id), job)
            })
            .collect();
        self.next_id += count;
        self.partition.fan_out(&self.pod, &jobs, TIMEOUT, &[]).await?;
        Ok(())
    }

    /// Takes a batch of jobs, so many at a time, then ends them and queues as many. Answers what the takes cost Redis.
    async fn takes(&mut self, slots: u64) -> anyhow::Result<Duration> {
        let before = script_calls(&self.rig.redis).await?;
        let mut leases = Vec::new();
        while (leases.len() as u64) < BATCH {
            let free = slots.min(BATCH - leases.len() as u64);
            let offer = |_| Offer { lease_id: LeaseId::random(0), runner_id: RunnerId(1), system_id: self.pod.clone() };
            let offers: Vec<Offer> = (0..free).map(offer).collect();
            let (taken, _) = self.partition.take(&self.pod, TIMEOUT, 0, &[self.lane], &offers).await?;
            ensure!(taken.len() as u64 == free, "a take found too little among {} jobs", self.size);
            leases.extend(taken.into_iter().map(|job| job.lease));
        }
        let cost = script_calls(&self.rig.redis).await?.time - before.time;

        let started: Vec<_> = leases.iter().map(|lease| (lease.job_id, Some(lease.lease_id))).collect();
        self.partition.start(TIMEOUT, &started).await?;
        let reports: Vec<_> = started
            .into_iter()
            .map(|(job_id, lease_id)| Report {
                job_id,
                lease_id,
                status: "success",
                exit_code: 0,
                failure_reason: String::new(),
            })
            .collect();
        self.partition.finish(Duration::from_millis(1), &reports).await?;
        self.queue(BATCH).await?;
        self.rig.redis.command("DEL", [self.rig.events().into()]).await?;
        Ok(cost)
    }
}

async fn used_memory(redis: &Redis) -> anyhow::Result<i64> {
    let info = redis.command_at("bench", "INFO", ["memory".into()]).await?;
    let used = info.as_str()?.lines().find_map(|line| line.strip_prefix("used_memory:"));
    used.and_then(|used| used.trim().parse().ok()).context("INFO memory is of another version")
}
