//! A day of jobs through a policy: who would have waited how long. Pure; `job-router simulate` shows it.
//!
//! Arrives: a [`Day`], so many slots of instance runners, all alike, and a [`Policy`]. Leaves: when each job was taken.
//! Nothing can go wrong: what a day may hold is checked where it is made.
//!
//! What holds, whatever the policy:
//!
//! 1. Every job is taken once, at its queue time or later, and then runs for its duration.
//! 2. Work conserving: no slot is free while a job waits that no cap holds back.
//! 3. Within one ms, first jobs end, then jobs are queued, in the order of the day, then slots take.
//! 4. The same day, slots and policy give the same takes.
//!
//! What it leaves out: how long it takes to hand a job over (0 here), tags, group and project runners, jobs that fail
//! to start, and whatever people would have done differently had their jobs waited less.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

mod day;
mod fair;
mod jain;
mod policy;
mod recorded;
mod synthetic;
mod waits;

pub use day::{Day, DayBuilder, DayJob, DayProject, DayTenant, TenantChanged};
pub use fair::Fair;
pub use jain::jains_index;
pub use policy::{Fifo, GitLab, JobIndex, Policy, PolicyName};
pub use recorded::{BadLine, Recording};
pub use synthetic::{Flood, Shape};
pub use waits::{Waits, p99_over_time, waits};

/// The Unix ms at which a simulated day begins: 2026-01-01. Queue times count from there, so a recording of any year is
/// within what scores can tell apart.
pub const DAY_BEGINS_AT_MS: u64 = 1_767_225_600_000;

/// A job that went to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Take {
    /// Which.
    pub job: JobIndex,
    /// When, in ms since the beginning of the day.
    pub at_ms: u64,
}

/// A day on its way through a policy.
#[derive(Debug)]
pub struct Simulation<'a, P> {
    day: &'a Day,
    policy: P,
    slots_free: usize,
    /// Jobs from here on are yet to come.
    next: JobIndex,
    /// Running jobs by their ends.
    ends: BinaryHeap<Reverse<(u64, JobIndex)>>,
    takes: Vec<Take>,
}

// === impl Simulation ===

impl<'a, P: Policy> Simulation<'a, P> {
    /// A day that is about to begin, with at least one slot.
    pub fn new(day: &'a Day, slots: usize, policy: P) -> Self {
        assert!(slots > 0, "without a slot no job would ever run");
        let takes = Vec::with_capacity(day.jobs().len());
        Self { day, policy, slots_free: slots, next: 0, ends: BinaryHeap::new(), takes }
    }

    /// Goes to the next moment at which something happens, and does all of it. False when nothing is left to do.
    pub fn step(&mut self) -> bool {
        let (end, queued) = (self.ends.peek().map(|end| end.0.0), self.coming().map(|job| job.queued_at_ms));
        let Some(now_ms) = end.into_iter().chain(queued).min() else {
            assert_eq!(self.takes.len(), self.day.jobs().len(), "a policy keeps no job back while nothing runs");
            return false;
        };
        while self.ends.peek().is_some_and(|end| end.0.0 == now_ms) {
            let Reverse((_, job)) = self.ends.pop().expect("there is one");
            self.policy.end(job);
            self.slots_free += 1;
        }
        while self.coming().is_some_and(|job| job.queued_at_ms == now_ms) {
            self.policy.queue(self.next);
            self.next += 1;
        }
        if self.slots_free > 0 {
            for job in self.policy.take_many(now_ms, self.slots_free) {
                self.takes.push(Take { job, at_ms: now_ms });
                self.ends.push(Reverse((now_ms + self.day.jobs()[job].duration_ms, job)));
                self.slots_free -= 1;
            }
        }
        true
    }

    /// All steps at once.
    pub fn run(mut self) -> Vec<Take> {
        while self.step() {}
        self.takes
    }

    /// The takes so far, in their order.
    pub fn takes(&self) -> &[Take] {
        &self.takes
    }

    /// The takes of a day that is over.
    pub fn into_takes(self) -> Vec<Take> {
        self.takes
    }

    fn coming(&self) -> Option<&'a DayJob> {
        self.day.jobs().get(self.next)
    }
}
