//! Everything at one moment: Redis and its replica, pods, runners, what was said, what Rails knows.
//!
//! What was said stays said: a message may come late, twice, out of order or never, so one that was sent once may be
//! delivered in every later state, and losing it is not to deliver it. `Assign` is not like that: it comes at most once, as a pod
//! pushes a job once and a stream repeats nothing.
//!
//! A beat whose answer arrives gives the runner no more than one that is answered at once, as both count from the sending; one
//! whose answer does not arrive gives it nothing. So beats take no time, but where a configuration asks for it.

use super::record::{End, Lease, Record};
use super::runner::Runner;

/// The most leases a configuration may have.
pub const LEASES_MAX: usize = 4;

/// What was said of one lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Said {
    pub lease: Option<Lease>,
    /// Whose slot it was taken for.
    pub runner: u8,
    /// `Assign` is on its way.
    pub assign: bool,
    /// Each of these was said at some time.
    pub accepted: bool,
    pub start: bool,
    pub hello: bool,
    pub welcome: bool,
    pub finished: bool,
}

/// A running job as a pod has seen it, and for how many ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Watched {
    pub lease: Lease,
    pub beat: Option<u8>,
    pub ticks: u8,
}

/// What a pod knows that matters: all else it has is on its way from or to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Pod {
    /// What it has read and not yet compared; and whether what it watches was unchanged for a whole lease as it asked.
    pub read: Option<(Lease, Option<u8>, bool)>,
    pub watched: Option<Watched>,
    /// The lease, with its beat, that it calls `expire` for, now or later.
    pub expiring: Option<(Lease, Option<u8>)>,
    /// For so many ticks it lets nothing expire.
    pub pause: u8,
}

/// Rails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Rails {
    /// It was told that its cancel has ended the job before its start.
    pub cancel_acknowledged: bool,
    /// The end it has acted on.
    pub acted_on: Option<End>,
}

/// What must not happen and is not seen in the state that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Broken {
    pub holder: bool,
    pub cancel: bool,
    pub rails: bool,
    pub end: bool,
    pub attempts: bool,
    pub canceled_start: bool,
    pub told_start: bool,
}

/// A state of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct World {
    pub redis: Record,
    /// Where the replica has stopped to follow; nothing while it follows.
    pub replica: Option<Record>,
    pub failovers: u8,
    pub leases: u8,
    pub said: [Said; LEASES_MAX],
    pub runners: [Runner; 2],
    pub pods: [Pod; 2],
    pub rails: Rails,
    /// A runner was told that the end it reported is recorded: it says it no more.
    pub finish_acknowledged: bool,
    /// How often a runner began to run the job.
    pub runs: u8,
    pub broken: Broken,
}

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    // Rails.
    Publish,
    Cancel,
    ReadEvent,
    // Pods call scripts.
    Take { runner: usize },
    Start { lease: u8 },
    BeatAnswered { runner: usize },
    LateBeat { lease: u8 },
    Renew { runner: usize },
    Resume { lease: u8 },
    Report { lease: u8 },
    GiveBack { lease: u8 },
    Bury,
    GraceOver,
    Expire { pod: usize },
    ExpireByRedisClock,
    // Pods look, and die.
    Look { pod: usize },
    Compare { pod: usize },
    PodRestarts { pod: usize },
    // Messages reach runners.
    AssignArrives { lease: u8 },
    StartArrives { lease: u8 },
    WelcomeArrives { lease: u8 },
    AckArrives { runner: usize },
    // Runners.
    Beat { runner: usize },
    Hello { runner: usize },
    JobEnds { runner: usize },
    RunnerCrashes { runner: usize },
    Sleep { runner: usize },
    Wake { runner: usize },
    // The rest of the world.
    Tick,
    ReplicaStops,
    Failover,
}

// === impl World ===

impl World {
    /// Nothing has happened.
    pub fn new(failovers: u8) -> Self {
        Self {
            redis: Record::default(),
            replica: None,
            failovers,
            leases: 0,
            said: [Said::default(); LEASES_MAX],
            runners: [Runner::default(); 2],
            pods: [Pod::default(); 2],
            rails: Rails::default(),
            finish_acknowledged: false,
            runs: 0,
            broken: Broken::default(),
        }
    }

    /// What was said of a lease, by its id.
    pub fn said(&self, id: u8) -> &Said {
        &self.said[usize::from(id) - 1]
    }

    pub fn said_mut(&mut self, id: u8) -> &mut Said {
        &mut self.said[usize::from(id) - 1]
    }

    /// The runner that a lease was taken for.
    pub fn runner_of(&mut self, id: u8) -> &mut Runner {
        let runner = usize::from(self.said(id).runner);
        &mut self.runners[runner]
    }

    /// Whether the replica has all that was written.
    pub fn is_replicated(&self) -> bool {
        self.replica.is_none()
    }

    /// Whether something went wrong after which nothing else is of interest.
    pub fn is_broken(&self) -> bool {
        let Broken { holder, cancel, rails, end, .. } = self.broken;
        holder || cancel || rails || end || self.runners.iter().all(Runner::runs)
    }
}
