//! What has been seen unchanged, and for how long, on this pod's own clock.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// Watches things by key; each look must list all that are to be watched.
pub(super) struct Watch<K, V> {
    long_enough: Duration,
    seen: HashMap<K, (V, Instant)>,
}

// === impl Watch ===

impl<K: Hash + Eq + Clone, V: PartialEq + Clone> Watch<K, V> {
    pub(super) fn new(long_enough: Duration) -> Self {
        Self { long_enough, seen: HashMap::new() }
    }

    /// Nothing was seen so far.
    pub(super) fn forget(&mut self) {
        self.seen.clear();
    }

    /// Takes a look, which was asked for at `asked`; answers those that have been the same in every look for long enough, and
    /// watches them anew. A look shows how things were at some time between its question and its answer: so it has been long
    /// enough when it is from the answer of the first look to the question of this one.
    pub(super) fn unchanged(&mut self, asked: Instant, now_seen: impl IntoIterator<Item = (K, V)>) -> Vec<(K, V)> {
        self.unchanged_at(asked, Instant::now(), now_seen)
    }

    fn unchanged_at(
        &mut self,
        asked: Instant,
        now: Instant,
        now_seen: impl IntoIterator<Item = (K, V)>,
    ) -> Vec<(K, V)> {
        let mut before = std::mem::take(&mut self.seen);
        let mut unchanged = Vec::new();
        for (key, value) in now_seen {
            let since = match before.remove(&key) {
                Some((same, since)) if same == value => since,
                _ => now,
            };
            if asked.saturating_duration_since(since) >= self.long_enough {
                unchanged.push((key, value));
            } else {
                self.seen.insert(key, (value, since));
            }
        }
        unchanged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_the_same_in_every_look_is_told() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut watch = Watch::new(Duration::from_secs(3));
        assert!(watch.unchanged_at(at(0), at(0), [("same", 1), ("changes", 1), ("goes", 1)]).is_empty());
        assert!(watch.unchanged_at(at(2), at(2), [("same", 1), ("changes", 2)]).is_empty());
        let unchanged = watch.unchanged_at(at(3), at(3), [("same", 1), ("changes", 2), ("goes", 1)]);
        assert_eq!(unchanged, [("same", 1)]);
        assert!(watch.unchanged_at(at(4), at(4), [("same", 1)]).is_empty(), "it is watched anew");
    }

    #[test]
    fn the_time_that_looks_take_does_not_count() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut watch = Watch::new(Duration::from_secs(3));
        assert!(watch.unchanged_at(at(0), at(5), [("one", 1)]).is_empty(), "seen at any time until the answer");
        assert!(watch.unchanged_at(at(7), at(20), [("one", 1)]).is_empty(), "seen at any time since the question");
        assert_eq!(watch.unchanged_at(at(8), at(8), [("one", 1)]), [("one", 1)]);
    }
}
