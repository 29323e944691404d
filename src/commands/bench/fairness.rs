//! What a flood of one tenant's jobs does to others, and how slots are shared.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::ensure;
use job_router::contract::Entry;
use serde::Serialize;
use serde_json::json;

use super::Common;
use super::fleet::{Audit, Door, Fleet, Jobs, Size};
use super::records::{Percentiles, percentiles};
use super::takes::rounded;
use crate::commands::rig::Rig;
use crate::commands::runner_add;

/// Runner processes, which share the slots.
const RUNNERS: u32 = 2;
/// Bytes of each payload.
const PAYLOAD_BYTES: usize = 256;
/// The quiet tenant stops before the flood is worked off, even at the ideal speed: this part of that time.
const QUIET_PART: f64 = 0.9;
/// Projects of each tenant, where slots are shared.
const SHARE_PROJECTS: u64 = 3;

/// What a flood does to a quiet tenant, and how slots are shared
///
/// Real pods, runners and Redis; jobs last --job-ms. Flood: one tenant publishes --flood jobs as fast as they go, over 1,
/// 20 and 1,000 projects in turn; from the same moment another publishes single jobs at random times (Poisson). quiet_wait_ms
/// is that tenant's wait, from its XADD until a runner has the job, of those published while flood jobs waited;
/// queueing_ms those of them from the time in which flood jobs were on their way to the queue, queued_ms those from when all
/// were there.
/// drain_ratio_to_ideal is the time from the first XADD to the last end over jobs * time / slots: 1 if no slot is ever
/// free. Shares: tenants publish as many jobs each, one tenant after the other; counted are the jobs taken while all
/// tenants have some waiting. jain_equal is Jain's index of these counts, (sum)^2 / (n * sum of squares), for tenants of
/// equal weight: 1 if all have as many; in_turns is the same with jobs published in turns, where first come, first served
/// would be fair too. weighted_share_error is the greatest difference between a tenant's part of the
/// jobs and its part of the weights.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  job-router bench fairness --json | jq .quiet_p99_ms\n  job-router bench fairness --flood 20000 --projects 1000 --quiet-rate 40"
)]
pub(super) struct Args {
    /// Jobs of a flood
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    flood: u64,
    /// Projects of the tenant that floods
    #[arg(long, value_delimiter = ',', default_values_t = [1, 20, 1_000], value_parser = clap::value_parser!(u64).range(1..=10_000))]
    projects: Vec<u64>,
    /// Jobs of the quiet tenant a second
    #[arg(long, default_value_t = 20.0)]
    quiet_rate: f64,
    /// Slots of each of two runners
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    slots: u32,
    /// How long a job lasts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    job_ms: u64,
    /// Tenants of equal weight
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u64).range(2..=1_000))]
    tenants: u64,
    /// Weights of the tenants that differ
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 1, 2, 4, 1, 2, 4], value_parser = clap::value_parser!(u64).range(1..=1_000))]
    weights: Vec<u64>,
    /// Jobs of each tenant, where slots are shared
    #[arg(long, default_value_t = 1_500, value_parser = clap::value_parser!(u64).range(100..))]
    share_jobs: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Measured {
    bench: &'static str,
    /// By projects of the tenant that floods.
    quiet_p99_ms: BTreeMap<u64, f64>,
    /// The same, only of jobs published when the whole flood was in the queue.
    quiet_queued_p99_ms: BTreeMap<u64, f64>,
    /// The worst of all floods.
    drain_ratio_to_ideal: f64,
    jain_equal: f64,
    jain_in_turns: f64,
    weighted_share_error: f64,
    /// By projects of the tenant that floods.
    flood_projects: BTreeMap<u64, Flood>,
    equal: Shares,
    in_turns: Shares,
    weighted: Shares,
    lost: u64,
    doubled: u64,
    requeued: u64,
    flood: u64,
    quiet_rate_per_s: f64,
    slots: u32,
    job_ms: u64,
}

/// What one flood did.
#[derive(Debug, Serialize)]
struct Flood {
    quiet_wait_ms: Percentiles,
    quiet_samples: usize,
    /// Of those: published while flood jobs were on their way to the queue.
    queueing_ms: Percentiles,
    queueing_samples: usize,
    /// Of those: published when all flood jobs were queued.
    queued_ms: Percentiles,
    drain_ratio_to_ideal: f64,
}

/// Who got how much, by tenant.
#[derive(Debug, Serialize)]
struct Shares {
    weights: Vec<u64>,
    /// Jobs taken while all had some waiting.
    jobs: Vec<u64>,
    /// Of these jobs.
    parts: Vec<f64>,
    drain_ratio_to_ideal: f64,
}

/// Jobs that went wrong, over all runs.
#[derive(Debug, Default)]
struct Wrong {
    lost: u64,
    doubled: u64,
    requeued: u64,
}

/// Measures.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let mut wrong = Wrong::default();
    let mut floods = BTreeMap::new();
    for projects in &args.projects {
        args.common.say(&format!("a flood over {projects} projects"));
        floods.insert(*projects, Box::pin(flood(&args, *projects, &mut wrong)).await?);
    }
    let ones = vec![1; args.tenants as usize];
    args.common.say("shares of equal tenants");
    let equal = Box::pin(shares(&args, ones.clone(), true, &mut wrong)).await?;
    args.common.say("shares of equal tenants, published in turns");
    let in_turns = Box::pin(shares(&args, ones, false, &mut wrong)).await?;
    args.common.say("shares of tenants by weight");
    let weighted = Box::pin(shares(&args, args.weights.clone(), true, &mut wrong)).await?;
    let measured = Measured {
        bench: "fairness",
        quiet_p99_ms: floods.iter().map(|(projects, flood)| (*projects, flood.quiet_wait_ms.p99)).collect(),
        quiet_queued_p99_ms: floods.iter().map(|(projects, flood)| (*projects, flood.queued_ms.p99)).collect(),
        drain_ratio_to_ideal: floods.values().map(|flood| flood.drain_ratio_to_ideal).fold(0.0, f64::max),
        jain_equal: jain(&equal.jobs),
        jain_in_turns: jain(&in_turns.jobs),
        weighted_share_error: share_error(&weighted.jobs, &weighted.weights),
        flood_projects: floods,
        equal,
        in_turns,
        weighted,
        lost: wrong.lost,
        doubled: wrong.doubled,
        requeued: wrong.requeued,
        flood: args.flood,
        quiet_rate_per_s: args.quiet_rate,
        slots: args.slots * RUNNERS,
        job_ms: args.job_ms,
    };
    args.common.say(measured.table().trim_end());
    args.common.print(&measured)?;
    ensure!(wrong.lost == 0 && wrong.doubled == 0, "{} jobs were lost and {} run twice", wrong.lost, wrong.doubled);
    Ok(())
}

/// One tenant floods, another does not.
async fn flood(args: &Args, projects: u64, wrong: &mut Wrong) -> anyhow::Result<Flood> {
    let mut fleet = args.fleet().await?;
    let quiet = (args.quiet_rate * args.ideal(args.flood).as_secs_f64() * QUIET_PART).ceil().max(1.0) as u64;
    let flood = Jobs {
        first_id: 1,
        count: args.flood,
        rate: 0.0,
        first_tenant: 1,
        tenants: 1,
        in_blocks: false,
        projects,
        payload_bytes: PAYLOAD_BYTES,
        hop_stream: None,
    };
    let trickle = Jobs {
        first_id: args.flood + 1,
        count: quiet,
        rate: args.quiet_rate,
        first_tenant: 2,
        projects: 1,
        ..flood.clone()
    };
    let bar = args.common.bar(args.flood + quiet, "jobs");
    let published = fleet.run_lots(&[flood, trickle], &bar).await?;
    let audit = fleet.audit(&published).await?;
    bar.finish_and_clear();
    wrong.add(&audit);
    let waits = waits(args.flood, &fleet, &audit);
    fleet.end().await?;
    let of = |in_flood: Option<bool>| {
        percentiles(waits.iter().filter(|wait| in_flood.is_none_or(|is| wait.0 == is)).map(|wait| wait.1))
    };
    Ok(Flood {
        quiet_wait_ms: of(None),
        quiet_samples: waits.len(),
        queueing_ms: of(Some(true)),
        queueing_samples: waits.iter().filter(|wait| wait.0).count(),
        queued_ms: of(Some(false)),
        drain_ratio_to_ideal: args.drain_ratio(args.flood + quiet, &audit),
    })
}

/// The quiet tenant's waits in ns, of jobs that were published while flood jobs waited, and whether some of these were still
/// on their way to the queue then.
fn waits(flood: u64, fleet: &Fleet, audit: &Audit) -> Vec<(bool, u64)> {
    let last_taken_ms = (1..=flood).map(|id| fleet.life(id).assigned_at_ms).max().unwrap_or_default();
    let last_queued_ms = (1..=flood).map(|id| fleet.life(id).queued_at_ms).max().unwrap_or_default();
    let quiet = audit.received.iter().filter(|(id, _)| *id > flood);
    let waits = quiet.filter_map(|(id, ns)| {
        let published_ms = fleet.life(*id).assigned_at_ms.saturating_sub(ns / 1_000_000);
        (published_ms < last_taken_ms).then_some((published_ms < last_queued_ms, *ns))
    });
    waits.collect()
}

/// Tenants of these weights, all with jobs waiting.
async fn shares(args: &Args, weights: Vec<u64>, in_blocks: bool, wrong: &mut Wrong) -> anyhow::Result<Shares> {
    let mut fleet = args.fleet().await?;
    for (number, weight) in weights.iter().enumerate() {
        let data = json!({ "tenant": format!("ns:{}", number + 1), "weight": weight });
        let line = json!({ "type": "tenant.upserted", "data": data }).to_string();
        let entry = Entry::from_line(&line).expect("a line in the shape that from_line documents");
        runner_add::append(&fleet.rig.redis, &fleet.rig.config.inbox_stream, &entry).await?;
    }
    let tenants = weights.len() as u64;
    let jobs = Jobs {
        first_id: 1,
        count: tenants * args.share_jobs,
        rate: 0.0,
        first_tenant: 1,
        tenants,
        in_blocks,
        projects: SHARE_PROJECTS,
        payload_bytes: PAYLOAD_BYTES,
        hop_stream: None,
    };
    let bar = args.common.bar(jobs.count, "jobs");
    let published = fleet.run(&jobs, &bar).await?;
    let audit = fleet.audit(std::slice::from_ref(&published)).await?;
    bar.finish_and_clear();
    wrong.add(&audit);
    let mut lives = vec![Vec::new(); weights.len()];
    for id in 1..=jobs.count {
        // As the publisher deals them out.
        let tenant = if in_blocks { (id - 1) / args.share_jobs } else { id % tenants };
        let life = fleet.life(id);
        lives[tenant as usize].push((life.queued_at_ms, life.assigned_at_ms));
    }
    fleet.end().await?;
    let taken = taken_while_all_wait(&lives);
    let all: u64 = taken.iter().sum();
    ensure!(all > 0, "some tenant's jobs were gone before another's came: more --share-jobs are needed");
    Ok(Shares {
        weights,
        parts: taken.iter().map(|jobs| rounded(*jobs as f64 / all as f64)).collect(),
        jobs: taken,
        drain_ratio_to_ideal: args.drain_ratio(jobs.count, &audit),
    })
}

/// How many jobs of each tenant were taken from when the last tenant's first job was queued until the last job of some
/// tenant was taken. Per tenant and job, when it was queued and when it was taken.
fn taken_while_all_wait(lives: &[Vec<(u64, u64)>]) -> Vec<u64> {
    let all_wait = lives.iter().filter_map(|jobs| jobs.iter().map(|job| job.0).min()).max().unwrap_or_default();
    let one_is_done = lives.iter().filter_map(|jobs| jobs.iter().map(|job| job.1).max()).min().unwrap_or_default();
    let taken = |jobs: &Vec<(u64, u64)>| jobs.iter().filter(|job| job.1 > all_wait && job.1 <= one_is_done).count();
    lives.iter().map(|jobs| taken(jobs) as u64).collect()
}

/// Jain's index: 1 if all have as many, 1 / n if one has everything.
fn jain(jobs: &[u64]) -> f64 {
    let sum: f64 = jobs.iter().map(|jobs| *jobs as f64).sum();
    let squares: f64 = jobs.iter().map(|jobs| (*jobs as f64).powi(2)).sum();
    (sum * sum / (jobs.len() as f64 * squares) * 1e6).round() / 1e6
}

/// The greatest difference between a tenant's part of the jobs and its part of the weights.
fn share_error(jobs: &[u64], weights: &[u64]) -> f64 {
    let part = |of: u64, all: &[u64]| of as f64 / all.iter().sum::<u64>() as f64;
    let errors = jobs.iter().zip(weights).map(|(got, weight)| (part(*got, jobs) - part(*weight, weights)).abs());
    (errors.fold(0.0, f64::max) * 1e4).round() / 1e4
}

// === impl Args ===

impl Args {
    async fn fleet(&self) -> anyhow::Result<Fleet> {
        let rig = Rig::start(self.common.redis_url.as_deref(), false).await?;
        let job_time = Duration::from_millis(self.job_ms);
        Fleet::start(
            rig,
            Size { pods: 1, runners: RUNNERS as usize, managers: 1, slots: self.slots, job_time, door: Door::Native },
        )
        .await
    }

    /// How long so many jobs take if no slot is ever free.
    fn ideal(&self, jobs: u64) -> Duration {
        Duration::from_millis(self.job_ms).mul_f64(jobs as f64 / f64::from(self.slots * RUNNERS))
    }

    fn drain_ratio(&self, jobs: u64, audit: &Audit) -> f64 {
        rounded(audit.span.as_secs_f64() / self.ideal(jobs).as_secs_f64())
    }
}

// === impl Measured ===

impl Measured {
    /// For people.
    fn table(&self) -> String {
        let mut table = format!(
            "{:<16} {:>9} {:>9} {:>9} {:>8} {:>13} {:>11} {:>7}\n",
            "flood over", "quiet p50", "p99 ms", "max", "samples", "queueing p99", "queued p99", "drain"
        );
        for (projects, flood) in &self.flood_projects {
            let Percentiles { p50, p99, max } = flood.quiet_wait_ms;
            let (queueing, queued) = (flood.queueing_ms.p99, flood.queued_ms.p99);
            let (samples, drain) = (flood.quiet_samples, flood.drain_ratio_to_ideal);
            let what = format!("{projects} projects");
            let _ = writeln!(
                table,
                "{what:<16} {p50:>9.2} {p99:>9.2} {max:>9.2} {samples:>8} {queueing:>13.2} {queued:>11.2} {drain:>7.2}"
            );
        }
        for (what, shares) in [("equal", &self.equal), ("in turns", &self.in_turns), ("weighted", &self.weighted)] {
            let _ = writeln!(table, "{what:<9} weights {:?}", shares.weights);
            let _ = writeln!(table, "{:<9} parts   {:?}  drain {:.2}", "", shares.parts, shares.drain_ratio_to_ideal);
        }
        let (jain, error) = (self.jain_equal, self.weighted_share_error);
        let _ = writeln!(
            table,
            "Jain's index {jain:.6}, in turns {:.6}; greatest error of a weighted share {error:.4}",
            self.jain_in_turns
        );
        table
    }
}

// === impl Wrong ===

impl Wrong {
    fn add(&mut self, audit: &Audit) {
        self.lost += audit.lost;
        self.doubled += audit.doubled;
        self.requeued += audit.requeued;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jains_index_is_one_for_equal_shares_and_one_nth_for_a_single_owner() {
        assert!((jain(&[7, 7, 7]) - 1.0).abs() < 1e-9);
        assert!((jain(&[9, 0, 0]) - 0.333_333).abs() < 1e-9);
    }

    #[test]
    fn a_share_error_is_the_greatest_difference_of_parts() {
        assert!(share_error(&[10, 20, 40], &[1, 2, 4]).abs() < 1e-9);
        assert!((share_error(&[20, 40, 40], &[1, 1, 2]) - 0.15).abs() < 1e-9);
    }

    #[test]
    fn only_jobs_count_that_were_taken_while_all_tenants_had_some_waiting() {
        let first = vec![(0, 1), (0, 6), (0, 7), (0, 20)];
        let second = vec![(5, 6), (5, 8), (6, 9)];
        assert_eq!(taken_while_all_wait(&[first, second]), [2, 3]);
    }
}
