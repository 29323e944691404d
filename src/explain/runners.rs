//! How every runner stands to a job: judged one by one with the rule that pods match by, told by how many.

use std::collections::BTreeMap;

use serde::Serialize;

use super::facts::{KnownRunner, Roster};
use super::reason::{Gap, RunnerReason};
use crate::job::ProjectFacts;
use crate::runner::{RunnerRecord, RunnerType, Scope};
use crate::tags::Capability;

/// How many runners are named where there are more.
pub(super) const EXAMPLES_MAX: usize = 5;
/// How many groups of runners are told of one scope; the rest is summed up.
const GROUPS_MAX: usize = 10;

/// One runner and one job.
#[derive(Debug)]
pub(super) struct Judged<'a> {
    pub(super) runner: &'a KnownRunner,
    /// Those of the job's scopes that it serves, paused or not.
    pub(super) scopes: Vec<Scope>,
    /// What it does not meet; nothing: it could take the job.
    pub(super) gaps: Vec<Gap>,
    pub(super) reason: RunnerReason,
}

/// Runners that stand to a job in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// In which.
    pub reason: RunnerReason,
    /// What they do not meet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Gap>,
    /// How many they are.
    pub runners: u64,
    /// The ids of the first few.
    pub examples: Vec<u64>,
}

/// The runners that are nearest to taking a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Nearest {
    pub(super) gaps: Vec<Gap>,
    pub(super) runners: u64,
    pub(super) examples: Vec<u64>,
}

/// Judges all runners.
pub(super) fn judge<'a>(project: &ProjectFacts, job: &Capability, roster: &'a Roster) -> Vec<Judged<'a>> {
    let scopes: Vec<Scope> = Scope::of_project(project).collect();
    roster.runners.iter().map(|runner| judge_one(project, &scopes, job, runner)).collect()
}

fn judge_one<'a>(project: &ProjectFacts, scopes: &[Scope], job: &Capability, runner: &'a KnownRunner) -> Judged<'a> {
    // What features an offline runner has is not known: it may have those that are wanted.
    let counts = |gap: &Gap| runner.is_online() || !matches!(gap, Gap::Feature(_));
    let lacking = runner.classes.iter().map(|class| {
        let ours: Vec<Scope> = scopes.iter().copied().filter(|scope| class.scopes.contains(scope)).collect();
        (class.missing_to_run(job).into_iter().filter_map(Gap::of).filter(counts).collect::<Vec<Gap>>(), ours)
    });
    let (mut gaps, ours) = lacking.min_by_key(|(gaps, _)| gaps.len()).expect("a runner has a class");
    gaps.extend(ours.is_empty().then(|| scope_gap(project, &runner.record)));
    gaps.extend(runner.record.paused.then_some(Gap::Paused));
    gaps.sort();
    let reason = if gaps.is_empty() { standing(job, runner) } else { RunnerReason::Missing };
    Judged { runner, scopes: ours, gaps, reason }
}

/// A runner that could take the job: whether it can now.
fn standing(job: &Capability, runner: &KnownRunner) -> RunnerReason {
    let able = runner.managers.iter().filter(|manager| job.requires.is_subset(&manager.seen.features));
    let rank = able.map(|manager| match (manager.seen.free, manager.seen.backing_off) {
        (0, _) => RunnerReason::NoSlot,
        (_, true) => RunnerReason::BackingOff,
        _ => RunnerReason::Free,
    });
    let order = [RunnerReason::Free, RunnerReason::BackingOff, RunnerReason::NoSlot];
    rank.min_by_key(|reason| order.iter().position(|other| other == reason)).unwrap_or(RunnerReason::Offline)
}

/// Why a runner serves none of the job's scopes.
fn scope_gap(project: &ProjectFacts, record: &RunnerRecord) -> Gap {
    match record.kind {
        RunnerType::Instance => Gap::InstanceRunners,
        RunnerType::Group if record.group_ids.iter().any(|id| project.namespace_ids.contains(id)) => Gap::GroupRunners,
        RunnerType::Group => Gap::Group,
        RunnerType::Project => Gap::Project,
    }
}

/// Counts runners that are judged alike; most of them first.
pub(super) fn groups<'a>(judged: impl Iterator<Item = &'a Judged<'a>>) -> Vec<Group> {
    let mut alike: BTreeMap<(RunnerReason, &[Gap]), Group> = BTreeMap::new();
    for one in judged {
        let new = || Group { reason: one.reason, missing: one.gaps.clone(), runners: 0, examples: Vec::new() };
        let group = alike.entry((one.reason, &one.gaps)).or_insert_with(new);
        group.runners += 1;
        if group.examples.len() < EXAMPLES_MAX {
            group.examples.push(one.runner.record.id);
        }
    }
    let mut groups: Vec<Group> = alike.into_values().collect();
    // Those that could take it first, then those that lack least.
    groups.sort_by_key(|group| (group.reason, group.missing.len(), std::cmp::Reverse(group.runners)));
    if let Some(rest) = groups.get(GROUPS_MAX..).filter(|rest| !rest.is_empty()) {
        let runners = rest.iter().map(|group| group.runners).sum();
        let rest = Group { reason: RunnerReason::Missing, missing: Vec::new(), runners, examples: Vec::new() };
        groups.truncate(GROUPS_MAX);
        groups.push(rest);
    }
    groups
}

/// The runners that lack least, of these.
pub(super) fn nearest<'a>(judged: impl Iterator<Item = &'a Judged<'a>>) -> Option<Nearest> {
    let mut best: Option<Nearest> = None;
    for one in judged {
        let key = |gaps: &Vec<Gap>| (gaps.len(), gaps.last().cloned());
        let order =
            best.as_ref().map(|best| key(&one.gaps).cmp(&key(&best.gaps)).then_with(|| one.gaps.cmp(&best.gaps)));
        match order {
            Some(std::cmp::Ordering::Greater) => {}
            Some(std::cmp::Ordering::Equal) => {
                let best = best.as_mut().expect("compared with");
                best.runners += 1;
                if best.examples.len() < EXAMPLES_MAX {
                    best.examples.push(one.runner.record.id);
                }
            }
            _ => best = Some(Nearest { gaps: one.gaps.clone(), runners: 1, examples: vec![one.runner.record.id] }),
        }
    }
    best
}
