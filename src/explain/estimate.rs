//! When a job may go: what stands before it, by how fast the runners that could take it have taken jobs lately.

use std::collections::HashSet;

use serde::Serialize;

use super::Place;
use super::facts::Start;
use super::runners::Judged;

/// Fewer starts than these tell nothing.
const STARTS_MIN: usize = 5;
/// Starts longer ago than this tell nothing of now.
const LATELY_MS: u64 = 15 * 60 * 1_000;

/// A guess, and what it rests on. It takes the last starts of the runners that could take the job for what will come, all of
/// them for jobs of its lane, and tenants in the lane for equals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// How long the job may still wait.
    pub wait_ms: u64,
    /// More jobs stand before it than were counted: it may be longer.
    pub at_least: bool,
    /// So many jobs were taken by the runners that could take it …
    pub starts: u64,
    /// … in this time until now.
    pub over_ms: u64,
}

/// The estimate, unless too little was started lately.
pub(super) fn estimate(
    now_ms: u64,
    place: &Place,
    tenants: u64,
    usable: &[&Judged<'_>],
    starts: &[Start],
) -> Option<Estimate> {
    let runners: HashSet<u64> = usable.iter().map(|one| one.runner.record.id).collect();
    let lately = now_ms.saturating_sub(LATELY_MS);
    let theirs = starts.iter().filter(|start| start.at_ms >= lately && runners.contains(&start.runner_id.0));
    let times: Vec<u64> = theirs.map(|start| start.at_ms).collect();
    let over_ms = now_ms.saturating_sub(*times.iter().min()?).max(1);
    if times.len() < STARTS_MIN {
        return None;
    }
    // The first begins the time that is measured, so it is not one of those that came in it. Tenants take turns: while one job
    // of this one goes, one of each other goes.
    let turns = (place.jobs_ahead.count + 1).saturating_mul(tenants.max(1));
    let wait_ms = u128::from(over_ms) * u128::from(turns) / (times.len() as u128 - 1);
    let (wait_ms, starts) = (u64::try_from(wait_ms).unwrap_or(u64::MAX), times.len() as u64);
    Some(Estimate { wait_ms, at_least: place.jobs_ahead.at_least, starts, over_ms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::facts::{Count, Roster};
    use crate::explain::reason::RunnerReason;
    use crate::job::RunnerId;

    fn guess(starts: &[(u64, u64)], jobs: u64, tenants: u64) -> Option<Estimate> {
        let record = serde_json::from_value(serde_json::json!({"id": 1, "token_sha256": "", "type": "instance"}));
        let roster = Roster::new(vec![record.expect("a record")], []);
        let one =
            Judged { runner: &roster.runners[0], scopes: Vec::new(), gaps: Vec::new(), reason: RunnerReason::NoSlot };
        let jobs_ahead = Count { count: jobs, at_least: false };
        let place = Place { scope: crate::runner::Scope::Instance, tenants_ahead: 0, jobs_ahead };
        let starts: Vec<Start> =
            starts.iter().map(|(at_ms, id)| Start { at_ms: *at_ms, runner_id: RunnerId(*id) }).collect();
        estimate(10_000_000, &place, tenants, &[&one], &starts)
    }

    #[test]
    fn what_stands_before_a_job_goes_as_fast_as_jobs_went_lately_on_runners_that_could_take_it() {
        // One every 10 s for 50 s; another runner's, and an old one, tell nothing.
        let mut starts: Vec<(u64, u64)> = (0..=5).map(|n| (9_950_000 + n * 10_000, 1)).collect();
        starts.extend([(9_999_000, 2), (1_000, 1)]);
        let told = guess(&starts, 2, 1).expect("enough");
        assert_eq!((told.wait_ms, told.starts, told.over_ms), (30_000, 6, 50_000));
        assert_eq!(guess(&starts, 2, 3).expect("enough").wait_ms, 90_000, "two others take turns with it");
        assert_eq!(guess(&starts[..4], 2, 1), None, "too few to tell");
        assert_eq!(guess(&[], 0, 1), None);
    }
}
