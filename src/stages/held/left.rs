//! What ran with this pod and does not any more: jobs whose runner has left, and those that ended, for as long as a Redis that
//! loses its data must hear of them again.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::job::{Lease, LeaseId};
use crate::redis::Remembered;

/// How many are remembered at most, some 20 MB: what a pod ends in a lease at a thousand jobs a second.
const LEFT_MAX: usize = 65_536;

/// The jobs, the oldest first.
#[derive(Default)]
pub(super) struct Left {
    jobs: HashMap<LeaseId, (Instant, Remembered)>,
    order: VecDeque<(Instant, LeaseId)>,
}

// === impl Left ===

impl Left {
    /// Remembers a job for `keep`, in place of what was known of its lease.
    pub(super) fn put(&mut self, now: Instant, keep: Duration, lease_id: LeaseId, job: Remembered) {
        self.drop_older(now, keep);
        self.jobs.insert(lease_id, (now, job));
        self.order.push_back((now, lease_id));
        while self.order.len() > LEFT_MAX {
            self.drop_oldest();
        }
    }

    /// It is nobody's any more.
    pub(super) fn forget(&mut self, lease: Lease) {
        if self.jobs.get(&lease.lease_id).is_some_and(|(_, job)| job.job_id == lease.job_id) {
            self.jobs.remove(&lease.lease_id);
        }
    }

    /// Those of the last `keep`.
    pub(super) fn all(&mut self, now: Instant, keep: Duration) -> impl Iterator<Item = (LeaseId, &Remembered)> {
        self.drop_older(now, keep);
        self.jobs.iter().map(|(lease_id, (_, job))| (*lease_id, job))
    }

    fn drop_older(&mut self, now: Instant, keep: Duration) {
        while self.order.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > keep) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some((at, lease_id)) = self.order.pop_front() else { return };
        if self.jobs.get(&lease_id).is_some_and(|(put, _)| *put == at) {
            self.jobs.remove(&lease_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobId;

    const KEEP: Duration = Duration::from_secs(60);

    fn job(id: u64) -> Remembered {
        Remembered { job_id: JobId(id), record: Default::default(), end: None }
    }

    fn ids(left: &mut Left, now: Instant) -> Vec<u64> {
        let mut ids: Vec<u64> = left.all(now, KEEP).map(|(_, job)| job.job_id.0).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn a_job_is_remembered_for_its_time_from_when_it_was_put_last() {
        let (mut left, start) = (Left::default(), Instant::now());
        let leases: Vec<LeaseId> = (0..3).map(|_| LeaseId::random(0)).collect();
        for (nth, lease_id) in leases.iter().enumerate() {
            left.put(start + Duration::from_secs(nth as u64), KEEP, *lease_id, job(nth as u64));
        }
        left.forget(Lease { job_id: JobId(1), lease_id: leases[1] });
        left.put(start + Duration::from_secs(30), KEEP, leases[0], job(10));
        assert_eq!(ids(&mut left, start + KEEP), [2, 10]);
        assert_eq!(ids(&mut left, start + Duration::from_secs(89)), [10]);
        assert!(ids(&mut left, start + Duration::from_secs(91)).is_empty());
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let (mut left, now) = (Left::default(), Instant::now());
        for id in 0..LEFT_MAX as u64 + 2 {
            left.put(now, KEEP, LeaseId::random(0), job(id));
        }
        let ids = ids(&mut left, now);
        assert_eq!((ids.len(), ids[0]), (LEFT_MAX, 2));
    }
}
