//! `GetJob`: the call of an unmodified GitLab Runner, held until there is a job for it.
//!
//! The client takes an error for more than it is: of an ordinary one it makes three, then asks nobody for an hour. So whatever is
//! ordinary is answered OK and empty: nothing to give, too many calls, a pod that drains. `docs/gitlab-runner.md` has the table.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request, Response, Status};

use super::calls::{Caller, WHILE_DRAINING};
use super::connection::{Peer, StreamSlot};
use super::info::Info;
use super::log_in::LogIn;
use super::server::{Door, token_sha256};
use crate::clock::{jitter, unix_ms};
use crate::job::Name;
use crate::proto::Assign;
use crate::proto::gitlab::job_router_server::JobRouter;
use crate::proto::gitlab::{GetJobRequest, GetJobResponse};

/// The largest request. Real ones have about 2 KiB.
pub(super) const REQUEST_MAX_BYTES: usize = 64 << 10;
/// Of a runner that gives none, as those before 15.x did.
const NO_SYSTEM_ID: &str = "legacy";
/// While Redis is away a call that cannot be let in is held too, and tried again once in so long. Three quick errors would send its
/// process to Rails for half a minute.
const KNOCK_AGAIN: Duration = Duration::from_millis(500);
/// How long it may take to let a caller in before that is our doing.
const SLOW: Duration = Duration::from_secs(1);
/// How long a call is held that is one too many: it shall not come again at once.
const TOO_MANY: Duration = Duration::from_secs(1);

/// What the runner says of itself: the part of it that decides something here.
#[derive(Deserialize)]
struct JobRequest {
    #[serde(default)]
    info: Info,
    #[serde(default)]
    system_id: String,
}

#[tonic::async_trait]
impl JobRouter for Door {
    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let headers = headers(request.metadata());
        let job = self.job_for(&request).await?;
        let job_response =
            job.map(|assign| with_time_in_queue(assign.payload, assign.queued_for_ms)).unwrap_or_default();
        let mut response = Response::new(GetJobResponse { job_response });
        *response.metadata_mut() = headers;
        Ok(response)
    }
}

impl Door {
    async fn job_for(&self, request: &Request<GetJobRequest>) -> Result<Option<Assign>, Status> {
        let peer = request.extensions().get::<Peer>().expect("every connection has its peer").clone();
        let token = token_sha256(request.metadata());
        if self.failures.check(peer.address(), token.as_deref().ok()).is_err() {
            return nothing_after(TOO_MANY).await;
        }
        let max_streams = self.limits.max_streams_per_connection;
        let Some(slot) = peer.open_stream(max_streams) else { return nothing_after(TOO_MANY).await };
        let Ok(token_sha256) = token else {
            self.failures.count(peer.address());
            return Err(denied());
        };
        let said = read(&request.get_ref().job_request)?;
        if self.calls.is_draining() {
            return nothing_after(WHILE_DRAINING).await;
        }
        let system_id = if said.system_id.is_empty() { NO_SYSTEM_ID } else { &said.system_id };
        let system_id = Name::new(system_id)
            .map_err(|error| Status::invalid_argument(format!("job_request.system_id: {error}")))?;
        let caller = Caller { token_sha256, system_id, features: said.info.features() };
        let until = Instant::now() + jitter(self.limits.hold, 0.1);
        let manager = loop {
            let log_in = LogIn::new(&self.failures, peer.address(), &caller.token_sha256);
            let manager = self.calls.manager(&caller);
            let place = || self.place(&caller.token_sha256);
            match patiently(&slot, self.calls.let_in(&manager, &caller, &said.info, log_in, place)).await {
                Ok(()) => break manager,
                Err(status) if status.code() == Code::Unavailable && Instant::now() < until => {
                    slot.admitted();
                    if self.calls.drains_within(jitter(KNOCK_AGAIN, 0.5)).await {
                        return nothing_after(WHILE_DRAINING).await;
                    }
                }
                Err(status) => return refused(&status, self.calls.is_draining()).await,
            }
        };
        slot.admitted();
        let hold = until.saturating_duration_since(Instant::now());
        manager.hold(hold, self.limits.max_slots_per_session).await.map_err(|_| denied())
    }
}

/// Who waits for Redis, or for its turn, must not be cut for it: from here on we are slow, and not the caller.
async fn patiently<T>(slot: &StreamSlot, let_in: impl Future<Output = T>) -> T {
    let mut let_in = std::pin::pin!(let_in);
    match tokio::time::timeout(SLOW, &mut let_in).await {
        Ok(told) => told,
        Err(_) => {
            slot.admitted();
            let_in.await
        }
    }
}

/// What is answered where the caller could not be let in.
async fn refused(status: &Status, draining: bool) -> Result<Option<Assign>, Status> {
    match status.code() {
        Code::Unauthenticated => Err(denied()),
        Code::Unavailable if !draining => Err(Status::unavailable("the job queue cannot be reached")),
        _ if draining => nothing_after(WHILE_DRAINING).await,
        _ => nothing_after(TOO_MANY).await,
    }
}

/// For a client that asks again at once it would be no answer.
async fn nothing_after(about: Duration) -> Result<Option<Assign>, Status> {
    tokio::time::sleep(jitter(about, 0.5)).await;
    Ok(None)
}

/// The one answer for a token that is nobody's, for whatever reason.
fn denied() -> Status {
    Status::permission_denied("no runner has this token")
}

fn read(json: &[u8]) -> Result<JobRequest, Status> {
    serde_json::from_slice(json).map_err(|error| {
        // Its own text may show what was sent.
        let (line, column) = (error.line(), error.column());
        Status::invalid_argument(format!("job_request: not what it should be at line {line}, column {column}"))
    })
}

/// What the client reads of the answer's headers: its own request id again, and a cursor that it gives back with its next call.
fn headers(asked: &MetadataMap) -> MetadataMap {
    let mut headers = MetadataMap::new();
    headers.insert("x-gitlab-last-update", MetadataValue::from(unix_ms()));
    if let Some(id) = asked.get("x-request-id") {
        headers.insert("x-request-id", id.clone());
    }
    headers
}

/// The job with `job_info.time_in_queue_seconds`, where it has a `job_info`. All else stays as it came, byte by byte.
fn with_time_in_queue(payload: Bytes, queued_for_ms: u64) -> Bytes {
    #[derive(Deserialize)]
    struct Payload<'a> {
        #[serde(borrow)]
        job_info: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct JobInfo<'a> {
        #[serde(borrow)]
        time_in_queue_seconds: Option<&'a RawValue>,
    }
    let seconds = format!("{:?}", queued_for_ms as f64 / 1_000.0);
    let Ok(Payload { job_info: Some(info) }) = serde_json::from_slice(&payload) else { return payload };
    let Ok(JobInfo { time_in_queue_seconds: old }) = serde_json::from_str(info.get()) else { return payload };
    let offset = |part: &str| part.as_ptr() as usize - payload.as_ptr() as usize;
    let (from, to, new) = match old {
        Some(old) => (offset(old.get()), offset(old.get()) + old.get().len(), seconds),
        None => {
            let after_brace = offset(info.get()) + 1;
            let comma = if info.get()[1..].trim_start().starts_with('}') { "" } else { "," };
            (after_brace, after_brace, format!(r#""time_in_queue_seconds":{seconds}{comma}"#))
        }
    };
    [&payload[..from], new.as_bytes(), &payload[to..]].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_in_the_queue_is_filled_in_and_all_else_stays() {
        let fill =
            |json: &str| String::from_utf8(with_time_in_queue(json.to_owned().into(), 1_234).into()).expect("text");
        assert_eq!(
            fill(r#"{"id": 1, "job_info": {"name":"t", "time_in_queue_seconds": 0.01, "queue_size":1}, "x":[ ]}"#),
            r#"{"id": 1, "job_info": {"name":"t", "time_in_queue_seconds": 1.234, "queue_size":1}, "x":[ ]}"#
        );
        assert_eq!(fill(r#"{"job_info":{"name":"t"}}"#), r#"{"job_info":{"time_in_queue_seconds":1.234,"name":"t"}}"#);
        assert_eq!(fill(r#"{"job_info":{ }}"#), r#"{"job_info":{"time_in_queue_seconds":1.234 }}"#);
        for as_it_is in [r#"{"id":1}"#, r#"{"job_info":null}"#, r#"{"job_info":7}"#, r#"{"job_info":"{}"}"#] {
            assert_eq!(fill(as_it_is), as_it_is);
        }
    }

    #[test]
    fn what_is_refused_is_not_shown() {
        let said = br#"{"info":{"version":"19.4.0","features":{"image":true}},"token":"t"}"#;
        assert_eq!(read(said).expect("as a runner sends it").info.version(), "gitlab-runner 19.4.0");
        assert_eq!(read(b"{}").expect("nothing is required").system_id, "");
        let refused = read(br#"{"system_id": 7, "token": "secret"}"#).err().expect("refused").message().to_owned();
        assert!(!refused.contains("secret") && refused.contains("column"), "{refused}");
    }
}
