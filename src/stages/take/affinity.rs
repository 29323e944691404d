//! Which managers jobs like: the one that had the last job with their affinity key.
//!
//! Redis remembers it for all pods, and `take` gives the jobs it takes to the managers they like. It can only choose among the
//! slots it was offered, so this pod must offer the right ones: for a job that is about to be queued, by what it gave its own
//! runners; for a wake, by what the letter says.

use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use crate::redis::Manager;
use crate::runner::Lane;

/// How many keys are remembered here; of older ones Redis still knows.
const KEYS_MAX: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");
/// How many wakes' wishes are kept until a take answers them.
const LIKED_MAX: usize = 64;

/// What this pod knows of it.
pub(super) struct Affinity {
    memory: Duration,
    /// By key, who had its last job here, and when.
    last: LruCache<String, (Manager, Instant)>,
    /// Managers that jobs in woken lanes like.
    liked: Vec<(u16, Lane, Manager)>,
}

// === impl Affinity ===

impl Affinity {
    pub(super) fn new(memory: Duration) -> Self {
        Self { memory, last: LruCache::new(KEYS_MAX), liked: Vec::new() }
    }

    /// A job with this key was given to a manager.
    pub(super) fn remember(&mut self, key: String, manager: Manager) {
        if !self.memory.is_zero() {
            self.last.put(key, (manager, Instant::now()));
        }
    }

    /// Who had the last job with this key here.
    pub(super) fn manager_of(&self, key: &str) -> Option<&Manager> {
        let (manager, since) = self.last.peek(key)?;
        (since.elapsed() < self.memory).then_some(manager)
    }

    /// A job in this lane, which is about to be woken, likes a manager.
    pub(super) fn likes(&mut self, partition: u16, lane: Lane, manager: Manager) {
        if self.liked.len() == LIKED_MAX {
            self.liked.remove(0);
        }
        self.liked.push((partition, lane, manager));
    }

    /// The managers that jobs in woken lanes of a partition like.
    pub(super) fn liked(&self, partition: u16) -> impl Iterator<Item = &Manager> {
        self.liked.iter().filter(move |liked| liked.0 == partition).map(|liked| &liked.2)
    }

    /// Those of these lanes, which a take asks now.
    pub(super) fn asked(&mut self, partition: u16, lanes: &[Lane]) -> Vec<Manager> {
        let asked = self.liked.extract_if(.., |liked| liked.0 == partition && lanes.contains(&liked.1));
        asked.map(|liked| liked.2).collect()
    }
}
