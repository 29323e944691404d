//! Wire messages to typed ones. A message out of its limits is refused by field name and limit; the limits are those
//! of `proto/job_router/v1/runner.proto`.

use tonic::Status;

use super::session::{Beat, Finished, Hello};
use crate::contract::Status as JobStatus;
use crate::job::{JobId, Lease, Name, is_reason_word};
use crate::proto;
use crate::tags::TagSet;
use crate::telemetry::labels::Limit;
use crate::telemetry::metrics;

/// The most jobs one message may list, whatever the slots.
const LEASES_MAX: usize = 10_000;
/// Jobs that have ended and free their slots, while their acknowledgements are on the way: about what is under way in the router
/// before it hears nothing more of a session.
const ENDED_MAX: usize = 1_024;
/// The longest version text, in bytes.
const VERSION_MAX_BYTES: usize = 64;

pub(super) fn lease(field: &str, lease: Option<&proto::Lease>) -> Result<Lease, Status> {
    let lease = lease.ok_or_else(|| Status::invalid_argument(format!("{field}: missing")))?;
    let lease_id = lease.lease_id.parse();
    let lease_id = lease_id.map_err(|error| Status::invalid_argument(format!("{field}.lease_id: {error}")))?;
    Ok(Lease { job_id: JobId(lease.job_id), lease_id })
}

fn leases(field: &str, all: &[proto::Lease], slots_max: u32) -> Result<Vec<Lease>, Status> {
    let max = LEASES_MAX.min(slots_max as usize + ENDED_MAX);
    if all.len() > max {
        let text = format!("{field}: {} jobs; at most {max}", all.len());
        return Err(Status::invalid_argument(text));
    }
    all.iter().map(|one| lease(field, Some(one))).collect()
}

pub(super) fn hello(message: &proto::Hello, slots_max: u32) -> Result<Hello, Status> {
    let bad = |field: &str, what: String| Status::invalid_argument(format!("hello.{field}: {what}"));
    if message.slots > slots_max {
        metrics().refused_total.of(Limit::SlotsPerSession).increment(1);
        return Err(bad("slots", format!("{}; at most {slots_max}", message.slots)));
    }
    if message.version.len() > VERSION_MAX_BYTES {
        return Err(bad("version", format!("{} bytes; at most {VERSION_MAX_BYTES}", message.version.len())));
    }
    let version: String = message.version.chars().filter(|c| !c.is_control()).collect();
    Ok(Hello {
        system_id: Name::new(&message.system_id).map_err(|error| bad("system_id", error.to_string()))?,
        info: serde_json::json!({ "version": version }).to_string().into(),
        version,
        slots: message.slots,
        features: TagSet::new(message.features.iter().map(String::as_str))
            .map_err(|error| bad("features", error.to_string()))?,
        running: leases("hello.running", &message.running, slots_max)?,
    })
}

pub(super) fn beat(message: &proto::Beat, slots_max: u32) -> Result<Beat, Status> {
    Ok(Beat { sequence: message.sequence, running: leases("beat.running", &message.running, slots_max)? })
}

pub(super) fn finished(message: &proto::Finished) -> Result<Finished, Status> {
    let status = match message.status() {
        proto::Status::Success => JobStatus::Success,
        proto::Status::Failed => JobStatus::Failed,
        proto::Status::Canceled => JobStatus::Canceled,
        proto::Status::Unspecified => {
            return Err(Status::invalid_argument("finished.status: must be success, failed or canceled"));
        }
    };
    if !message.failure_reason.is_empty() && !is_reason_word(&message.failure_reason) {
        return Err(Status::invalid_argument("finished.failure_reason: must be empty or 1 to 64 of [a-z0-9_]"));
    }
    Ok(Finished {
        lease: lease("finished.lease", message.lease.as_ref())?,
        status,
        exit_code: message.exit_code,
        failure_reason: message.failure_reason.clone(),
    })
}
