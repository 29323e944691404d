//! How long jobs waited.

use serde::Serialize;

use super::{Day, JobIndex, Take};

/// Percentiles of waits, in ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Waits {
    /// Half of the jobs waited no longer.
    pub p50: u64,
    /// 99 of 100 waited no longer.
    pub p99: u64,
    /// None waited longer.
    pub max: u64,
}

// === impl Waits ===

impl Waits {
    /// Of these waits; none of none.
    pub fn of(mut waits_ms: Vec<u64>) -> Option<Self> {
        waits_ms.sort_unstable();
        let max = *waits_ms.last()?;
        Some(Self { p50: percentile(&waits_ms, 50), p99: percentile(&waits_ms, 99), max })
    }
}

/// The least value that so many of a hundred do not exceed (nearest rank).
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

/// The waits of the jobs that are wanted.
pub fn waits(day: &Day, takes: &[Take], wanted: impl Fn(JobIndex) -> bool) -> Option<Waits> {
    let wanted = takes.iter().filter(|take| wanted(take.job));
    Waits::of(wanted.map(|take| take.at_ms - day.jobs()[take.job].queued_at_ms).collect())
}

/// The 99th percentile of the waits of the jobs that are wanted, by when they were queued: one for each `bin_ms` of the
/// day; none where nothing was queued.
pub fn p99_over_time(day: &Day, takes: &[Take], wanted: impl Fn(JobIndex) -> bool, bin_ms: u64) -> Vec<Option<u64>> {
    let mut bins = vec![Vec::new(); (day.span_ms() / bin_ms) as usize + 1];
    for take in takes.iter().filter(|take| wanted(take.job)) {
        let queued_at_ms = day.jobs()[take.job].queued_at_ms;
        bins[(queued_at_ms / bin_ms) as usize].push(take.at_ms - queued_at_ms);
    }
    bins.into_iter().map(|waits| Waits::of(waits).map(|waits| waits.p99)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_wait_that_some_job_had() {
        let of = |waits: &[u64]| Waits::of(waits.to_vec()).map(|Waits { p50, p99, max }| (p50, p99, max));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[7]), Some((7, 7, 7)));
        assert_eq!(of(&(1..=200).rev().collect::<Vec<_>>()), Some((100, 198, 200)));
    }
}
