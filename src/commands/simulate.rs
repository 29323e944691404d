//! `job-router simulate`: what a day of jobs would have waited by each policy.
//!
//! Arrives: flags, or a recording. Leaves: a table or JSON on stdout, a plot in a file. The day and the policies are
//! `job_router::simulation`; here is only what goes in and comes out.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;
use indicatif::ProgressBar;
use job_router::job::{ProjectId, Tenant};
use job_router::simulation::{Day, Fair, Fifo, Flood, GitLab, Policy, PolicyName, Shape, Simulation, Take};
use tokio_util::sync::CancellationToken;

use super::{BadData, Usage, bench, output};

mod input;
mod plot;
mod report;

use report::Report;

/// Slots for a day that is drawn; of a recorded one nobody else knows.
const SLOTS: u32 = 400;
/// Steps between two looks at the clock and at Ctrl-C.
const STEPS: usize = 4_096;
/// Whoever waits longer than this wants to see that something moves.
const QUIET_FOR: Duration = Duration::from_secs(1);

/// See what a day of jobs would have waited by each policy
///
/// No Redis, no runners: a day of jobs goes through slots of instance runners that are all alike, once for each policy.
/// fifo takes the oldest job; gitlab the oldest of the project with the fewest jobs running, as GitLab does for instance
/// runners; job-router goes by tenant first, then by priority and project, by the same functions that the scripts in
/// Redis are held against.
///
/// Without FILE the day is drawn: most jobs at 14:00, many tenants of which few have most jobs, log-normal durations, and
/// one tenant more that floods. The same --seed gives the same day. With FILE it is a recording, one job a line:
/// {"tenant": "acme", "project_id": 7, "queued_at_ms": 1767225600000, "duration_ms": 90000, "priority": 0}; priority may
/// be absent, times are in ms of any clock, lines in any order. Bad lines are named on stderr, good ones go on, and the exit
/// code is 65.
///
/// The table has waits in seconds, from queued to taken: the busiest tenants, the one that floods, all others together
/// as `quiet`, and all. Jain's index tells how equal the shares are of tenants that wait for more: 1 is equal, 1/n one of n
/// has all. docs/simulate.md says how to read it, and what it leaves out.
#[derive(Debug, clap::Args)]
#[command(after_help = r#"Examples:
  job-router simulate
  job-router simulate --flood-projects 1000 --plot waits.svg
  job-router simulate --slots 200 --json yesterday.jsonl | jq '.groups[] | select(.name == "quiet").waits_ms'
  job-router simulate --slots 200 --weight acme=3 --tenant-cap umbrella=50 yesterday.jsonl"#)]
pub(super) struct Args {
    /// A recorded day, one job a line; `-` is standard input
    file: Option<PathBuf>,
    /// Jobs that run at once [default for a day that is drawn: 400; a recorded one needs it]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    slots: Option<u32>,
    /// Policies to run
    #[arg(long = "policy", value_name = "POLICY", value_delimiter = ',', default_values = ["fifo", "gitlab", "job-router"])]
    policies: Vec<PolicyArg>,
    #[command(flatten)]
    drawn: DrawnArgs,
    /// Weight of a tenant for job-router, from 1; may be given several times
    #[arg(long = "weight", value_name = "TENANT=N")]
    weights: Vec<Setting>,
    /// The most running jobs of a tenant for job-router; may be given several times
    #[arg(long = "tenant-cap", value_name = "TENANT=N")]
    tenant_caps: Vec<Setting>,
    /// The most running jobs of a project for job-router; may be given several times
    #[arg(long = "project-cap", value_name = "PROJECT_ID=N")]
    project_caps: Vec<Setting>,
    /// How many of the busiest tenants have a row of their own
    #[arg(long, default_value_t = 5)]
    busiest: usize,
    /// Draw the waits of quiet tenants over the day into this file, as SVG
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The day that is drawn.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "A day that is drawn")]
struct DrawnArgs {
    /// The same seed gives the same day
    #[arg(long, default_value_t = 1, conflicts_with = "file")]
    seed: u64,
    /// Jobs, those of the flood apart
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=20_000_000), conflicts_with = "file")]
    jobs: u32,
    /// Tenants, the one that floods apart
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000), conflicts_with = "file")]
    tenants: u32,
    /// Half of the jobs last no longer
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=3_600), conflicts_with = "file")]
    median_duration_s: u64,
    /// Jobs of the tenant that floods; 0 for no flood
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(0..=20_000_000), conflicts_with = "file")]
    flood_jobs: u32,
    /// Projects over which it floods
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000), conflicts_with = "file")]
    flood_projects: u32,
    /// Hour of the day at which the flood comes
    #[arg(long, default_value_t = 13, value_parser = clap::value_parser!(u64).range(0..=23), conflicts_with = "file")]
    flood_hour: u64,
}

/// What comes before and after `=`.
#[derive(Debug, Clone)]
struct Setting {
    of: String,
    number: NonZeroU32,
}

#[derive(Debug, Clone, Copy)]
struct PolicyArg(PolicyName);

/// Simulates the day by each policy.
pub(super) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let slots = match (args.slots, &args.file) {
        (Some(slots), _) => slots,
        (None, None) => SLOTS,
        (None, Some(_)) => {
            return Err(Usage("--slots is needed: a recording does not say how many jobs ran at once".into()).into());
        }
    };
    let (mut day, bad) = match &args.file {
        Some(file) => input::read(file, &stop).await?,
        None => (args.drawn.shape().draw(), None),
    };
    args.apply_terms(&mut day)?;
    let (policies, json) = (args.policies.clone(), args.json);
    // A thread of its own, so that Ctrl-C is heard meanwhile.
    let (day, takes) = tokio::task::spawn_blocking(move || {
        let takes = policies.iter().map(|policy| simulate(policy.0, &day, slots as usize, json, &stop));
        let takes = takes.collect::<anyhow::Result<Vec<_>>>()?;
        anyhow::Ok((day, takes))
    })
    .await
    .context("the simulation failed")??;

    let flooder = args.file.is_none().then(Flood::tenant);
    let report = Report::new(&day, slots, &takes, args.busiest, flooder.as_ref());
    if let Some(file) = &args.plot {
        let svg = plot::draw(&report, args.file.is_some());
        std::fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if args.json {
        output::line(&serde_json::to_string(&report)?)?;
    } else {
        report.print()?;
    }
    bad.map_or(Ok(()), |bad: BadData| Err(bad.into()))
}

/// One policy's takes.
fn simulate(
    policy: PolicyName,
    day: &Day,
    slots: usize,
    json: bool,
    stop: &CancellationToken,
) -> anyhow::Result<(PolicyName, Vec<Take>)> {
    let takes = match policy {
        PolicyName::Fifo => steps(policy, Simulation::new(day, slots, Fifo::default()), day, json, stop)?,
        PolicyName::GitLab => steps(policy, Simulation::new(day, slots, GitLab::new(day)), day, json, stop)?,
        PolicyName::JobRouter => steps(policy, Simulation::new(day, slots, Fair::new(day)), day, json, stop)?,
    };
    Ok((policy, takes))
}

fn steps<P: Policy>(
    name: PolicyName,
    mut simulation: Simulation<'_, P>,
    day: &Day,
    json: bool,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<Take>> {
    let (begin, mut bar, mut steps) = (Instant::now(), None::<ProgressBar>, 0_usize);
    while simulation.step() {
        steps += 1;
        if !steps.is_multiple_of(STEPS) {
            continue;
        }
        if stop.is_cancelled() {
            bail!("interrupted");
        }
        if bar.is_none() && !json && begin.elapsed() > QUIET_FOR {
            bar = Some(bench::bar(day.jobs().len() as u64, name.as_str()));
        }
        if let Some(bar) = &bar {
            bar.set_position(simulation.takes().len() as u64);
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(simulation.into_takes())
}

// === impl Args ===

impl Args {
    /// Weights and caps. Whoever misspells a tenant must learn of it.
    fn apply_terms(&self, day: &mut Day) -> anyhow::Result<()> {
        let unknown = |flag: &str, what: &str, of: &str| Usage(format!("{flag}: the day has no job of {what} {of:?}"));
        let tenant = |flag: &str, of: &str| Tenant::new(of).map_err(|_| unknown(flag, "tenant", of));
        for Setting { of, number } in &self.weights {
            if !day.set_weight(&tenant("--weight", of)?, *number) {
                return Err(unknown("--weight", "tenant", of).into());
            }
        }
        for Setting { of, number } in &self.tenant_caps {
            if !day.set_tenant_cap(&tenant("--tenant-cap", of)?, *number) {
                return Err(unknown("--tenant-cap", "tenant", of).into());
            }
        }
        for Setting { of, number } in &self.project_caps {
            let project = of.parse().map(ProjectId).map_err(|_| unknown("--project-cap", "project", of))?;
            if !day.set_project_cap(project, *number) {
                return Err(unknown("--project-cap", "project", of).into());
            }
        }
        Ok(())
    }
}

// === impl DrawnArgs ===

impl DrawnArgs {
    fn shape(&self) -> Shape {
        let flood = Flood { jobs: self.flood_jobs as usize, projects: self.flood_projects, hour: self.flood_hour };
        Shape {
            seed: self.seed,
            jobs: self.jobs as usize,
            tenants: self.tenants,
            duration_ms: self.median_duration_s * 1_000,
            flood: (self.flood_jobs > 0).then_some(flood),
        }
    }
}

// === impl Setting ===

impl FromStr for Setting {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let setting = text
            .rsplit_once('=')
            .and_then(|(of, number)| Some(Self { of: of.to_owned(), number: number.parse().ok()? }));
        setting.ok_or("must be a name, `=`, and a whole number from 1")
    }
}

// === impl PolicyArg ===

impl ValueEnum for PolicyArg {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self(PolicyName::Fifo), Self(PolicyName::GitLab), Self(PolicyName::JobRouter)]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.as_str()))
    }
}
