//! Leases: what scripts are told of them, and what they answer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Arg, Outcome, RedisError, Reply, ms, parse};
use crate::job::{JobId, Lease, LeaseId, Name};

/// A lease's state after [`Partition::renew`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewed {
    /// Still the runner's.
    Running,
    /// Still the runner's, which should stop it.
    Canceling {
        /// How long it still has.
        grace: Duration,
        /// Why, for people.
        reason: String,
    },
    /// Not the runner's any more.
    NotYours,
}

/// How a runner's job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The job.
    pub job_id: JobId,
    /// Its lease; none when Rails says so.
    pub lease_id: Option<LeaseId>,
    /// `success`, `failed` or `canceled`.
    pub status: &'static str,
    /// Exit code of the failing step.
    pub exit_code: i32,
    /// A reason word, or empty.
    pub failure_reason: String,
}

/// What Redis knows of a job that runs, as it says it: nobody else reads it. Empty where it was not asked for.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Record(pub(super) Bytes);

/// What became of a job that a runner accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    /// It runs.
    Running(Record),
    /// It does not: [`Outcome::Gone`], [`Outcome::Stale`] or [`Outcome::Refused`].
    Not(Outcome),
}

/// A job that ran with a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// The job.
    pub job_id: JobId,
    /// What Redis knew of it.
    pub record: Record,
    /// How it ended, if it has.
    pub end: Option<Arc<Report>>,
}

/// What becomes of a Redis that is found empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Empty {
    /// Its name from now on: one that was never given before.
    pub name: String,
    /// How long nothing is assigned; zero: not at all.
    pub hold: Duration,
}

/// What a pod hears of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Whether this one was not known: at its start, or after others took it for dead.
    pub is_new: bool,
    /// All pods, with their last heartbeats.
    pub pods: Vec<(Name, String)>,
    /// Names the data of this partition: another name than before, and Redis has lost it.
    pub instance: String,
}

/// A job to give back, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Return {
    /// The job under the lease that ends.
    pub lease: Lease,
    /// A reason word.
    pub reason: &'static str,
    /// Whether it counts towards `undeliverable`.
    pub failed_delivery: bool,
}

/// A live lease whose deadline is near, as seen now.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Due {
    /// The job under its lease.
    pub lease: Lease,
    /// `assigned`, `running` or `canceling`.
    pub state: String,
    /// Its beat; empty before the first.
    pub beat: String,
    /// Milliseconds past its deadline; negative: still to go.
    pub overdue_ms: i64,
    /// Of one that does not beat: for how long nothing may be heard of it.
    pub silent: Option<Duration>,
}

/// A look at the leases.
#[derive(Debug)]
pub struct Look {
    /// Those whose deadline is near.
    pub due: Vec<Due>,
    /// How many there are in all.
    pub live: u64,
    /// Names the server and its history: another one after a restart, and after a replica became the primary.
    pub primary: String,
}

/// What became of a lease that was to expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// Queued again, at its old place.
    Requeued,
    /// Failed with `runner_lost`.
    Failed,
    /// It was being canceled, and is now.
    Canceled,
    /// Nothing: it ended or moved on before.
    Not,
}

// === impl Started ===

impl Started {
    /// The same as a word.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Running(_) => Outcome::Ok,
            Self::Not(outcome) => *outcome,
        }
    }
}

// === impl Record ===

impl Record {
    /// A copy: the answer it is part of may be long, and need not stay for it.
    fn of(reply: Reply) -> Result<Self, RedisError> {
        Ok(Self(Bytes::copy_from_slice(&reply.into_bytes()?)))
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

pub(super) fn due_of(reply: Reply) -> Result<Due, RedisError> {
    let [job_id, lease_id, state, beat, overdue_ms, silent_ms] = reply.into_tuple()?;
    Ok(Due {
        lease: Lease { job_id: parse(&job_id)?, lease_id: parse(&lease_id)? },
        state: state.as_str()?.to_owned(),
        beat: beat.as_str()?.to_owned(),
        overdue_ms: overdue_ms.as_i64()?,
        silent: silent_ms.as_str()?.parse().ok().map(Duration::from_millis),
    })
}

pub(super) fn renew_args(pod: &Name, lease_time: Duration, tell: bool, leases: &[Lease]) -> Vec<Arg> {
    let mut args = vec![pod.as_str().into(), ms(lease_time), u64::from(tell).into()];
    for lease in leases {
        args.extend([lease.job_id.0.into(), lease.lease_id.to_string().into()]);
    }
    args
}

/// Per lease its state, and its record if it was asked for.
pub(super) fn renewed_of_all(reply: Reply) -> Result<Vec<(Renewed, Record)>, RedisError> {
    reply.into_array()?.into_iter().map(renewed_of).collect()
}

fn renewed_of(reply: Reply) -> Result<(Renewed, Record), RedisError> {
    let mut fields = reply.into_array()?.into_iter();
    let outcome = fields.next().ok_or(RedisError::Unexpected { wanted: "an outcome", got: "an empty list" })?;
    if Outcome::try_from(&outcome)? != Outcome::Ok {
        return Ok((Renewed::NotYours, Record::default()));
    }
    let [state, grace_ms, reason, record] = Reply::Array(fields.collect()).into_tuple()?;
    let renewed = if state.as_str()? == "running" {
        Renewed::Running
    } else {
        let reason = serde_json::from_str(reason.as_str()?).unwrap_or_default();
        Renewed::Canceling { grace: Duration::from_millis(grace_ms.as_u64()?), reason }
    };
    Ok((renewed, Record::of(record)?))
}

pub(super) fn started_of(reply: Reply) -> Result<Started, RedisError> {
    match reply {
        Reply::Array(_) => {
            let [_, record] = reply.into_tuple()?;
            Ok(Started::Running(Record::of(record)?))
        }
        word => Outcome::try_from(&word).map(Started::Not),
    }
}

pub(super) fn lease_arg(lease_id: Option<LeaseId>) -> Arg {
    lease_id.map(|id| id.to_string()).unwrap_or_default().into()
}
