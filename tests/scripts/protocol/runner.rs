//! A runner's half: what it holds, and its own clock.

use super::record::Lease;
use super::rules::Rules;

/// How far a runner is with a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    Accepted,
    Running,
}

/// The job at a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Held {
    pub lease: Lease,
    pub stage: Stage,
    /// Ticks until it must be dead.
    pub fuse: u8,
}

/// A runner with one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Runner {
    pub held: Option<Held>,
    /// Where beats are slow: its newest on the way, and how long ago it was sent; a pod answers the newest only.
    pub beat: Option<(Lease, u8)>,
    /// The answer on the way: how long ago its beat was sent.
    pub ack: Option<u8>,
    /// Its machine is suspended, and its job with it.
    pub asleep: bool,
}

// === impl Runner ===

impl Runner {
    /// Whether the job runs at this instant.
    pub fn runs(&self) -> bool {
        !self.asleep && self.held.is_some_and(|held| held.stage == Stage::Running)
    }

    /// `Assign`: accepts if it is free; else its old job is over, which it kills, and it declines. Answers whether it accepts.
    pub fn assigned(&mut self, rules: &Rules, lease: Lease) -> bool {
        if self.held.is_some() {
            self.drop_job();
            return false;
        }
        let stage = if rules.accept_gate { Stage::Accepted } else { Stage::Running };
        self.held = Some(Held { lease, stage, fuse: rules.fence_ticks });
        true
    }

    /// `Start`, or resumed by `Welcome`. Answers whether the job begins to run.
    pub fn started(&mut self, lease_id: u8) -> bool {
        match &mut self.held {
            Some(held) if held.lease.id == lease_id && held.stage == Stage::Accepted => {
                held.stage = Stage::Running;
                true
            }
            _ => false,
        }
    }

    /// `BeatAck` for a beat that was sent `age` ticks ago: the lease lasts from then.
    pub fn acknowledged(&mut self, rules: &Rules, age: u8) {
        self.ack = None;
        if let Some(held) = &mut self.held {
            let age = if rules.counts_from_sending { age } else { 0 };
            held.fuse = held.fuse.max(rules.fence_ticks - age);
        }
    }

    /// Nothing of the job runs any more, and nothing is said of it.
    pub fn drop_job(&mut self) {
        self.held = None;
        self.ack = None;
    }

    /// A moment passes, for the world if not for a clock that sleeps.
    pub fn tick(&mut self, rules: &Rules) {
        if self.asleep && !rules.boot_time {
            return;
        }
        if let Some((_, age)) = &mut self.beat {
            *age = rules.fence_ticks.min(*age + 1);
        }
        self.ack = self.ack.map(|age| age + 1).filter(|age| *age < rules.fence_ticks);
        if !rules.fence {
            return;
        }
        if let Some(held) = &mut self.held {
            held.fuse -= 1;
            if held.fuse == 0 {
                self.drop_job();
            }
        }
    }
}
