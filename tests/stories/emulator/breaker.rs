//! The circuit breaker of a process: whether a request for a job goes to the router, or to Rails.

use std::time::Duration;

use tokio::time::Instant;

/// So many failures in a row open it,
const FAILURES: u32 = 3;
/// if the first is at least so old: calls that fail together when a connection breaks are no outage.
const GRACE: Duration = Duration::from_secs(5);
/// How long it stays open before one call may try.
const OPEN_FOR: Duration = Duration::from_secs(30);

/// One for all entries of a process.
#[derive(Default)]
pub(super) struct Breaker(State);

#[derive(Default)]
enum State {
    #[default]
    Closed,
    /// Closed, with failures since the last success: how many, and when the first was.
    Failing(u32, Instant),
    Open(Instant),
    /// One call is on its way to try.
    Trying,
}

// === impl Breaker ===

impl Breaker {
    /// Whether the next request goes to the router.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        match self.0 {
            State::Closed | State::Failing(..) => true,
            State::Open(since) if now - since >= OPEN_FOR => {
                self.0 = State::Trying;
                true
            }
            State::Open(_) | State::Trying => false,
        }
    }

    /// The router has answered, if only to refuse.
    pub(super) fn succeeded(&mut self) {
        self.0 = State::Closed;
    }

    /// The router was not reached; whether that has opened it.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        let opens = match self.0 {
            State::Open(_) => return false,
            State::Trying => true,
            State::Closed => {
                self.0 = State::Failing(1, now);
                false
            }
            State::Failing(before, first) => {
                self.0 = State::Failing(before + 1, first);
                before + 1 >= FAILURES && now - first >= GRACE
            }
        };
        if opens {
            self.0 = State::Open(now);
        }
        opens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn three_failures_in_a_row_open_it_once_the_first_is_five_seconds_old() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        // Any number at once is one fault.
        assert!(!(0..100).any(|_| breaker.failed(start + seconds(1))));
        assert!(!breaker.failed(start + Duration::from_millis(5_999)) && breaker.allows(start));
        assert!(breaker.failed(start + seconds(6)));
        assert!(!breaker.allows(start + seconds(6)));
        // Two are not enough, however far apart.
        breaker.succeeded();
        assert!(!breaker.failed(start) && !breaker.failed(start + seconds(100)));
        // A success in between begins the count anew, and the time.
        breaker.succeeded();
        assert!(!(100..=104).any(|at| breaker.failed(start + seconds(at))));
        assert!(breaker.failed(start + seconds(105)));
    }

    #[test]
    fn it_lets_one_call_try_after_thirty_seconds_and_that_one_decides() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        let open =
            |breaker: &mut Breaker| [0, 3, 6].map(|at| breaker.failed(start + seconds(at))) == [false, false, true];
        assert!(open(&mut breaker));
        assert!(!breaker.allows(start + Duration::from_millis(35_999)));
        assert!(breaker.allows(start + seconds(36)));
        assert!(!breaker.allows(start + seconds(100)), "as long as that call is held");
        assert!(breaker.failed(start + seconds(100)), "one failure opens it again");
        assert!(!breaker.allows(start + seconds(129)) && breaker.allows(start + seconds(130)));
        breaker.succeeded();
        assert!(breaker.allows(start + seconds(130)) && open(&mut breaker), "closed, and the count begins anew");
        // A call that was held since before has its answer: the router is there.
        breaker.succeeded();
        assert!(breaker.allows(start + seconds(131)));
    }
}
