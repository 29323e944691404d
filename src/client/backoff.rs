//! How long to wait before the next connection: full jitter, so that a fleet does not come back in step.

use std::time::Duration;

/// The first delay's upper end. 100 ms: a pod that closed a stream is behind a load balancer with others.
const FIRST: Duration = Duration::from_millis(100);
/// The first delay's upper end after a refused token: the registry may be a moment behind, but refusals are counted.
const FIRST_REFUSED: Duration = Duration::from_secs(1);
/// The longest delay's upper end.
const LONGEST: Duration = Duration::from_secs(30);
/// A session that lived this long ended for a reason of its own: begin anew.
const HEALTHY: Duration = Duration::from_secs(10);

/// Failures in a row, and what they cost.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

// === impl Backoff ===

impl Backoff {
    /// A session ended after it lived so long. A welcome alone proves little: a router that welcomes and
    /// closes at once must not be met every 50 ms.
    pub(super) fn session_ended(&mut self, lived: Duration) {
        if lived >= HEALTHY {
            self.failures = 0;
        }
    }

    /// The delay after one more failure; `dice` is uniform in 0..1.
    pub(super) fn delay(&mut self, token_refused: bool, dice: f64) -> Duration {
        let first = if token_refused { FIRST_REFUSED } else { FIRST };
        // 2^10 × 100 ms is past the longest already.
        let ceiling = first.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(dice.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_thirty_seconds() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..12).map(|_| backoff.delay(false, 1.0).as_millis()).collect();
        assert_eq!(delays[..4], [100, 200, 400, 800]);
        assert_eq!(delays[9..], [30_000, 30_000, 30_000]);
    }

    #[test]
    fn a_delay_is_spread_over_all_of_its_range() {
        assert_eq!(Backoff::default().delay(false, 0.0), Duration::ZERO);
        assert_eq!(Backoff::default().delay(false, 0.5), Duration::from_millis(50));
        assert_eq!(Backoff::default().delay(true, 0.5), Duration::from_millis(500));
    }

    #[test]
    fn only_a_session_that_lived_starts_the_delays_anew() {
        let mut backoff = Backoff::default();
        backoff.delay(false, 1.0);
        backoff.session_ended(Duration::from_secs(1));
        assert_eq!(backoff.delay(false, 1.0), Duration::from_millis(200));
        backoff.session_ended(Duration::from_secs(10));
        assert_eq!(backoff.delay(false, 1.0), Duration::from_millis(100));
    }
}
