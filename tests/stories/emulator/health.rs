//! The health of one entry: whether it asks at all.

use std::time::Duration;

use tokio::time::Instant;

/// So many unhealthy answers in a row stop it (`unhealthy_requests_limit`),
const LIMIT: u32 = 3;
/// until the last healthy one is so long ago (`unhealthy_interval`).
const INTERVAL: Duration = Duration::from_secs(3_600);

pub(super) struct Health {
    unhealthy: u32,
    last_healthy: Instant,
}

// === impl Health ===

impl Health {
    pub(super) fn new(now: Instant) -> Self {
        Self { unhealthy: 0, last_healthy: now }
    }

    /// Whether it may ask.
    pub(super) fn is_good(&mut self, now: Instant) -> bool {
        if self.unhealthy >= LIMIT && now - self.last_healthy > INTERVAL {
            *self = Self::new(now);
        }
        self.unhealthy < LIMIT
    }

    /// What an answer was; whether it stops asking now.
    pub(super) fn mark(&mut self, healthy: bool, now: Instant) -> bool {
        if healthy {
            *self = Self::new(now);
            return false;
        }
        self.unhealthy += 1;
        self.unhealthy == LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_unhealthy_answers_in_a_row_stop_it_for_an_hour() {
        let start = Instant::now();
        let mut health = Health::new(start);
        assert!(!health.mark(false, start) && !health.mark(false, start) && health.is_good(start));
        assert!(!health.mark(true, start), "the count begins anew");
        assert_eq!([(); 3].map(|()| health.mark(false, start)), [false, false, true]);
        assert!(!health.is_good(start) && !health.is_good(start + INTERVAL));
        assert!(health.is_good(start + INTERVAL + Duration::from_millis(1)));
        assert_eq!([(); 2].map(|()| health.mark(false, start)), [false, false], "it has three tries again");
    }
}
