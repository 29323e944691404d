//! Jobs at the heads of lanes that were passed over: each waits a while for the manager that it likes.
//!
//! The lane is asked again when the manager says that it has a free slot, when the time is over, and now and then: the manager may
//! have one in another way, or its pod may be gone. Until then this pod stands in the lane's `waiting` like any other, so that
//! whatever else comes there wakes it.

use std::time::Duration;

use tokio::time::Instant;

use crate::redis::Manager;
use crate::runner::Lane;

/// How often the lane of a job that waits is asked: so long it may wait for a free slot of its manager of which nothing was heard.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Where a job waits, and for whom.
type Waits = (u16, Lane, Manager);

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
    pub(super) fn add(&mut self, partition: u16, lane: Lane, likes: Manager, at_most: Duration) {
        let until = Instant::now() + at_most.min(ASK_EVERY);
        self.0.push(HeldJob { partition, lane, likes, until });
    }

    /// A take of these lanes goes out: it tells anew.
    pub(super) fn asked(&mut self, partition: u16, lanes: &[Lane]) {
        self.0.retain(|job| job.partition != partition || !lanes.contains(&job.lane));
    }

    /// Until when nothing is to be asked again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().map(|job| job.until).min()
    }

    /// Jobs whose lanes it is time to ask again.
    pub(super) fn over(&mut self, now: Instant) -> Vec<Waits> {
        self.extract(|job| job.until <= now)
    }

    /// Jobs that like this manager, of which a slot is free.
    pub(super) fn freed(&mut self, manager: &Manager) -> Vec<Waits> {
        self.extract(|job| job.likes == *manager)
    }

    fn extract(&mut self, is: impl Fn(&HeldJob) -> bool) -> Vec<Waits> {
        self.0.extract_if(.., |job| is(job)).map(|job| (job.partition, job.lane, job.likes)).collect()
    }
}
