//! The jobs this runner holds, over all sessions.
//!
//! Invariants:
//! 1. A job occupies a slot from its acceptance until nothing of it runs any more. One whose outcome
//!    waits for the router's acknowledgement occupies none.
//! 2. At most [`HELD_MAX`] jobs are held: with the acknowledgements outstanding, free slots run out.
//! 3. A job is held under one lease. The router knows better which: a newer lease ends the older one.

use std::collections::HashMap;

use super::executor::{Assignment, Outcome};
use super::fence::BootTime;
use crate::job::{JobId, Lease, LeaseId};

/// The most jobs held at once, whatever their stage: what `Hello` and `Beat` may list. Some 2 MB; at
/// 5,000 jobs/s the acknowledgements may lag by 2 s before slots are held back.
pub(super) const HELD_MAX: usize = 10_000;

/// One job of this runner's.
#[derive(Debug)]
pub(super) struct Held {
    lease_id: LeaseId,
    /// How far it is.
    pub(super) stage: Stage,
    /// When nothing of it may run any more.
    pub(super) fence: BootTime,
    /// The first beat of this session that lists it.
    pub(super) listed_from: u64,
}

/// How far a job is.
#[derive(Debug)]
pub(super) enum Stage {
    /// Waits for `Start`; if it was handed back (at shutdown), for `Revoked` or a `Start` that crossed that.
    Accepted { assignment: Assignment, declined: bool },
    /// Its executor runs. Killed at `cancel_by` (the grace of a cancel) and at `overdue` (the job's own limit).
    Running { cancel_by: Option<BootTime>, overdue: BootTime },
    /// Its executor was told to stop at once; `report` is what the router will hear, nothing if the job is
    /// no longer this runner's.
    Dying { report: Option<Outcome> },
    /// Nothing of it runs; the outcome waits for its acknowledgement. It is said again when the beat `repeat_at` of this
    /// session is answered first.
    Finished { outcome: Outcome, repeat_at: u64 },
}

/// The jobs by id.
#[derive(Debug, Default)]
pub(super) struct Table {
    jobs: HashMap<JobId, Held>,
    occupied: usize,
}

// === impl Held ===

impl Held {
    /// Whether the router counts it as this runner's: then `Hello` and `Beat` list it.
    pub(super) fn is_ours(&self) -> bool {
        !matches!(self.stage, Stage::Dying { report: None })
    }
}

// === impl Stage ===

impl Stage {
    fn occupies(&self) -> bool {
        !matches!(self, Stage::Finished { .. })
    }
}

// === impl Table ===

impl Table {
    /// Adds a job, or replaces the one of an older lease.
    pub(super) fn insert(&mut self, lease: Lease, stage: Stage, fence: BootTime, listed_from: u64) {
        self.occupied += usize::from(stage.occupies());
        let held = Held { lease_id: lease.lease_id, stage, fence, listed_from };
        if let Some(old) = self.jobs.insert(lease.job_id, held) {
            self.occupied -= usize::from(old.stage.occupies());
        }
    }

    /// The job, if it is held under just this lease.
    pub(super) fn get_mut(&mut self, lease: &Lease) -> Option<&mut Held> {
        self.jobs.get_mut(&lease.job_id).filter(|held| held.lease_id == lease.lease_id)
    }

    /// The job's lease and stage, whatever the lease is.
    pub(super) fn of_job(&self, job_id: JobId) -> Option<(Lease, &Stage)> {
        self.jobs.get(&job_id).map(|held| (Lease { job_id, lease_id: held.lease_id }, &held.stage))
    }

    /// Moves a job on; gives back the stage it had.
    pub(super) fn set(&mut self, lease: &Lease, stage: Stage) -> Option<Stage> {
        let after = usize::from(stage.occupies());
        let held = self.get_mut(lease)?;
        let old = std::mem::replace(&mut held.stage, stage);
        self.occupied = self.occupied + after - usize::from(old.occupies());
        Some(old)
    }

    /// Forgets a job.
    pub(super) fn remove(&mut self, lease: &Lease) {
        if self.get_mut(lease).is_some()
            && let Some(held) = self.jobs.remove(&lease.job_id)
        {
            self.occupied -= usize::from(held.stage.occupies());
        }
    }

    /// All jobs, with their leases.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Lease, &Held)> {
        self.jobs.iter().map(|(job_id, held)| (Lease { job_id: *job_id, lease_id: held.lease_id }, held))
    }

    /// All jobs, to change anything but their stage.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Held> {
        self.jobs.values_mut()
    }

    /// The jobs that wait for `Start`: whether each was handed back.
    pub(super) fn accepted_mut(&mut self) -> impl Iterator<Item = (Lease, &mut bool)> {
        self.jobs.iter_mut().filter_map(|(job_id, held)| match &mut held.stage {
            Stage::Accepted { declined, .. } => Some((Lease { job_id: *job_id, lease_id: held.lease_id }, declined)),
            _ => None,
        })
    }

    /// The leases of the jobs that match, so that the table can be changed while walking them.
    pub(super) fn leases_where(&self, matches: impl Fn(&Held) -> bool) -> Vec<Lease> {
        self.iter().filter(|(_, held)| matches(held)).map(|(lease, _)| lease).collect()
    }

    /// How many jobs occupy a slot.
    pub(super) fn occupied(&self) -> usize {
        self.occupied
    }

    /// How many more jobs could be taken with so many slots.
    pub(super) fn free(&self, slots: u32) -> u32 {
        let slots_free = (slots as usize).saturating_sub(self.occupied);
        let room = HELD_MAX.saturating_sub(self.jobs.len());
        slots_free.min(room).try_into().expect("at most 10,000")
    }

    /// Whether no job is held.
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(job_id: u64) -> Lease {
        Lease { job_id: JobId(job_id), lease_id: LeaseId::random(0) }
    }

    fn running() -> Stage {
        Stage::Running { cancel_by: None, overdue: BootTime(u64::MAX) }
    }

    fn finished() -> Stage {
        Stage::Finished { outcome: Outcome::success(), repeat_at: u64::MAX }
    }

    #[test]
    fn a_finished_job_gives_its_slot_back_before_it_is_acknowledged() {
        let (mut table, job) = (Table::default(), lease(1));
        table.insert(job, running(), BootTime(0), 1);
        assert_eq!(table.free(2), 1);
        table.set(&job, finished());
        assert_eq!((table.free(2), table.is_empty()), (2, false));
        table.remove(&job);
        assert_eq!((table.free(2), table.is_empty()), (2, true));
    }

    #[test]
    fn another_lease_of_the_same_job_touches_nothing() {
        let (mut table, job) = (Table::default(), lease(1));
        table.insert(job, running(), BootTime(0), 1);
        assert!(table.set(&lease(1), Stage::Dying { report: None }).is_none());
        table.remove(&lease(1));
        assert_eq!(table.occupied(), 1);
    }

    #[test]
    fn unacknowledged_outcomes_hold_slots_back_at_the_limit() {
        let mut table = Table::default();
        for job_id in 0..HELD_MAX as u64 - 1 {
            table.insert(lease(job_id), finished(), BootTime(0), 1);
        }
        assert_eq!((table.occupied(), table.free(8)), (0, 1));
    }

    #[test]
    fn a_newer_lease_takes_the_place_of_the_older_one() {
        let (mut table, older, newer) = (Table::default(), lease(1), lease(1));
        table.insert(older, finished(), BootTime(0), 1);
        table.insert(newer, running(), BootTime(0), 1);
        assert_eq!(table.occupied(), 1);
        assert!(table.get_mut(&older).is_none() && table.get_mut(&newer).is_some());
    }
}
