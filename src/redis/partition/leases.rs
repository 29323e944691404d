//! Leases: what scripts are told of them, and what they answer.

use std::time::Duration;

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

pub(super) fn due_of(reply: Reply) -> Result<Due, RedisError> {
    let [job_id, lease_id, state, beat, overdue_ms] = reply.into_tuple()?;
    Ok(Due {
        lease: Lease { job_id: parse(&job_id)?, lease_id: parse(&lease_id)? },
        state: state.as_str()?.to_owned(),
        beat: beat.as_str()?.to_owned(),
        overdue_ms: overdue_ms.as_i64()?,
    })
}

pub(super) fn renew_args(pod: &Name, lease_time: Duration, leases: &[Lease]) -> Vec<Arg> {
    let mut args = vec![pod.as_str().into(), ms(lease_time)];
    for lease in leases {
        args.extend([lease.job_id.0.into(), lease.lease_id.to_string().into()]);
    }
    args
}

pub(super) fn renewed_of_all(reply: Reply) -> Result<Vec<Renewed>, RedisError> {
    reply.into_array()?.into_iter().map(renewed_of).collect()
}

pub(super) fn renewed_of(reply: Reply) -> Result<Renewed, RedisError> {
    let fields = reply.into_array()?;
    let outcome = fields.first().ok_or(RedisError::Unexpected { wanted: "an outcome", got: "an empty list" })?;
    match (Outcome::try_from(outcome)?, &fields[1..]) {
        (Outcome::Ok, [state, ..]) if state.as_str()? == "running" => Ok(Renewed::Running),
        (Outcome::Ok, [_, grace_ms, reason]) => Ok(Renewed::Canceling {
            grace: Duration::from_millis(grace_ms.as_u64()?),
            reason: serde_json::from_str(reason.as_str()?).unwrap_or_default(),
        }),
        _ => Ok(Renewed::NotYours),
    }
}

pub(super) fn lease_arg(lease_id: Option<LeaseId>) -> Arg {
    lease_id.map(|id| id.to_string()).unwrap_or_default().into()
}
