//! Which rules hold, and how much may happen: a configuration of the model, and the rungs of the ladder.

/// How scripts compare the lease they are called with to the one in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// By an id that is never used twice.
    Unique,
    /// By a counter kept in Redis, which a failover sets back.
    Counter,
    /// By that counter, the later one is obeyed.
    Order,
    /// Not at all.
    Nothing,
}

/// What pods do after a failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailover {
    GoOn,
    /// Let nothing expire for a whole lease.
    Pause,
    /// Forget what they have seen, so that nothing can expire for a whole lease.
    Forget,
}

/// The rules. [`Rules::all`] are all there are; a rung leaves some out.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub compare: Compare,
    /// A runner starts at `Start`, which is sent when the start is recorded; else at `Assign`.
    pub accept_gate: bool,
    /// `Assign` comes at most once; else a runner may accept again what it has dropped.
    pub assign_once: bool,
    /// A runner stops its job before the lease can be over.
    pub fence: bool,
    /// How many ticks after sending the last acknowledged beat that is; safe is at most [`LEASE`].
    pub fence_ticks: u8,
    /// A runner's lease counts from the sending of the beat that is acknowledged; else from the answer.
    pub counts_from_sending: bool,
    /// A runner's clock goes on while its machine sleeps.
    pub boot_time: bool,
    /// A lease expires when a pod has seen its beat unchanged for a whole lease; else when Redis' clock says so.
    pub own_observation: bool,
    /// How long a lease was unchanged counts to when the last look was asked for; else to when its answer is dealt with.
    pub counts_to_asking: bool,
    /// `expire` looks whether the beat is still the one that its caller saw.
    pub expire_looks_at_beat: bool,
    /// A cancel's grace is at least a lease: what was started before it is over by then.
    pub grace_lasts_a_lease: bool,
    /// `Assign` waits until its take is replicated.
    pub barrier_push: bool,
    /// `Start` waits until its start is replicated.
    pub barrier_start: bool,
    /// `Welcome` waits until what it resumes is replicated.
    pub barrier_welcome: bool,
    /// `FinishedAck` waits until the end is replicated.
    pub barrier_finish: bool,
    /// What pods do after a failover, so that no lease expires by a beat that was lost.
    pub after_failover: AfterFailover,
    /// A cancel is acknowledged when it is replicated.
    pub barrier_cancel: bool,
    /// Rails acts on an event when it is replicated.
    pub replicated_events: bool,
    /// The record of an end refuses a publication that comes again.
    pub ended_kept: bool,
    /// A repeated `finish` finds the record of the first; else it is told to Rails again.
    pub finish_idempotent: bool,
    /// A cancel that comes before the start ends the job; else the start goes on.
    pub start_looks_at_state: bool,
}

/// How much may happen in one history.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Leases ever handed out.
    pub leases: u8,
    /// Renewals of one lease.
    pub beats: u8,
    /// How often the job may be started.
    pub max_attempts: u8,
    /// Failed deliveries that are forgiven.
    pub give_back_limit: u8,
    /// Failovers with loss of what was not replicated.
    pub failovers: u8,
    /// Pods that watch leases.
    pub pods: u8,
    /// Whether Rails may cancel.
    pub cancel: bool,
    /// Whether deliveries fail and are counted; a pod that dies gives back without.
    pub give_back: bool,
    /// Whether beats and their answers take time; else a beat is answered at once, or is late and not answered.
    pub slow_beats: bool,
    /// Whether a runner's machine may sleep.
    pub sleep: bool,
    /// Whether a pod may be held up between reading what there is and looking at its clock.
    pub slow_looks: bool,
    /// Whether runners may open a new session for what they hold.
    pub reconnect: bool,
}

/// What a pod waits before it ends a lease, in ticks of any length.
pub const LEASE: u8 = 2;

// === impl Rules ===

impl Rules {
    /// Every rule: those of rung 7, and a barrier before `FinishedAck`.
    pub fn all() -> Self {
        Self {
            compare: Compare::Unique,
            accept_gate: true,
            assign_once: true,
            fence: true,
            fence_ticks: LEASE,
            counts_from_sending: true,
            boot_time: true,
            own_observation: true,
            counts_to_asking: true,
            expire_looks_at_beat: true,
            grace_lasts_a_lease: true,
            barrier_push: true,
            barrier_start: true,
            barrier_welcome: true,
            barrier_finish: true,
            after_failover: AfterFailover::Forget,
            barrier_cancel: true,
            replicated_events: true,
            ended_kept: true,
            finish_idempotent: true,
            start_looks_at_state: true,
        }
    }

    /// What the router does: with `require_replicas = 0`.
    pub fn of_the_router() -> Self {
        Self {
            barrier_push: false,
            barrier_start: false,
            barrier_welcome: false,
            barrier_finish: false,
            after_failover: AfterFailover::GoOn,
            barrier_cancel: false,
            replicated_events: false,
            ..Self::all()
        }
    }

    /// The rules of a rung from 0 to 7. Each has those of the one below and one more; 1 and 2 differ in the failover.
    pub fn of_rung(rung: u8) -> Self {
        Self {
            compare: if rung >= 3 { Compare::Unique } else { Compare::Counter },
            fence: rung >= 1,
            barrier_push: rung >= 4,
            barrier_start: rung >= 4,
            barrier_welcome: rung >= 4,
            barrier_finish: false,
            after_failover: if rung >= 5 { AfterFailover::Forget } else { AfterFailover::GoOn },
            barrier_cancel: rung >= 6,
            replicated_events: rung >= 7,
            ..Self::all()
        }
    }
}

// === impl Bounds ===

impl Bounds {
    /// One pod that watches, two runners, each thing once or twice.
    pub fn small() -> Self {
        Self {
            leases: 2,
            beats: 1,
            max_attempts: 2,
            give_back_limit: 1,
            failovers: 0,
            pods: 1,
            cancel: true,
            give_back: true,
            slow_beats: false,
            sleep: false,
            slow_looks: false,
            reconnect: true,
        }
    }

    /// With a failover that loses what is not replicated.
    pub fn with_failovers(failovers: u8) -> Self {
        Self { failovers, give_back: false, ..Self::small() }
    }
}
