//! Sessions that are left alone for a while.
//!
//! A runner that declines a job, does not answer in time, or goes away with it gets no other for a while: it would soon have
//! failed to take delivery of many, or of the same one as often as there is patience with a job.

use tokio::time::Instant;

use super::Fleet;
use crate::grpc::SessionId;
use crate::redis::Manager;

impl Fleet {
    /// Leaves a session alone until then.
    pub(in crate::stages::take) fn back_off(&mut self, session: SessionId, until: Instant) {
        if let Some(member) = self.sessions.get_mut(&session) {
            member.back_off = Some(until);
            self.backing_off.insert((until, session));
        }
        self.rank(session);
    }

    /// Leaves a manager alone until then: the session that it has, and those that it opens meanwhile.
    pub(in crate::stages::take) fn back_off_manager(&mut self, manager: Manager, until: Instant) {
        if let Some(session) = self.managers.get(&manager) {
            self.back_off(*session, until);
        }
        self.deserters.insert(manager, until);
    }

    /// A session that was opened is left alone if its manager is.
    pub(super) fn remember_back_off(&mut self, manager: &Manager, session: SessionId) {
        if let Some(until) = self.deserters.get(manager) {
            self.back_off(session, *until);
        }
    }

    /// Sessions whose time alone is over may be offered again.
    pub(in crate::stages::take) fn end_back_offs(&mut self, now: Instant) {
        while let Some((until, session)) = self.backing_off.first().copied().filter(|(until, _)| *until <= now) {
            self.backing_off.pop_first();
            if let Some(member) = self.sessions.get_mut(&session).filter(|member| member.back_off == Some(until)) {
                member.back_off = None;
                self.rank(session);
            }
        }
    }

    /// Forgets managers whose time alone is over; now and then.
    pub(in crate::stages::take) fn forget_deserters(&mut self, now: Instant) {
        self.deserters.retain(|_, until| *until > now);
    }

    /// When the next session's time alone is over.
    pub(in crate::stages::take) fn next_back_off(&self) -> Option<Instant> {
        self.backing_off.first().map(|(until, _)| *until)
    }
}
