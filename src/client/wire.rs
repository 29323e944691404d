//! Between the protocol's messages and this library's words. Leases from outside are checked here.

use std::time::Duration;

use super::executor::{Assignment, Outcome, Reason, Status};
use crate::job::{JobId, Lease};
use crate::proto::runner_message::Kind as Up;
use crate::proto::{self, Accepted, Assign, Beat, Declined, Finished, Goodbye};

/// The lease as the wire has it.
pub(super) fn lease(lease: &Lease) -> proto::Lease {
    proto::Lease { job_id: lease.job_id.0, lease_id: lease.lease_id.to_string() }
}

/// The lease that a message names; `None` if it names none, or not in the one spelling.
pub(super) fn lease_of(lease: Option<&proto::Lease>) -> Option<Lease> {
    let lease = lease?;
    Some(Lease { job_id: JobId(lease.job_id), lease_id: lease.lease_id.parse().ok()? })
}

/// The job that an `Assign` brings; `None` without a valid lease.
pub(super) fn assignment(assign: Assign) -> Option<Assignment> {
    let timeout = match assign.timeout_ms {
        0 => Duration::MAX,
        ms => Duration::from_millis(ms),
    };
    Some(Assignment {
        lease: lease_of(assign.lease.as_ref())?,
        payload: assign.payload,
        attempt: assign.attempt,
        traceparent: assign.traceparent,
        timeout,
    })
}

/// The runner has room and will run the job.
pub(super) fn accepted(job: &Lease) -> Up {
    Up::Accepted(Accepted { lease: Some(lease(job)) })
}

/// The runner will not run the job.
pub(super) fn declined(job: &Lease, reason: &Reason) -> Up {
    Up::Declined(Declined { lease: Some(lease(job)), reason: reason.to_string() })
}

/// The runner is alive and holds these jobs.
pub(super) fn beat(sequence: u64, jobs: impl Iterator<Item = Lease>) -> Up {
    Up::Beat(Beat { sequence, running: jobs.map(|job| lease(&job)).collect() })
}

/// The job has ended.
pub(super) fn finished(job: &Lease, outcome: &Outcome) -> Up {
    let status = match outcome.status {
        Status::Success => proto::Status::Success,
        Status::Failed => proto::Status::Failed,
        Status::Canceled => proto::Status::Canceled,
    };
    let failure_reason = outcome.failure_reason.as_ref().map(Reason::to_string).unwrap_or_default();
    Up::Finished(Finished {
        lease: Some(lease(job)),
        status: status.into(),
        exit_code: outcome.exit_code,
        failure_reason,
    })
}

/// The runner goes away.
pub(super) fn goodbye() -> Up {
    Up::Goodbye(Goodbye { reason: "shutting down".to_owned() })
}
