//! Failed log-ins, by address and by token: who has too many is refused unheard, which costs Redis nothing.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tonic::Status;

use crate::telemetry::labels::Limit;
use crate::telemetry::metrics;

/// How long a token counts as known after it was last let in: longer than any deployment rolls.
const KNOWN_FOR: Duration = Duration::from_secs(24 * 3600);
/// How many addresses or tokens are remembered before those are dropped that have all their tries again.
const REMEMBERED: usize = 10_000;

/// Failed log-ins of all callers.
pub(super) struct Failures {
    of_address: Tries<IpAddr>,
    of_token: Tries<String>,
    /// Tokens by hash that were let in, and when last: only those of runners, so as many as there are runners.
    known: Mutex<HashMap<String, Instant>>,
}

/// So many tries a minute for each key.
struct Tries<K: Clone + Eq + Hash> {
    limiter: DefaultKeyedRateLimiter<K>,
    /// Those that have used up theirs, and until when.
    used_up: Mutex<HashMap<K, Instant>>,
}

/// One try to log in, to be told how it went.
pub(super) struct LogIn {
    failures: Arc<Failures>,
    address: IpAddr,
    token_sha256: String,
}

// === impl Failures ===

impl Failures {
    /// None yet; so many a minute are heard.
    pub(super) fn new(per_minute: NonZeroU32) -> Self {
        Self { of_address: Tries::new(per_minute), of_token: Tries::new(per_minute), known: Mutex::default() }
    }

    /// Counts a log-in without a token, or without a Hello.
    pub(super) fn count(&self, address: IpAddr) {
        metrics().auth_failures_total.increment(1);
        self.of_address.use_one(address);
    }

    /// Whether a caller may try. A token that was let in lately may be used whatever others at its address do: behind a proxy,
    /// all runners have one address.
    pub(super) fn check(&self, address: IpAddr, token_sha256: Option<&str>) -> Result<(), Status> {
        let refuse = |limit: Limit, whose: &str| {
            metrics().refused_total.of(limit).increment(1);
            Err(Status::resource_exhausted(format!("too many failed log-ins {whose}; retry with back-off")))
        };
        match token_sha256 {
            Some(token) if self.is_known(token) => Ok(()),
            Some(token) if self.of_token.are_used_up(token) => refuse(Limit::AuthFailuresOfToken, "with this token"),
            _ if self.of_address.are_used_up(&address) => refuse(Limit::AuthFailuresOfAddress, "from this address"),
            _ => Ok(()),
        }
    }

    fn is_known(&self, token_sha256: &str) -> bool {
        let known = self.known.lock().expect("nobody panics with it");
        known.get(token_sha256).is_some_and(|at| at.elapsed() < KNOWN_FOR)
    }
}

// === impl Tries ===

impl<K: Clone + Eq + Hash> Tries<K> {
    fn new(per_minute: NonZeroU32) -> Self {
        Self { limiter: RateLimiter::dashmap(Quota::per_minute(per_minute)), used_up: Mutex::default() }
    }

    fn use_one(&self, key: K) {
        if let Err(until) = self.limiter.check_key(&key) {
            let now = Instant::now();
            let wait = until.wait_time_from(DefaultClock::default().now());
            let mut used_up = self.used_up.lock().expect("nobody panics with it");
            used_up.retain(|_, until| *until > now);
            used_up.insert(key, now + wait);
        }
        if self.limiter.len() > REMEMBERED {
            self.limiter.retain_recent();
        }
    }

    fn are_used_up<Q: ?Sized + Eq + Hash>(&self, key: &Q) -> bool
    where
        K: std::borrow::Borrow<Q>,
    {
        let used_up = self.used_up.lock().expect("nobody panics with it");
        used_up.get(key).is_some_and(|until| *until > Instant::now())
    }
}

// === impl LogIn ===

impl LogIn {
    pub(super) fn new(failures: &Arc<Failures>, address: IpAddr, token_sha256: &str) -> Self {
        Self { failures: failures.clone(), address, token_sha256: token_sha256.to_owned() }
    }

    pub(super) fn worked(self) {
        let mut known = self.failures.known.lock().expect("nobody panics with it");
        known.insert(self.token_sha256, Instant::now());
        if known.len().is_power_of_two() {
            known.retain(|_, at| at.elapsed() < KNOWN_FOR); // tokens that were changed, now and then
        }
    }

    /// It did not say who it is, in time or at all.
    pub(super) fn unheard(self) {
        self.failures.count(self.address);
    }

    pub(super) fn failed(self) {
        self.failures.known.lock().expect("nobody panics with it").remove(&self.token_sha256);
        self.failures.count(self.address);
        self.failures.of_token.use_one(self.token_sha256);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_fails_from_everywhere_is_refused_unheard_and_others_are_not() {
        let failures = Arc::new(Failures::new(NonZeroU32::new(5).expect("not 0")));
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        for last in 0..6 {
            assert!(failures.check(address(last), Some("bad")).is_ok(), "{last}");
            LogIn::new(&failures, address(last), "bad").failed();
        }
        let refused = failures.check(address(9), Some("bad")).expect_err("refused");
        assert!(refused.message().contains("with this token"), "{refused}");
        assert!(failures.check(address(0), Some("other")).is_ok(), "one failure of an address is not too many");
    }
}
