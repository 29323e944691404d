//! The life of a job: the one table of legal moves (DESIGN 3).
//!
//! Arrives: a state and what happens to the job. Leaves: its next state, or nothing when the move is not legal
//! there. Redis is moved by `lua/` alone; this is the same table in Rust, for stages to reason with, and
//! `tests/scripts/flow.rs` walks every (state, event) through both.
//!
//! What must stay true: nothing leaves [`State::Ended`]; every live state has a way there without a runner's help;
//! a repeated event that was legal leads to the state it led to, or is not legal any more, never elsewhere.

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// In its bucket, waiting for a slot.
    Queued,
    /// Taken for a runner that has not accepted yet.
    Assigned,
    /// A runner was told to start it.
    Running,
    /// Its runner was told to stop it.
    Canceling,
    /// Finished, failed or canceled: only its record is left.
    Ended,
}

/// What happens to a job. Events of a runner come under the lease that holds the job; any other is refused before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A pod takes it for a free slot.
    Take,
    /// Its runner accepted it.
    Start,
    /// Rails says that a runner which reports to it runs the job.
    RunByRails,
    /// Its runner's session was heard of.
    Beat,
    /// It comes back unstarted. `limit_reached`: it failed to be delivered once too often.
    GiveBack {
        /// Whether this failed delivery is one more than the limit.
        limit_reached: bool,
    },
    /// Rails cancels it.
    Cancel,
    /// Its runner reports its end.
    Finish,
    /// Rails reports its end, without a lease.
    FinishByRails,
    /// Its lease ran out. `attempts_left`: it may be started again.
    Expire {
        /// Whether it was started less than `max_attempts` times.
        attempts_left: bool,
    },
    /// The pod that held it is dead, or leaves.
    PodGone,
}

// === impl State ===

impl State {
    /// The state after `event`; `None` when it is not legal here and changes nothing.
    pub fn next(self, event: Event) -> Option<Self> {
        use Event::*;
        use State::*;
        Some(match (self, event) {
            (Queued, Take) => Assigned,
            (Assigned | Running, Start) => Running,
            (Queued | Assigned | Running, RunByRails) => Running, // Rails had it handed out, or the router gave it back
            (Running | Canceling, Beat) => self,

            (Assigned, GiveBack { limit_reached: true }) => Ended,
            (Assigned | Queued, GiveBack { .. }) => Queued,
            (Assigned, PodGone) => Queued,

            // Before its start a job just ends; its start, should it race, finds it gone.
            (Queued | Assigned, Cancel) => Ended,
            (Running | Canceling, Cancel) => Canceling,

            (Running | Canceling, Finish) => Ended,
            (Ended, Finish) => Ended, // told again: its record answers
            (Queued | Assigned | Running | Canceling, FinishByRails) => Ended,

            // A job that never started had no effects: it costs no attempt.
            (Assigned, Expire { .. }) => Queued,
            (Running, Expire { attempts_left: true }) => Queued,
            (Running, Expire { attempts_left: false }) | (Canceling, Expire { .. }) => Ended,

            _ => return None,
        })
    }

    /// Its word in Redis; an ended job has no record with a state.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Self::Queued => Some("queued"),
            Self::Assigned => Some("assigned"),
            Self::Running => Some("running"),
            Self::Canceling => Some("canceling"),
            Self::Ended => None,
        }
    }
}
