//! Time as the router needs it: stamps from the wall clock, and spread waits.
//!
//! Wall clocks jump and differ from host to host, so stamps are for events, logs and metrics only. What decides
//! about a job is Redis `TIME` inside a script, or a monotonic `Instant` on one pod.

use std::time::{Duration, UNIX_EPOCH};

/// The wall clock, as time since the start of 1970 (UTC); zero on a host whose clock stands before that.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn unix_time() -> Duration {
    std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The wall clock in Unix milliseconds.
pub fn unix_ms() -> u64 {
    u64::try_from(unix_time().as_millis()).expect("2^64 ms are 584 million years")
}

/// How long ago `stamp_ms` (Unix milliseconds, by the clock of any host) was; zero if it is ahead of this host's
/// clock.
///
/// A stamp such as a stream entry id has lost its microseconds, so the answer is up to 1 ms too long.
pub fn since_unix_ms(stamp_ms: u64) -> Duration {
    unix_time().saturating_sub(Duration::from_millis(stamp_ms))
}

/// `wait` made up to `fraction` (0 to 1) shorter or longer, evenly at random, so that pods and runners that began
/// together do not act together.
///
/// # Panics
///
/// If `fraction` is not from 0 to 1.
pub fn jitter(wait: Duration, fraction: f64) -> Duration {
    spread(wait, fraction, rand::random())
}

/// [`jitter`] for a given `dice`, 0 to 1.
fn spread(wait: Duration, fraction: f64, dice: f64) -> Duration {
    assert!((0.0..=1.0).contains(&fraction), "a jitter of {fraction} is not from 0 to 1");
    wait.mul_f64(1.0 - fraction + 2.0 * fraction * dice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_spreads_to_both_sides_and_no_further() {
        let wait = Duration::from_secs(100);
        let spread_by_tenth = |dice| spread(wait, 0.1, dice).as_secs_f64();
        assert!((spread_by_tenth(0.0) - 90.0).abs() < 1e-6);
        assert!((spread_by_tenth(0.5) - 100.0).abs() < 1e-6);
        assert!((spread_by_tenth(1.0) - 110.0).abs() < 1e-6);
        assert_eq!(spread(wait, 0.0, 0.7), wait, "no fraction, no jitter");
        let drawn: Vec<Duration> = (0..20).map(|_| jitter(wait, 0.1)).collect();
        assert!(drawn.iter().any(|d| *d != drawn[0]), "the dice are thrown each time");
    }

    #[test]
    fn a_stamp_of_a_host_whose_clock_is_ahead_is_not_older_than_now() {
        assert_eq!(since_unix_ms(unix_ms() + 60_000), Duration::ZERO);
        let age = since_unix_ms(unix_ms() - 5_000);
        assert!(age >= Duration::from_secs(5) && age < Duration::from_secs(60), "{age:?}");
    }
}
