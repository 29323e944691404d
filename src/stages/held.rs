//! The jobs this pod's sessions hold: a table by lease.
//!
//! Redis has the truth; this table says which session to tell, and lets a runner speak only of its own jobs. No call is
//! made and nothing is awaited with its lock.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::grpc::{Outbox, SessionId};
use crate::job::{JobId, Lease, LeaseId};
use crate::telemetry::metrics;

/// The table.
#[derive(Default)]
pub struct Held(Mutex<HashMap<LeaseId, Entry>>);

struct Entry {
    job_id: JobId,
    session: SessionId,
    outbox: Outbox,
    phase: Phase,
    since: Instant,
    told_to_cancel: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Pushed; the runner has yet to answer.
    Assigned,
    /// The runner said yes; the start is on its way to Redis.
    Accepted,
    /// Told to start, or resumed.
    Running,
}

// === impl Held ===

impl Held {
    /// A job was pushed to a session.
    pub fn assign(&self, lease: Lease, session: SessionId, outbox: Outbox) {
        self.insert(lease, session, outbox, Phase::Assigned);
    }

    /// A session brought a running job along. One that was let in late takes it from no newer session.
    pub fn resume(&self, lease: Lease, session: SessionId, outbox: Outbox) {
        self.insert(lease, session, outbox, Phase::Running);
    }

    /// The session accepts; answers its outbox and how long it took, unless it was not asked.
    pub fn accept(&self, lease: Lease, session: SessionId) -> Option<(Outbox, Duration)> {
        let mut entries = self.lock();
        let entry = entries.get_mut(&lease.lease_id)?;
        if entry.session != session || entry.job_id != lease.job_id || entry.phase != Phase::Assigned {
            return None;
        }
        entry.phase = Phase::Accepted;
        Some((entry.outbox.clone(), entry.since.elapsed()))
    }

    /// Redis has the start.
    pub fn started(&self, lease_id: LeaseId) {
        if let Some(entry) = self.lock().get_mut(&lease_id) {
            entry.phase = Phase::Running;
        }
    }

    /// Whether the session holds this job, pushed, accepted or running.
    pub fn holds(&self, lease: Lease, session: SessionId) -> bool {
        let entries = self.lock();
        let entry = entries.get(&lease.lease_id);
        entry.is_some_and(|entry| entry.session == session && entry.job_id == lease.job_id)
    }

    /// Whether the session holds this job and has not been told to start it.
    pub fn is_undelivered(&self, lease: Lease, session: SessionId) -> bool {
        let entries = self.lock();
        let entry = entries.get(&lease.lease_id);
        entry.is_some_and(|entry| {
            entry.session == session && entry.job_id == lease.job_id && entry.phase == Phase::Assigned
        })
    }

    /// Whether a runner may still decline this job: it was not told to start it.
    pub fn is_mine_to_decline(&self, lease: Lease, session: SessionId) -> bool {
        let entries = self.lock();
        let entry = entries.get(&lease.lease_id);
        entry.is_some_and(|entry| {
            entry.session == session && entry.job_id == lease.job_id && entry.phase != Phase::Running
        })
    }

    /// Whether a job's start is on its way to Redis.
    pub fn is_starting(&self, lease_id: LeaseId) -> bool {
        self.lock().get(&lease_id).is_some_and(|entry| entry.phase != Phase::Running)
    }

    /// The job is not held any more; answers who held it.
    pub fn remove(&self, lease_id: LeaseId) -> Option<Outbox> {
        let mut entries = self.lock();
        let entry = entries.remove(&lease_id)?;
        metrics().jobs_held.set(entries.len() as f64);
        Some(entry.outbox)
    }

    /// Who is to be told to cancel this job; once.
    pub fn cancel(&self, lease_id: LeaseId) -> Option<Outbox> {
        let mut entries = self.lock();
        let entry = entries.get_mut(&lease_id)?;
        (!std::mem::replace(&mut entry.told_to_cancel, true)).then(|| entry.outbox.clone())
    }

    /// The session has ended: forgets its jobs and answers those that were pushed and not accepted.
    pub fn forget(&self, session: SessionId) -> Vec<Lease> {
        let mut undelivered = Vec::new();
        let mut entries = self.lock();
        entries.retain(|lease_id, entry| {
            if entry.session == session && entry.phase == Phase::Assigned {
                undelivered.push(Lease { job_id: entry.job_id, lease_id: *lease_id });
            }
            entry.session != session
        });
        metrics().jobs_held.set(entries.len() as f64);
        undelivered
    }

    /// Pushed jobs whose runners have not answered for `timeout`.
    pub fn overdue(&self, timeout: Duration) -> Vec<(Lease, SessionId)> {
        let entries = self.lock();
        let overdue =
            entries.iter().filter(|(_, entry)| entry.phase == Phase::Assigned && entry.since.elapsed() >= timeout);
        overdue.map(|(lease_id, entry)| (Lease { job_id: entry.job_id, lease_id: *lease_id }, entry.session)).collect()
    }

    /// Jobs pushed or accepted that do not run yet.
    pub fn undelivered(&self) -> usize {
        self.lock().values().filter(|entry| entry.phase != Phase::Running).count()
    }

    fn insert(&self, lease: Lease, session: SessionId, outbox: Outbox, phase: Phase) {
        let Lease { job_id, lease_id } = lease;
        let entry = Entry { job_id, session, outbox, phase, since: Instant::now(), told_to_cancel: false };
        let mut entries = self.lock();
        if entries.get(&lease_id).is_some_and(|held| held.session > session) {
            return;
        }
        entries.insert(lease_id, entry);
        metrics().jobs_held.set(entries.len() as f64);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<LeaseId, Entry>> {
        self.0.lock().expect("nobody panics with it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_was_let_in_late_takes_no_job_from_a_newer_one() {
        let held = Held::default();
        let (older, newer) = (SessionId::next(), SessionId::next());
        let lease = Lease { job_id: JobId(1), lease_id: LeaseId::random(0) };
        held.resume(lease, newer, Outbox::for_tests(newer));
        held.resume(lease, older, Outbox::for_tests(older));
        assert!(held.holds(lease, newer) && !held.holds(lease, older));
        held.forget(older);
        assert!(held.holds(lease, newer));
        // On the next session it is that one's.
        let newest = SessionId::next();
        held.resume(lease, newest, Outbox::for_tests(newest));
        assert!(held.holds(lease, newest));
    }
}
