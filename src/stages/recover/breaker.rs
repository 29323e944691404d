//! A breaker: where a large part of all leases would run out at once, it is hardly the runners that are gone.

use std::time::Duration;

use tokio::time::Instant;

/// Fewer are no mass: one machine of a small fleet holds as many.
const FEW: usize = 100;

/// Holds up a mass expiry for a while, so that somebody can look.
pub(super) struct Breaker {
    percent: u64,
    hold: Duration,
    /// How long after the last mass it is over: leases that are left be are due again after one more lease.
    over_after: Duration,
    /// When the first and the last mass was seen.
    seen: Option<(Instant, Instant)>,
}

// === impl Breaker ===

impl Breaker {
    pub(super) fn new(percent: u32, hold: Duration, lease: Duration) -> Self {
        Self { percent: percent.into(), hold, over_after: lease * 2, seen: None }
    }

    /// Whether so many leases of all that live are to be left be for now.
    pub(super) fn holds(&mut self, now: Instant, ending: usize, live: u64) -> bool {
        if self.seen.is_some_and(|(_, last)| now.duration_since(last) > self.over_after) {
            self.seen = None;
        }
        if ending < FEW || ending as u64 * 100 <= live * self.percent {
            return false;
        }
        let first = self.seen.map_or(now, |(first, _)| first);
        self.seen = Some((first, now));
        now.duration_since(first) < self.hold
    }

    /// Whether a mass was seen lately.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.seen.is_some_and(|(_, last)| now.duration_since(last) <= self.over_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(60);

    #[test]
    fn a_mass_is_held_up_for_a_while_and_a_few_are_not() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut breaker = Breaker::new(50, LEASE * 5, LEASE);
        assert!(!breaker.holds(at(0), 500, 1000), "half of them");
        assert!(!breaker.holds(at(0), 99, 99), "few, though all");
        assert!(!breaker.is_open(at(0)));
        assert!(breaker.holds(at(1), 501, 1000));
        assert!(breaker.is_open(at(1)));
        assert!(!breaker.holds(at(30), 20, 1000), "others meanwhile");
        for s in [61, 121, 181, 241, 300] {
            assert!(breaker.holds(at(s), 501, 1000), "the same, a lease later");
        }
        assert!(!breaker.holds(at(301), 501, 1000), "long enough");
        assert!(breaker.is_open(at(301 + 120)) && !breaker.is_open(at(301 + 121)));
        assert!(breaker.holds(at(500), 501, 1000), "another one is held up anew");
    }

    #[test]
    fn one_that_does_not_hold_lets_all_pass() {
        assert!(!Breaker::new(50, Duration::ZERO, LEASE).holds(Instant::now(), 1000, 1000));
        assert!(!Breaker::new(100, LEASE, LEASE).holds(Instant::now(), 1000, 1000));
    }
}
