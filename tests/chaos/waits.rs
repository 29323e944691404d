//! Work conserving: while nothing goes wrong, no job waits beside a free slot that may run it.

use std::collections::{HashMap, HashSet};

use super::history::{Micros, Record, What};
use super::runner::SLOTS;
use super::spans::Span;
use crate::support::rules::may_run;

/// Milliseconds in truth; as much as a busy machine may need.
const WAIT_MAX: Micros = 3_000_000;

/// What is to be said of each job that waited for longer beside a runner with a free slot.
pub fn idle_waits(history: &[Record], spans: &[Span]) -> Vec<String> {
    let Some(calm) = history.iter().find(|record| record.what == What::Calm).map(|record| record.at) else {
        return Vec::new();
    };
    let (mut queued, mut over, mut came_back) = (HashMap::new(), HashMap::new(), HashSet::new());
    let (mut jobs, mut managers) = (HashMap::new(), HashMap::new());
    let end = history.iter().rev().find(|record| !matches!(record.what, What::Written(_))).map_or(calm, |last| last.at);
    for record in history {
        match &record.what {
            What::Tried { job, data } => drop(jobs.insert(*job, data)),
            What::Manager { manager, runner } => drop(managers.insert(manager, runner)),
            What::Began { job, .. } => drop(over.entry(*job).or_insert(record.at)),
            What::Applied(told) if told.kind == "job.queued" => drop(queued.insert(told.job, record.at)),
            What::Applied(told) if told.kind == "job.requeued" => drop(came_back.insert(told.job)),
            What::Applied(told) => drop(over.entry(told.job).or_insert(record.at)),
            _ => {}
        }
    }
    let in_calm: Vec<&Span> = spans.iter().filter(|span| span.active.iter().any(|(begin, _)| *begin >= calm)).collect();
    let mut waits = Vec::new();
    for (job, queued) in queued {
        let (from, to) = (queued.max(calm), over.get(&job).copied().unwrap_or(end));
        // One that came back was not taken in time, as on a machine that is busy with something else.
        if to <= from + WAIT_MAX || came_back.contains(&job) {
            continue;
        }
        let Some(data) = jobs.get(&job) else { continue };
        let mut suitable = managers.iter().filter(|(_, runner)| may_run(runner, &[], data));
        if let Some((manager, _)) = suitable.find(|(manager, _)| is_free(manager, from, to, &in_calm)) {
            waits.push(format!("job {job} waited for {} ms while {manager} had a free slot", (to - from) / 1_000));
        }
    }
    waits
}

/// Whether it had a free slot at each moment of that time, and was connected: it began jobs before it and after it.
fn is_free(manager: &str, from: Micros, to: Micros, spans: &[&Span]) -> bool {
    let its: Vec<_> = spans.iter().filter(|span| span.manager == manager).flat_map(|span| &span.active).collect();
    let running_at = |at: Micros| its.iter().filter(|(begin, end)| *begin <= at && at < *end).count();
    if !its.iter().any(|(begin, _)| *begin <= from) || !its.iter().any(|(begin, _)| *begin >= to) {
        return false;
    }
    let moments = its.iter().map(|(begin, _)| *begin).filter(|begin| from < *begin && *begin < to).chain([from]);
    moments.map(running_at).all(|running| running < SLOTS as usize)
}
