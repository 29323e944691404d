//! What a stage holds of a session: a place to put messages, and a way to end it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::session::Closed;
use crate::proto::{RouterMessage, router_message};
use crate::telemetry::labels::SessionClosed;

/// Names a session within this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(u64);

/// Messages to one runner, in order. Cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    session: SessionId,
    closed: mpsc::UnboundedSender<Closed>,
    messages: mpsc::Sender<RouterMessage>,
    end: Arc<End>,
}

/// The receiving half: what the session's stream sends on.
pub(super) struct Outgoing {
    pub(super) messages: mpsc::Receiver<RouterMessage>,
    pub(super) end: Arc<End>,
}

/// How a session was told to end.
pub(super) struct End {
    pub(super) now: CancellationToken,
    why: OnceLock<(SessionClosed, Option<Status>)>,
}

/// Room for what the stages may say while the runner's connection is busy: an Assign, a Start and an acknowledgement
/// for each of its slots within a round trip, and some for beats. More means that the runner does not read.
fn capacity(slots: u32) -> usize {
    64 + 4 * slots.min(1_000) as usize
}

/// An outbox for a session with this many slots, free or not; where it tells that its runner does not read.
pub(super) fn outbox(session: SessionId, slots: u32, closed: mpsc::UnboundedSender<Closed>) -> (Outbox, Outgoing) {
    let (messages, receiver) = mpsc::channel(capacity(slots));
    let end = Arc::new(End { now: CancellationToken::new(), why: OnceLock::new() });
    (Outbox { session, closed, messages, end: end.clone() }, Outgoing { messages: receiver, end })
}

// === impl SessionId ===

impl SessionId {
    /// The next one.
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl Outbox ===

impl Outbox {
    /// Puts a message; false when the session has ended, or ends now because the runner does not read.
    pub fn send(&self, kind: router_message::Kind) -> bool {
        match self.messages.try_send(RouterMessage { kind: Some(kind) }) {
            Ok(()) => !self.end.now.is_cancelled(),
            Err(mpsc::error::TrySendError::Full(_)) => {
                let status = Status::resource_exhausted("the runner does not read its messages");
                self.close(SessionClosed::Slow, Some(status));
                // Its stream is not polled while the runner does not read, and may never tell its own end.
                let _ = self.closed.send(Closed { session: self.session, why: SessionClosed::Slow });
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    /// Ends the session, after what is in the outbox, with this status (none: an orderly end). The first call wins.
    pub fn close(&self, why: SessionClosed, status: Option<Status>) {
        let _ = self.end.why.set((why, status));
        self.end.now.cancel();
    }
}

// === impl End ===

impl End {
    pub(super) fn why(&self) -> Option<&(SessionClosed, Option<Status>)> {
        self.why.get()
    }
}
