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
        let long_enough = self.long_enough;
        self.unchanged_at(asked, Instant::now(), now_seen.into_iter().map(|(key, value)| (key, value, long_enough)))
    }

    /// The same, where some must have been the same for longer than others: at least for as long as stands with them.
    pub(super) fn unchanged_for(
        &mut self,
        asked: Instant,
        now_seen: impl IntoIterator<Item = (K, V, Duration)>,
    ) -> Vec<(K, V)> {
        let least = self.long_enough;
        let now_seen = now_seen.into_iter().map(|(key, value, long_enough)| (key, value, long_enough.max(least)));
        self.unchanged_at(asked, Instant::now(), now_seen)
    }

    fn unchanged_at(
        &mut self,
        asked: Instant,
        now: Instant,
        now_seen: impl IntoIterator<Item = (K, V, Duration)>,
    ) -> Vec<(K, V)> {
        let mut before = std::mem::take(&mut self.seen);
        let mut unchanged = Vec::new();
        for (key, value, long_enough) in now_seen {
            let since = match before.remove(&key) {
                Some((same, since)) if same == value => since,
                _ => now,
            };
            if asked.saturating_duration_since(since) >= long_enough {
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

    const LONG: Duration = Duration::from_secs(3);

    #[test]
    fn only_what_stays_the_same_in_every_look_is_told() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut watch = Watch::new(LONG);
        let mut look = |s, seen: &[(&'static str, i32)]| {
            watch.unchanged_at(at(s), at(s), seen.iter().map(|(key, value)| (*key, *value, LONG)))
        };
        assert!(look(0, &[("same", 1), ("changes", 1), ("goes", 1)]).is_empty());
        assert!(look(2, &[("same", 1), ("changes", 2)]).is_empty());
        assert_eq!(look(3, &[("same", 1), ("changes", 2), ("goes", 1)]), [("same", 1)]);
        assert!(look(4, &[("same", 1)]).is_empty(), "it is watched anew");
    }

    #[test]
    fn the_time_that_looks_take_does_not_count() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut watch = Watch::new(LONG);
        let one = [("one", 1, LONG)];
        assert!(watch.unchanged_at(at(0), at(5), one).is_empty(), "seen at any time until the answer");
        assert!(watch.unchanged_at(at(7), at(20), one).is_empty(), "seen at any time since the question");
        assert_eq!(watch.unchanged_at(at(8), at(8), one), [("one", 1)]);
    }
}
