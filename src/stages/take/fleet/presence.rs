//! What has changed of the fleet since it was told last, for the presence stage.

use std::collections::HashSet;

use super::{Fleet, Member};
use crate::explain::facts::Seen;
use crate::grpc::SessionId;
use crate::job::{Name, RunnerId};
use crate::redis::Change;

/// How many managers are told of at once; the others next time. What a pod with its 20,000 sessions all busy has told in 10 s.
const CHANGES_MAX: usize = 2_000;

/// Sessions of which something changed, and managers that left.
#[derive(Default)]
pub(super) struct Touched {
    sessions: HashSet<SessionId>,
    left: Vec<(RunnerId, Name)>,
}

// === impl Touched ===

impl Touched {
    pub(super) fn touch(&mut self, session: SessionId) {
        self.sessions.insert(session);
    }

    pub(super) fn leaves(&mut self, manager: (RunnerId, Name)) {
        self.left.push(manager);
    }
}

// === impl Member ===

impl Member {
    /// Slots that are offered in a take under way are free all the same: they come back, or a job is in them.
    fn seen(&self) -> Seen {
        let free = self.free().saturating_add(self.offered).min(self.said_free);
        Seen { features: self.features.clone(), free, backing_off: self.back_off.is_some() }
    }
}

// === impl Fleet ===

impl Fleet {
    /// What is to be told, at most so much of it that it stays a short call.
    pub(in super::super) fn changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let left = self.touched.left.len().min(CHANGES_MAX);
        for (runner_id, system_id) in self.touched.left.drain(..left).collect::<Vec<_>>() {
            // One that is back on another session stays.
            if !self.managers.contains_key(&(runner_id, system_id.clone())) {
                changes.push(Change { runner_id, system_id, seen: None, info: "".into() });
            }
        }
        let some: Vec<SessionId> = self.touched.sessions.iter().copied().take(CHANGES_MAX - left).collect();
        for session in some {
            self.touched.sessions.remove(&session);
            let Some(member) = self.sessions.get(&session) else { continue };
            let (runner_id, system_id) = (member.record.runner_id(), member.system_id.clone());
            // One that a newer session of its manager has replaced is on its way out.
            if self.managers.get(&(runner_id, system_id.clone())) == Some(&session) {
                changes.push(Change { runner_id, system_id, seen: Some(member.seen()), info: member.info.clone() });
            }
        }
        changes
    }
}
