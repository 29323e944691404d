//! What has been seen unchanged, and for how long, on this pod's own clock.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

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

    /// Takes a look; answers those that have been the same in every look for long enough, and watches them anew.
    pub(super) fn unchanged(&mut self, now_seen: impl IntoIterator<Item = (K, V)>) -> Vec<(K, V)> {
        self.unchanged_at(Instant::now(), now_seen)
    }

    fn unchanged_at(&mut self, now: Instant, now_seen: impl IntoIterator<Item = (K, V)>) -> Vec<(K, V)> {
        let mut before = std::mem::take(&mut self.seen);
        let mut unchanged = Vec::new();
        for (key, value) in now_seen {
            let since = match before.remove(&key) {
                Some((same, since)) if same == value => since,
                _ => now,
            };
            if now.duration_since(since) >= self.long_enough {
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
        assert!(watch.unchanged_at(at(0), [("same", 1), ("changes", 1), ("goes", 1)]).is_empty());
        assert!(watch.unchanged_at(at(2), [("same", 1), ("changes", 2)]).is_empty());
        let unchanged = watch.unchanged_at(at(3), [("same", 1), ("changes", 2), ("goes", 1)]);
        assert_eq!(unchanged, [("same", 1)]);
        assert!(watch.unchanged_at(at(4), [("same", 1)]).is_empty(), "it is watched anew");
    }
}
