//! The sessions that are open at this pod: where to put messages for them.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::grpc::{Outbox, SessionId};
use crate::telemetry::metrics;

/// The table. Never awaited with its lock.
#[derive(Default)]
pub struct Sessions(Mutex<HashMap<SessionId, Outbox>>);

// === impl Sessions ===

impl Sessions {
    /// A session was admitted.
    pub fn insert(&self, session: SessionId, outbox: Outbox) {
        let mut sessions = self.0.lock().expect("nobody panics with it");
        sessions.insert(session, outbox);
        metrics().sessions.set(sessions.len() as f64);
    }

    /// A session has ended; false if it was never admitted, or is told twice.
    pub fn remove(&self, session: SessionId) -> bool {
        let mut sessions = self.0.lock().expect("nobody panics with it");
        let known = sessions.remove(&session).is_some();
        metrics().sessions.set(sessions.len() as f64);
        known
    }

    /// Where to put messages for a session, while it is open.
    pub fn get(&self, session: SessionId) -> Option<Outbox> {
        self.0.lock().expect("nobody panics with it").get(&session).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Outbox> {
        self.0.lock().expect("nobody panics with it").values().cloned().collect()
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.0.lock().expect("nobody panics with it").len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
