//! Jobs at the heads of lanes that were passed over: each waits a while for the manager that it likes.
//!
//! The lane is asked again when a slot of that manager is free, and when the time is over. Until then this pod stands in the
//! lane's `waiting` like any other, so that whatever else comes there wakes it.

use tokio::time::Instant;

use crate::redis::Manager;
use crate::runner::Lane;

/// What is passed over, by partition.
#[derive(Default)]
pub(super) struct HeldBack(Vec<HeldJob>);

/// A job that was passed over.
struct HeldJob {
    partition: u16,
    lane: Lane,
    likes: Manager,
    until: Instant,
}

// === impl HeldBack ===

impl HeldBack {
    /// A take of this lane passed over a job.
    pub(super) fn add(&mut self, partition: u16, lane: Lane, likes: Manager, until: Instant) {
        self.0.push(HeldJob { partition, lane, likes, until });
    }

    /// A take of these lanes goes out: it tells anew.
    pub(super) fn asked(&mut self, partition: u16, lanes: &[Lane]) {
        self.0.retain(|job| job.partition != partition || !lanes.contains(&job.lane));
    }

    /// Whether a job of this lane is passed over, as far as is known.
    pub(super) fn holds(&self, partition: u16, lane: Lane) -> bool {
        self.0.iter().any(|job| job.partition == partition && job.lane == lane)
    }

    /// Until when nothing is over.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().map(|job| job.until).min()
    }

    /// Lanes of jobs that need not wait any more.
    pub(super) fn over(&mut self, now: Instant) -> Vec<(u16, Lane)> {
        self.extract(|job| job.until <= now)
    }

    /// Lanes of jobs that like this manager, of which a slot is free.
    pub(super) fn freed(&mut self, manager: &Manager) -> Vec<(u16, Lane)> {
        self.extract(|job| job.likes == *manager)
    }

    fn extract(&mut self, is: impl Fn(&HeldJob) -> bool) -> Vec<(u16, Lane)> {
        self.0.extract_if(.., |job| is(job)).map(|job| (job.partition, job.lane)).collect()
    }
}
