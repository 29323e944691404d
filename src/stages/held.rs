//! The jobs this pod's sessions hold: a table by lease.
//!
//! Redis has the truth; this table says which session to tell, and lets a runner speak only of its own jobs. No call is
//! made and nothing is awaited with its lock.
//!
//! And it remembers what Redis knew of what runs here, and of what ended or left lately, should Redis lose its data.

mod left;

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::grpc::{Door, Outbox, SessionId};
use crate::job::{JobId, Lease, LeaseId};
use crate::redis::{Record, Remembered, Report};
use crate::telemetry::metrics;
use left::Left;

/// The table.
#[derive(Default)]
pub struct Held(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    held: HashMap<LeaseId, Entry>,
    left: Left,
}

struct Entry {
    job_id: JobId,
    session: SessionId,
    outbox: Outbox,
    phase: Phase,
    since: Instant,
    told_to_cancel: bool,
    /// What Redis knows of it, once it runs.
    record: Record,
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
        self.insert(lease, session, outbox, Phase::Assigned, Record::default());
    }

    /// A session brought a running job along. One that was let in late takes it from no newer session.
    pub fn resume(&self, lease: Lease, session: SessionId, outbox: Outbox, record: Record) {
        self.insert(lease, session, outbox, Phase::Running, record);
    }

    /// The session accepts; answers its outbox and how long it took, unless it was not asked.
    pub fn accept(&self, lease: Lease, session: SessionId) -> Option<(Outbox, Duration)> {
        let mut tables = self.lock();
        let entry = tables.held.get_mut(&lease.lease_id)?;
        if entry.session != session || entry.job_id != lease.job_id || entry.phase != Phase::Assigned {
            return None;
        }
        entry.phase = Phase::Accepted;
        Some((entry.outbox.clone(), entry.since.elapsed()))
    }

    /// Redis has the start.
    pub fn started(&self, lease_id: LeaseId, record: Record) {
        if let Some(entry) = self.lock().held.get_mut(&lease_id) {
            entry.phase = Phase::Running;
            entry.record = record;
        }
    }

    /// Whether the session holds this job, pushed, accepted or running.
    pub fn holds(&self, lease: Lease, session: SessionId) -> bool {
        let tables = self.lock();
        let entry = tables.held.get(&lease.lease_id);
        entry.is_some_and(|entry| entry.session == session && entry.job_id == lease.job_id)
    }

    /// Whether the session holds this job and has not been told to start it.
    pub fn is_undelivered(&self, lease: Lease, session: SessionId) -> bool {
        let tables = self.lock();
        let entry = tables.held.get(&lease.lease_id);
        entry.is_some_and(|entry| {
            entry.session == session && entry.job_id == lease.job_id && entry.phase == Phase::Assigned
        })
    }

    /// Whether a runner may still decline this job: it was not told to start it.
    pub fn is_mine_to_decline(&self, lease: Lease, session: SessionId) -> bool {
        let tables = self.lock();
        let entry = tables.held.get(&lease.lease_id);
        entry.is_some_and(|entry| {
            entry.session == session && entry.job_id == lease.job_id && entry.phase != Phase::Running
        })
    }

    /// Whether a job's start is on its way to Redis.
    pub fn is_starting(&self, lease_id: LeaseId) -> bool {
        self.lock().held.get(&lease_id).is_some_and(|entry| entry.phase != Phase::Running)
    }

    /// Rails says that the runner runs it: it speaks of that job to Rails alone from now on. Answers its outbox and how long that took.
    pub fn runs_for_rails(&self, lease: Lease) -> Option<(Outbox, Duration)> {
        let mut tables = self.lock();
        tables.held.get(&lease.lease_id).filter(|entry| entry.outbox.door() == Door::GitLab)?;
        let entry = tables.remove(lease)?;
        Some((entry.outbox, entry.since.elapsed()))
    }

    /// The job is not held any more; answers who held it. Nobody held it under the lease of another job.
    pub fn remove(&self, lease: Lease) -> Option<Outbox> {
        let mut tables = self.lock();
        tables.left.forget(lease);
        Some(tables.remove(lease)?.outbox)
    }

    /// The end of the job is recorded. It is remembered for `keep`.
    pub fn ended(&self, lease: Lease, end: Report, keep: Duration) {
        let mut tables = self.lock();
        let Some(Entry { job_id, record, .. }) = tables.remove(lease) else { return };
        if record != Record::default() {
            let job = Remembered { job_id, record, end: Some(end.into()) };
            tables.left.put(Instant::now(), keep, lease.lease_id, job);
        }
    }

    /// What a Redis that has lost a partition must hear of: what runs here, and what ended or left within `keep`.
    pub fn remembered(&self, partition: u16, keep: Duration) -> Vec<(LeaseId, Remembered)> {
        let mut tables = self.lock();
        let Tables { held, left } = &mut *tables;
        let running = held.iter().filter(|(_, entry)| entry.phase == Phase::Running);
        let running = running.map(|(lease_id, entry)| (*lease_id, entry.remembered()));
        let left = left.all(Instant::now(), keep).map(|(lease_id, job)| (lease_id, job.clone()));
        running.chain(left).filter(|(lease_id, _)| lease_id.partition() == partition).collect()
    }

    /// Who is to be told to cancel this job; once.
    pub fn cancel(&self, lease_id: LeaseId) -> Option<Outbox> {
        let mut tables = self.lock();
        let entry = tables.held.get_mut(&lease_id)?;
        (!std::mem::replace(&mut entry.told_to_cancel, true)).then(|| entry.outbox.clone())
    }

    /// The session has ended: answers its jobs that were pushed and not accepted. Those that run are remembered for `keep`: the
    /// runner may come back with them.
    pub fn forget(&self, session: SessionId, keep: Duration) -> Vec<Lease> {
        let (mut undelivered, now) = (Vec::new(), Instant::now());
        let mut tables = self.lock();
        let Tables { held, left } = &mut *tables;
        for (lease_id, entry) in held.extract_if(|_, entry| entry.session == session) {
            match entry.phase {
                Phase::Assigned => undelivered.push(Lease { job_id: entry.job_id, lease_id }),
                Phase::Accepted => {}
                Phase::Running => left.put(now, keep, lease_id, entry.remembered()),
            }
        }
        metrics().jobs_held.set(held.len() as f64);
        undelivered
    }

    /// Pushed jobs whose runners have not answered for the time that they have, by their door.
    pub fn overdue(&self, timeout: impl Fn(Door) -> Duration) -> Vec<(Lease, SessionId)> {
        let tables = self.lock();
        let is_overdue = |entry: &Entry| entry.since.elapsed() >= timeout(entry.outbox.door());
        let overdue = tables.held.iter().filter(|(_, entry)| entry.phase == Phase::Assigned && is_overdue(entry));
        overdue.map(|(lease_id, entry)| (Lease { job_id: entry.job_id, lease_id: *lease_id }, entry.session)).collect()
    }

    /// Jobs pushed or accepted that do not run yet.
    pub fn undelivered(&self) -> usize {
        self.lock().held.values().filter(|entry| entry.phase != Phase::Running).count()
    }

    fn insert(&self, lease: Lease, session: SessionId, outbox: Outbox, phase: Phase, record: Record) {
        let Lease { job_id, lease_id } = lease;
        let entry = Entry { job_id, session, outbox, phase, since: Instant::now(), told_to_cancel: false, record };
        let mut tables = self.lock();
        if tables.held.get(&lease_id).is_some_and(|held| held.session > session) {
            return;
        }
        tables.left.forget(lease);
        tables.held.insert(lease_id, entry);
        metrics().jobs_held.set(tables.held.len() as f64);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tables> {
        self.0.lock().expect("nobody panics with it")
    }
}

// === impl Tables ===

impl Tables {
    fn remove(&mut self, lease: Lease) -> Option<Entry> {
        self.held.get(&lease.lease_id).filter(|entry| entry.job_id == lease.job_id)?;
        let entry = self.held.remove(&lease.lease_id)?;
        metrics().jobs_held.set(self.held.len() as f64);
        Some(entry)
    }
}

// === impl Entry ===

impl Entry {
    fn remembered(&self) -> Remembered {
        Remembered { job_id: self.job_id, record: self.record.clone(), end: None }
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
        held.resume(lease, newer, Outbox::for_tests(newer), Record::default());
        held.resume(lease, older, Outbox::for_tests(older), Record::default());
        assert!(held.holds(lease, newer) && !held.holds(lease, older));
        held.forget(older, Duration::ZERO);
        assert!(held.holds(lease, newer));
        // On the next session it is that one's.
        let newest = SessionId::next();
        held.resume(lease, newest, Outbox::for_tests(newest), Record::default());
        assert!(held.holds(lease, newest));
    }

    #[test]
    fn what_is_said_of_another_job_under_a_lease_removes_nothing() {
        let (held, session) = (Held::default(), SessionId::next());
        let lease = Lease { job_id: JobId(1), lease_id: LeaseId::random(0) };
        held.assign(lease, session, Outbox::for_tests(session));
        assert!(held.remove(Lease { job_id: JobId(2), ..lease }).is_none());
        assert!(held.holds(lease, session));
        assert!(held.remove(lease).is_some() && !held.holds(lease, session));
    }
}
