//! One runner's session: from its first message to its last, as one response stream.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::connection::StreamSlot;
use super::convert;
use super::log_in::LogIn;
use super::outbox::{Outbox, Outgoing, SessionId, outbox};
use crate::contract::Status as JobStatus;
use crate::job::{Lease, Name, is_reason_word};
use crate::proto::{RouterMessage, RunnerMessage, Welcome, router_message, runner_message};
use crate::tags::TagSet;
use crate::telemetry::labels::{Limit, SessionClosed};
use crate::telemetry::metrics;

/// A message of a session that was admitted.
#[derive(Debug)]
pub struct Spoken<T> {
    /// Which session.
    pub session: SessionId,
    /// What it said.
    pub said: T,
}

/// Somebody wants to open a session.
pub struct Knock {
    /// The session's id from now on.
    pub session: SessionId,
    /// SHA-256 of the token, in hex.
    pub token_sha256: String,
    /// What it said of itself.
    pub hello: Hello,
    /// Where to put messages for it.
    pub outbox: Outbox,
    /// Let it in, or say why not.
    pub answer: Answer,
}

/// The answer to a [`Knock`].
pub struct Answer {
    to: oneshot::Sender<Result<Welcome, Status>>,
    log_in: LogIn,
}

/// What a runner says of itself.
#[derive(Debug, Clone)]
pub struct Hello {
    /// Which manager of the runner it is.
    pub system_id: Name,
    /// Its software's version, for people.
    pub version: String,
    /// What it says of itself, for Rails: a JSON object.
    pub info: Arc<str>,
    /// Its free slots.
    pub slots: u32,
    /// Its features.
    pub features: TagSet,
    /// Jobs it holds from an earlier session.
    pub running: Vec<Lease>,
}

/// How many more jobs a runner can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// Free slots.
    pub free: u32,
    /// How many assignments it had seen when it counted.
    pub assigns_seen: u64,
}

/// A sign of life.
#[derive(Debug)]
pub struct Beat {
    /// Its number in the session.
    pub sequence: u64,
    /// The jobs the runner holds.
    pub running: Vec<Lease>,
}

/// The end of a job, as its runner reports it.
#[derive(Debug)]
pub struct Finished {
    /// The job under its lease.
    pub lease: Lease,
    /// How it ended.
    pub status: JobStatus,
    /// The failing step's exit code.
    pub exit_code: i32,
    /// A reason word, or empty.
    pub failure_reason: String,
}

/// The end of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Which session.
    pub session: SessionId,
    /// Why.
    pub why: SessionClosed,
}

/// Where a session's messages go.
#[derive(Clone)]
pub struct Doors {
    /// Requests to be let in.
    pub knocks: mpsc::Sender<Knock>,
    /// Free slots; none, whatever was assigned, when it says good-bye.
    pub slots: mpsc::Sender<Spoken<Slots>>,
    /// Jobs the runner will run.
    pub accepted: mpsc::Sender<Spoken<Lease>>,
    /// Jobs it will not run.
    pub declined: mpsc::Sender<Spoken<Lease>>,
    /// Signs of life.
    pub beats: mpsc::Sender<Spoken<Beat>>,
    /// Ends of jobs.
    pub finished: mpsc::Sender<Spoken<Finished>>,
    /// Ends of sessions. Unbounded, as it is sent from a destructor; each admitted session sends one.
    pub closed: mpsc::UnboundedSender<Closed>,
    /// Cancelled when the pod sends its runners away.
    pub draining: CancellationToken,
}

/// What a caller needs to become a session.
pub(super) struct Caller {
    pub(super) token_sha256: String,
    pub(super) inbound: Streaming<RunnerMessage>,
    pub(super) doors: Doors,
    pub(super) hello_timeout: Duration,
    pub(super) slots_max: u32,
    pub(super) slot: StreamSlot,
    pub(super) log_in: LogIn,
}

/// An admitted session.
struct Session {
    id: SessionId,
    inbound: Streaming<RunnerMessage>,
    outgoing: Outgoing,
    doors: Doors,
    why: SessionClosed,
    slot: StreamSlot,
    slots_max: u32,
}

/// The messages of a session, in the order in which they are sent. The first is `Welcome`; an error is the last.
pub(super) fn messages(caller: Caller) -> impl Stream<Item = Result<RouterMessage, Status>> + Send {
    enum Phase {
        Knocking(Box<Caller>),
        Open(Box<Session>),
        Over,
    }
    futures::stream::unfold(Phase::Knocking(Box::new(caller)), |phase| async move {
        match phase {
            Phase::Knocking(caller) => match admit(*caller).await {
                Ok((session, welcome)) => {
                    let kind = Some(router_message::Kind::Welcome(welcome));
                    Some((Ok(RouterMessage { kind }), Phase::Open(Box::new(session))))
                }
                Err(status) => Some((Err(status), Phase::Over)),
            },
            Phase::Open(mut session) => match session.next().await {
                Some(Ok(message)) => Some((Ok(message), Phase::Open(session))),
                Some(Err(status)) => Some((Err(status), Phase::Over)),
                None => None,
            },
            Phase::Over => None,
        }
    })
}

async fn admit(caller: Caller) -> Result<(Session, Welcome), Status> {
    let Caller { token_sha256, mut inbound, doors, hello_timeout, slots_max, slot, log_in } = caller;
    let Ok(first) = tokio::time::timeout(hello_timeout, inbound.message()).await else {
        log_in.unheard();
        metrics().refused_total.of(Limit::HelloTimeout).increment(1);
        return Err(Status::deadline_exceeded(format!("no Hello within {} ms", hello_timeout.as_millis())));
    };
    let first = first.inspect_err(count_too_large)?.and_then(|message| message.kind);
    let Some(runner_message::Kind::Hello(hello)) = first else {
        log_in.unheard();
        return Err(Status::invalid_argument("the first message must be Hello"));
    };
    let hello = convert::hello(&hello, slots_max)?;

    let id = SessionId::next();
    // Slots that are taken now will be free one day, all at once perhaps.
    let slots = hello.slots.saturating_add(hello.running.len() as u32);
    let (outbox, outgoing) = outbox(id, slots, doors.closed.clone());
    let (answer, answered) = oneshot::channel();
    let answer = Answer::new(answer, log_in);
    let knock = Knock { session: id, token_sha256, hello, outbox, answer };
    let away = || Status::unavailable("the pod is stopping; reconnect to another");
    // Built before the answer, so that its end is told even if the caller goes while it is let in.
    let session = Session { id, inbound, outgoing, doors: doors.clone(), why: SessionClosed::Lost, slot, slots_max };
    doors.knocks.send(knock).await.map_err(|_| away())?;
    let welcome = answered.await.map_err(|_| away())??;
    session.slot.admitted();
    Ok((session, welcome))
}

fn count_too_large(status: &Status) {
    if status.code() == Code::OutOfRange {
        metrics().refused_total.of(Limit::MessageBytes).increment(1);
    }
}

// === impl Answer ===

impl Answer {
    pub(super) fn new(to: oneshot::Sender<Result<Welcome, Status>>, log_in: LogIn) -> Self {
        Self { to, log_in }
    }

    /// Lets the caller in; false if it has left.
    pub fn welcome(self, welcome: Welcome) -> bool {
        self.log_in.worked();
        self.to.send(Ok(welcome)).is_ok()
    }

    /// The token is nobody's: a failed log-in, whether the caller waits for this or not.
    pub fn unknown_token(self) {
        self.log_in.failed();
        let _ = self.to.send(Err(Status::unauthenticated("no runner has this token")));
    }

    /// It cannot be let in now.
    pub fn refuse(self, status: Status) {
        let _ = self.to.send(Err(status));
    }

    /// Whether the caller has left.
    pub fn is_closed(&self) -> bool {
        self.to.is_closed()
    }
}

// === impl Session ===

impl Session {
    /// The next message for the runner, taking in what the runner says meanwhile; `None`: an orderly end.
    async fn next(&mut self) -> Option<Result<RouterMessage, Status>> {
        loop {
            tokio::select! {
                biased;
                message = self.outgoing.next() => return Some(Ok(message)),
                () = self.outgoing.end.now.cancelled() => {
                    let (why, status) = self.outgoing.end.why().cloned().unwrap_or((SessionClosed::Lost, None));
                    self.why = why;
                    return status.map(Err);
                }
                message = self.inbound.message() => match message {
                    Ok(Some(RunnerMessage { kind: Some(kind) })) => {
                        if let Err(status) = self.take_in(kind).await {
                            if status.code() == Code::InvalidArgument {
                                self.why = SessionClosed::Protocol;
                            }
                            return Some(Err(status));
                        }
                    }
                    // A message of a newer version; its sender copes without an answer.
                    Ok(Some(RunnerMessage { kind: None })) => {}
                    Err(status) if status.code() == Code::OutOfRange => {
                        count_too_large(&status);
                        self.why = SessionClosed::Protocol;
                        return Some(Err(status));
                    }
                    Ok(None) | Err(_) => return None,
                },
            }
        }
    }

    async fn take_in(&mut self, kind: runner_message::Kind) -> Result<(), Status> {
        use runner_message::Kind;
        let session = self.id;
        let delivered = match kind {
            Kind::Hello(_) => return Err(Status::invalid_argument("hello: only as the first message")),
            Kind::Slots(slots) => {
                if slots.free > self.slots_max {
                    metrics().refused_total.of(Limit::SlotsPerSession).increment(1);
                    let text = format!("slots.free: {}; at most {}", slots.free, self.slots_max);
                    return Err(Status::invalid_argument(text));
                }
                let said = Slots { free: slots.free, assigns_seen: slots.assigns_seen };
                self.doors.slots.send(Spoken { session, said }).await.is_ok()
            }
            Kind::Accepted(accepted) => {
                let said = convert::lease("accepted.lease", accepted.lease.as_ref())?;
                self.doors.accepted.send(Spoken { session, said }).await.is_ok()
            }
            Kind::Declined(declined) => {
                if !declined.reason.is_empty() && !is_reason_word(&declined.reason) {
                    return Err(Status::invalid_argument("declined.reason: must be empty or 1 to 64 of [a-z0-9_]"));
                }
                let said = convert::lease("declined.lease", declined.lease.as_ref())?;
                self.doors.declined.send(Spoken { session, said }).await.is_ok()
            }
            Kind::Beat(beat) => {
                let said = convert::beat(&beat, self.slots_max)?;
                self.doors.beats.send(Spoken { session, said }).await.is_ok()
            }
            Kind::Finished(finished) => {
                let said = convert::finished(&finished)?;
                self.doors.finished.send(Spoken { session, said }).await.is_ok()
            }
            Kind::Goodbye(_) => {
                self.why = SessionClosed::Goodbye;
                let said = Slots { free: 0, assigns_seen: u64::MAX };
                self.doors.slots.send(Spoken { session, said }).await.is_ok()
            }
        };
        if delivered { Ok(()) } else { Err(Status::unavailable("the pod is stopping; reconnect to another")) }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.doors.closed.send(Closed { session: self.id, why: self.why });
    }
}
