//! Whether a take costs more among more tenants, or among more lanes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Instant;

use job_router::runner::{RunnerClass, Scope};
use job_router::tags::TagSet;
use serde::Serialize;

use super::Common;
use super::takes::{Asking, BATCH, Cost, Rounds, Shape, World, rounded};
use crate::commands::rig::Rig;

/// Tenants of each lane, where it is lanes that differ.
const TENANTS: u64 = 10;
/// The most lanes that a pod asks in one take: `LANES_MAX` of stage `take`.
const ASKED_MAX: usize = 8;
/// How often to match all lanes, of which the median counts.
const MATCHES: usize = 101;

/// What a take costs Redis with few and many tenants, and with few and many lanes
///
/// Each side has a Redis of its own with as many jobs. Sides take turns, 100 jobs each, one a take, and the jobs taken are
/// ended and replaced in between. The cost is what Redis itself counts for the scripts (INFO commandstats) for each job
/// taken, the median of the rounds' means. Sides: --tenants in one lane (tenants_ratio: most to fewest); --lanes where
/// each take asks one lane, the next take the next one (lanes_ratio); the same lanes where a take asks 8 of them at
/// once, or all if there are fewer, as a pod does for a runner that could run any job (asked_ratio). calls are
/// those of the script for each job, more than 1 where some were spent on mending a lane's order; life_us adds starting,
/// ending and queueing. match_us is a pod's own time to match one class of runners against all lanes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  job-router bench lanes --tenants 10,100000 --jobs 200000 --json | jq .tenants_ratio"
)]
pub(super) struct Args {
    /// Tenants, in one lane
    #[arg(long, value_delimiter = ',', default_values_t = [10, 10_000], value_parser = clap::value_parser!(u64).range(1..))]
    tenants: Vec<u64>,
    /// Lanes, of ten tenants each
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1_000], value_parser = clap::value_parser!(u64).range(1..=100_000))]
    lanes: Vec<u64>,
    /// Jobs queued, on each side; at least two for each tenant, or for each lane and tenant, keep buckets from running empty
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(200..))]
    jobs: u64,
    /// Takes in a round, on each side
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(100..))]
    takes: u64,
    /// Rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Measured {
    bench: &'static str,
    tenants_ratio: f64,
    lanes_ratio: f64,
    asked_ratio: f64,
    /// By tenants; of a take that asks the only lane.
    tenants: Costs,
    /// By lanes; of a take that asks one.
    lanes: Costs,
    /// By lanes; of a take that asks up to `asked_max`.
    asked: Costs,
    asked_max: usize,
    /// By lanes; µs of a pod to match one class against them.
    match_us: BTreeMap<u64, f64>,
    jobs: u64,
    takes: u64,
    rounds: u64,
}

/// µs for each job, by how many tenants or lanes there are.
#[derive(Debug, Default, Serialize)]
struct Costs {
    take_us: BTreeMap<u64, f64>,
    take_us_spread: BTreeMap<u64, [f64; 2]>,
    life_us: BTreeMap<u64, f64>,
    /// Calls of `take` for each job: more than 1 where calls were spent on mending the order of a lane.
    calls: BTreeMap<u64, f64>,
}

/// Takes of one kind against one of the worlds.
struct Side {
    world: usize,
    what: What,
    count: u64,
    takes: Rounds,
    lives: Rounds,
    total: Cost,
}

/// What differs between a side and those it is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Tenants,
    Lanes,
    Asked,
}

/// Measures.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let (mut worlds, mut sides) = (Vec::new(), Vec::new());
    let jobs = args.jobs;
    let few_lanes = args.tenants.iter().map(|count| {
        let shape = Shape { jobs, tenants: *count, projects: 1, lanes: 1 };
        (shape, *count, vec![What::Tenants])
    });
    let many_lanes = args.lanes.iter().map(|count| {
        let shape = Shape { jobs, tenants: TENANTS, projects: 1, lanes: *count };
        (shape, *count, vec![What::Lanes, What::Asked])
    });
    for (shape, count, kinds) in few_lanes.chain(many_lanes) {
        let rig = Rig::start(args.common.redis_url.as_deref(), false).await?;
        let mut world = World::new(rig, shape).await?;
        world.fill(&args.common.bar(jobs, "queueing")).await?;
        sides.extend(kinds.into_iter().map(|what| Side::new(worlds.len(), what, count)));
        worlds.push(world);
    }
    let bar = args.common.bar(args.rounds * args.takes * sides.len() as u64, "takes");
    for _ in 0..args.rounds {
        let mut totals = vec![Cost::default(); sides.len()];
        while totals.iter().any(|total| total.jobs < args.takes) {
            for (side, total) in sides.iter().zip(&mut totals) {
                total.add(worlds[side.world].turn(side.what.asking()).await?);
                bar.inc(BATCH);
            }
        }
        for (side, total) in sides.iter_mut().zip(totals) {
            side.takes.push(total.take_us());
            side.lives.push(total.life_us());
            side.total.add(total);
        }
    }
    bar.finish_and_clear();
    let match_us =
        worlds.iter().filter(|world| world.shape.lanes > 1).map(|world| (world.shape.lanes, match_us(world)));
    let match_us = match_us.collect();
    for world in worlds {
        world.rig.end().await?;
    }
    let [tenants, lanes, asked] = [What::Tenants, What::Lanes, What::Asked].map(|what| Costs::of(what, &sides));
    let measured = Measured {
        bench: "lanes",
        tenants_ratio: tenants.ratio(),
        lanes_ratio: lanes.ratio(),
        asked_ratio: asked.ratio(),
        tenants,
        lanes,
        asked,
        asked_max: ASKED_MAX,
        match_us,
        jobs,
        takes: args.takes,
        rounds: args.rounds,
    };
    args.common.say(measured.table().trim_end());
    args.common.print(&measured)
}

/// µs to match one class, which has all tags, against all lanes: what a pod does when it reads the lanes anew.
fn match_us(world: &World) -> f64 {
    let tags = world.lanes.iter().take(25).flat_map(|(_, capability)| capability.tags.iter().map(str::to_owned));
    let class = RunnerClass {
        scopes: [Scope::Instance].into(),
        tags: TagSet::new(tags).expect("at most 26 different tags"),
        features: TagSet::default(),
        run_untagged: true,
        protected_only: false,
        priority: 0,
    };
    let mut times: Vec<f64> = (0..MATCHES)
        .map(|_| {
            let begun = Instant::now();
            let matched = world.lanes.iter().filter(|(lane, capability)| class.matches(lane.scope, capability)).count();
            assert!(std::hint::black_box(matched) > 0, "it has the tags of the first lanes");
            begun.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    rounded(times[MATCHES / 2])
}

// === impl Measured ===

impl Measured {
    /// For people.
    fn table(&self) -> String {
        let mut table = format!(
            "{:<28} {:>8} {:>10} {:>17} {:>6} {:>10} {:>7}\n",
            "a take of one job", "", "take µs", "least..greatest", "calls", "life µs", "ratio"
        );
        let asked = format!("lanes, asks up to {ASKED_MAX}");
        let rows = [
            ("tenants in one lane", &self.tenants, self.tenants_ratio),
            ("lanes, asks one", &self.lanes, self.lanes_ratio),
            (&asked, &self.asked, self.asked_ratio),
        ];
        for (what, costs, ratio) in rows {
            for (count, us) in &costs.take_us {
                let [least, greatest] = costs.take_us_spread[count];
                let spread = format!("{least:.1}..{greatest:.1}");
                let is_last = costs.take_us.keys().next_back() == Some(count);
                let ratio = if is_last { format!("{ratio:.2}") } else { String::new() };
                let (life, calls) = (costs.life_us[count], costs.calls[count]);
                let _ = writeln!(
                    table,
                    "{what:<28} {count:>8} {us:>10.1} {spread:>17} {calls:>6.2} {life:>10.1} {ratio:>7}"
                );
            }
        }
        for (count, us) in &self.match_us {
            let _ = writeln!(table, "{:<28} {count:>8} {us:>10.1}", "matching a class, by the pod");
        }
        table
    }
}

// === impl Costs ===

impl Costs {
    fn of(what: What, sides: &[Side]) -> Self {
        let mut costs = Self::default();
        for side in sides.iter().filter(|side| side.what == what) {
            costs.take_us.insert(side.count, side.takes.median());
            costs.take_us_spread.insert(side.count, side.takes.spread());
            costs.life_us.insert(side.count, side.lives.median());
            costs.calls.insert(side.count, rounded(side.total.calls as f64 / side.total.jobs as f64));
        }
        costs
    }

    /// The cost of a take among the most to that among the fewest.
    fn ratio(&self) -> f64 {
        let ends = self.take_us.last_key_value().zip(self.take_us.first_key_value());
        ends.map_or(1.0, |((_, most), (_, fewest))| rounded(most / fewest))
    }
}

// === impl Side ===

impl Side {
    fn new(world: usize, what: What, count: u64) -> Self {
        Self { world, what, count, takes: Rounds::default(), lives: Rounds::default(), total: Cost::default() }
    }
}

// === impl What ===

impl What {
    fn asking(self) -> Asking {
        let lanes = if self == Self::Asked { ASKED_MAX } else { 1 };
        Asking { lanes, slots: 1 }
    }
}
