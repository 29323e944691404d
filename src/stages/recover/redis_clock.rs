//! Whether Redis' clock jumped ahead: all that is kept there for a time goes too early then.

use std::time::Duration;

use tokio::time::Instant;

/// It may be ahead by so much of what our clock allows. Nothing that is missed is kept for so short a time.
const SLACK: Duration = Duration::from_secs(10);

/// Compares Redis' clock with this pod's own.
#[derive(Default)]
pub(super) struct RedisClock {
    /// What it said last, and when it was asked.
    last: Option<(u64, Instant)>,
}

// === impl RedisClock ===

impl RedisClock {
    /// It said `now_ms` at some time between `asked` and `answered`. Answers whether it jumped since it was asked last.
    pub(super) fn jumped(&mut self, now_ms: u64, asked: Instant, answered: Instant) -> bool {
        let last = self.last.replace((now_ms, asked));
        last.is_some_and(|(then_ms, then)| {
            Duration::from_millis(now_ms.saturating_sub(then_ms)) > answered.duration_since(then) + SLACK
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_is_ahead_of_what_the_pods_own_allows_has_jumped() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut clock = RedisClock::default();
        assert!(!clock.jumped(7_000_000, at(0), at(0)), "nothing is known before the first answer");
        assert!(!clock.jumped(7_030_000, at(1), at(30)), "the answer was late");
        assert!(!clock.jumped(7_060_000, at(60), at(60)), "nobody asked for long");
        assert!(clock.jumped(7_072_000, at(61), at(61)));
        assert!(!clock.jumped(7_073_000, at(62), at(62)), "told once");
        assert!(!clock.jumped(1_000, at(63), at(63)), "it was set back");
        assert!(clock.jumped(7_074_000, at(64), at(64)), "and right again");
    }
}
