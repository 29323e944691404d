//! What came of it: waits by groups of tenants, as a table or JSON.

use std::collections::BTreeMap;

use job_router::job::Tenant;
use job_router::simulation::{Day, PolicyName, Take, Waits, jains_index, p99_over_time, waits};
use serde::{Serialize, Serializer};

use crate::commands::output;

/// How finely time is told apart, at least: so many parts of the day.
const BINS: u64 = 96;
const NAME_MAX: usize = 40;

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    slots: u32,
    jobs: usize,
    tenants: usize,
    projects: usize,
    /// Of the slots' time, from the first queue time to the last end by the first policy.
    busy_part: f64,
    policies: Vec<Name>,
    /// See `job_router::simulation::jains_index`; none where never two tenants waited.
    jains_index: BTreeMap<Name, Option<f64>>,
    /// The busiest tenants, the one that floods, `quiet`, `all`.
    groups: Vec<Group>,
    pub(super) quiet_over_time: OverTime,
}

/// Some tenants together.
#[derive(Debug, Serialize)]
struct Group {
    name: String,
    /// How many of them, when it is a group.
    tenants: Option<usize>,
    jobs: usize,
    projects: usize,
    waits_ms: BTreeMap<Name, Waits>,
}

/// Waits of the quiet tenants' jobs, by when they were queued.
#[derive(Debug, Serialize)]
pub(super) struct OverTime {
    pub(super) bin_ms: u64,
    /// One for each part of the day; none where nothing was queued.
    pub(super) p99_ms: BTreeMap<Name, Vec<Option<u64>>>,
}

/// A policy, by its name in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name(pub(super) PolicyName);

type Takes = (PolicyName, Vec<Take>);

// === impl Report ===

impl Report {
    /// `busiest` tenants have a row each, and so has the one that floods; the rest is quiet.
    pub(super) fn new(day: &Day, slots: u32, takes: &[Takes], busiest: usize, flooder: Option<&Tenant>) -> Self {
        let mut loud: Vec<usize> = day.busiest_tenants().iter().take(busiest).map(|(tenant, _)| *tenant).collect();
        if let Some(flooder) = flooder.and_then(|flooder| day.find_tenant(flooder))
            && !loud.contains(&flooder)
        {
            loud.push(flooder);
        }
        let mut groups: Vec<Group> = loud
            .iter()
            .map(|tenant| {
                let name = day.tenants()[*tenant].tenant.name().to_owned();
                Group { tenants: None, ..Group::new(name, day, takes, |other| other == *tenant) }
            })
            .collect();
        let quiet = |tenant: usize| !loud.contains(&tenant);
        if day.tenants().len() > loud.len() {
            groups.push(Group::new("quiet".into(), day, takes, quiet));
        }
        groups.push(Group::new("all".into(), day, takes, |_| true));

        let bin_ms = day.span_ms().div_ceil(BINS).max(60_000);
        let over_time = |takes: &[Take]| p99_over_time(day, takes, |job| quiet(day.tenant_of(job)), bin_ms);
        let by_policy = takes.iter().map(|(policy, takes)| (Name(*policy), over_time(takes)));
        Self {
            slots,
            jobs: day.jobs().len(),
            tenants: day.tenants().len(),
            projects: day.projects().len(),
            busy_part: busy_part(day, slots, &takes[0].1),
            policies: takes.iter().map(|(policy, _)| Name(*policy)).collect(),
            jains_index: takes.iter().map(|(policy, takes)| (Name(*policy), jains_index(day, takes))).collect(),
            quiet_over_time: OverTime { bin_ms, p99_ms: by_policy.collect() },
            groups,
        }
    }

    /// For people.
    pub(super) fn print(&self) -> anyhow::Result<()> {
        let mut header = vec!["\nTENANT".to_owned(), "\nJOBS".into(), "\nPROJECTS".into()];
        for policy in &self.policies {
            header.extend([format!("{}\nP50 s", policy.0), "\nP99 s".into(), "\nMAX s".into()]);
        }
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        let mut table = output::table(&header);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
        for group in &self.groups {
            let name = output::safe(&group.name, NAME_MAX);
            let name = group.tenants.map_or_else(|| name.clone(), |tenants| format!("{name} ({tenants})"));
            let mut row = vec![name, group.jobs.to_string(), group.projects.to_string()];
            for policy in &self.policies {
                let Waits { p50, p99, max } = group.waits_ms[policy];
                row.extend([p50, p99, max].map(|ms| format!("{:.1}", ms as f64 / 1e3)));
            }
            table.add_row(row);
        }
        output::print(&table)?;
        let index = |policy: &Name| {
            let index = self.jains_index[policy].map_or_else(|| "-".to_owned(), |index| format!("{index:.3}"));
            format!("{} {index}", policy.0)
        };
        output::line(&format!("\nJain's index: {}", self.policies.iter().map(index).collect::<Vec<_>>().join(", ")))?;
        output::line(&format!("{} slots, {:.0} % busy", self.slots, 100.0 * self.busy_part))
    }

    /// How many tenants are quiet.
    pub(super) fn quiet_tenants(&self) -> usize {
        self.groups.iter().find(|group| group.name == "quiet").and_then(|group| group.tenants).unwrap_or(0)
    }
}

/// How much of the slots' time is used, as no policy changes by much.
fn busy_part(day: &Day, slots: u32, takes: &[Take]) -> f64 {
    let first_ms = day.jobs().first().map_or(0, |job| job.queued_at_ms);
    let last_ms = takes.iter().map(|take| take.at_ms + day.jobs()[take.job].duration_ms).max().unwrap_or(0);
    let used_ms: f64 = day.jobs().iter().map(|job| job.duration_ms as f64).sum();
    let busy = used_ms / (f64::from(slots) * (last_ms - first_ms).max(1) as f64);
    (busy * 1e4).round() / 1e4
}

// === impl Group ===

impl Group {
    fn new(name: String, day: &Day, takes: &[Takes], has: impl Fn(usize) -> bool) -> Self {
        let of_policy = |(policy, takes): &Takes| {
            let waits = waits(day, takes, |job| has(day.tenant_of(job)));
            Some((Name(*policy), waits?))
        };
        Self {
            name,
            tenants: Some((0..day.tenants().len()).filter(|tenant| has(*tenant)).count()),
            jobs: (0..day.jobs().len()).filter(|job| has(day.tenant_of(*job))).count(),
            projects: day.projects().iter().filter(|project| has(project.tenant)).count(),
            waits_ms: takes.iter().filter_map(of_policy).collect(),
        }
    }
}

// === impl Name ===

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}
