//! What a stage holds of a session: a place to put messages, and a way to end it. The same for a native runner's stream and for the
//! held calls of a GitLab Runner.
//!
//! A stream's is bounded by messages and by bytes. A session that is over a bound is closed at once and what was queued for it is dropped:
//! its stream may not be polled for long, and payloads would stay in memory until it is.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use prost::Message;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::calls::HeldCalls;
use super::session::Closed;
use crate::proto::{RouterMessage, router_message};
use crate::telemetry::labels::SessionClosed;

/// The most bytes that wait for one runner: twice what one take may push, 64 payloads of the largest size by default. An honest
/// runner reads faster: what it does not accept within `accept_timeout` is given back anyway.
const BYTES_MAX: usize = 128 << 20;

/// Names a session within this process. A later one is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(u64);

/// By which door a session came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The native stream: it accepts, beats, and reports its ends to us.
    Native,
    /// Held `GetJob` calls: it reports to Rails.
    GitLab,
}

/// Messages to one runner, in order. Cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    session: SessionId,
    closed: mpsc::UnboundedSender<Closed>,
    to: To,
    end: Arc<End>,
}

#[derive(Clone)]
enum To {
    Stream(Arc<Queue>),
    Calls(Arc<HeldCalls>),
}

/// The receiving half: what the session's stream sends on.
pub(super) struct Outgoing {
    queue: Arc<Queue>,
    pub(super) end: Arc<End>,
}

/// Messages on their way from the stages to the session's stream.
struct Queue {
    waiting: Mutex<Waiting>,
    more: Notify,
    capacity: usize,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<RouterMessage>,
    bytes: usize,
    /// The stream is gone or closed as slow: nothing is queued any more.
    over: bool,
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
    let queue = Queue { waiting: Mutex::default(), more: Notify::new(), capacity: capacity(slots) };
    let queue = Arc::new(queue);
    let end = Arc::new(End { now: CancellationToken::new(), why: OnceLock::new() });
    (Outbox { session, closed, to: To::Stream(queue.clone()), end: end.clone() }, Outgoing { queue, end })
}

/// An outbox for the held calls of a manager, and how it is told to end.
pub(super) fn outbox_to_calls(
    session: SessionId,
    calls: Arc<HeldCalls>,
    closed: mpsc::UnboundedSender<Closed>,
) -> (Outbox, Arc<End>) {
    let end = Arc::new(End { now: CancellationToken::new(), why: OnceLock::new() });
    (Outbox { session, closed, to: To::Calls(calls), end: end.clone() }, end)
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
    /// Puts a message; false when it goes nowhere: the session has ended, or ends now because the runner does not read, or no call
    /// is held that could take a job.
    pub fn send(&self, kind: router_message::Kind) -> bool {
        match &self.to {
            To::Stream(queue) => self.send_on(queue, kind),
            To::Calls(calls) => !self.is_closed() && calls.hear(kind),
        }
    }

    fn send_on(&self, queue: &Queue, kind: router_message::Kind) -> bool {
        let message = RouterMessage { kind: Some(kind) };
        let bytes = message.encoded_len();
        {
            let mut waiting = queue.lock();
            if waiting.over {
                return false;
            }
            if waiting.messages.len() < queue.capacity && waiting.bytes + bytes <= BYTES_MAX {
                waiting.messages.push_back(message);
                waiting.bytes += bytes;
                queue.more.notify_one();
                return !self.is_closed();
            }
            waiting.end();
        }
        let status = Status::resource_exhausted("the runner does not read its messages");
        self.close(SessionClosed::Slow, Some(status));
        // Its stream is not polled while the runner does not read, and may never tell its own end.
        let _ = self.closed.send(Closed { session: self.session, why: SessionClosed::Slow });
        false
    }

    /// By which door its session came.
    pub fn door(&self) -> Door {
        match self.to {
            To::Stream(_) => Door::Native,
            To::Calls(_) => Door::GitLab,
        }
    }

    /// Whether its session was told to end.
    pub fn is_closed(&self) -> bool {
        self.end.now.is_cancelled()
    }

    /// Ends the session, after what is in the outbox, with this status (none: an orderly end). The first call wins.
    pub fn close(&self, why: SessionClosed, status: Option<Status>) {
        let _ = self.end.why.set((why, status));
        self.end.now.cancel();
    }

    /// One whose messages nobody sends on.
    #[cfg(test)]
    pub fn for_tests(session: SessionId) -> Self {
        let (closed, _) = mpsc::unbounded_channel();
        outbox(session, 1, closed).0
    }
}

// === impl Outgoing ===

impl Outgoing {
    /// The next message; waits for one, for ever if none comes.
    pub(super) async fn next(&self) -> RouterMessage {
        loop {
            let next = self.queue.lock().pop();
            match next {
                Some(message) => return message,
                // A message put since then has left its notice, so this does not wait for it.
                None => self.queue.more.notified().await,
            }
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.queue.lock().end();
    }
}

// === impl Queue ===

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("nobody panics with it")
    }
}

// === impl Waiting ===

impl Waiting {
    fn pop(&mut self) -> Option<RouterMessage> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.encoded_len();
        Some(message)
    }

    fn end(&mut self) {
        *self = Self { over: true, ..Self::default() };
    }
}

// === impl End ===

impl End {
    pub(super) fn why(&self) -> Option<&(SessionClosed, Option<Status>)> {
        self.why.get()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::FutureExt;
    use router_message::Kind;

    use super::*;
    use crate::proto::{Assign, BeatAck};

    fn assign(payload: &Bytes) -> Kind {
        Kind::Assign(Assign { payload: payload.clone(), ..Assign::default() })
    }

    fn beat_ack(sequence: u64) -> Kind {
        Kind::BeatAck(BeatAck { sequence, gone: Vec::new() })
    }

    fn with_slots(slots: u32) -> (Outbox, Outgoing, mpsc::UnboundedReceiver<Closed>) {
        let (told, closed) = mpsc::unbounded_channel();
        let (outbox, outgoing) = outbox(SessionId::next(), slots, told);
        (outbox, outgoing, closed)
    }

    #[tokio::test]
    async fn messages_leave_in_their_order_and_make_room() {
        let (outbox, outgoing, mut closed) = with_slots(0);
        for sequence in 0..1_000 {
            assert!(outbox.send(beat_ack(sequence)));
            assert_eq!(outgoing.next().await.kind, Some(beat_ack(sequence)));
        }
        assert_eq!(outgoing.queue.lock().bytes, 0);
        assert!(outgoing.next().now_or_never().is_none() && closed.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_message_wakes_who_waits_for_it() {
        let (outbox, outgoing, _closed) = with_slots(0);
        let mut next = std::pin::pin!(outgoing.next());
        assert!(futures::poll!(next.as_mut()).is_pending());
        outbox.send(beat_ack(1));
        assert_eq!(next.await.kind, Some(beat_ack(1)));
    }

    #[test]
    fn a_runner_that_lets_too_many_bytes_wait_is_slow_and_their_memory_is_free_at_once() {
        let (outbox, outgoing, mut closed) = with_slots(10_000);
        let payload = Bytes::from(vec![b'x'; 1 << 20]);
        for _ in 0..64 {
            assert!(outbox.send(assign(&payload)), "one take's worth always has room");
        }
        let more = (0..1_000).take_while(|_| outbox.send(assign(&payload))).count();
        assert!(more < 64, "{more}");
        assert!(payload.is_unique(), "nothing is queued any more");
        assert_eq!(closed.try_recv().expect("told").why, SessionClosed::Slow);
        assert_eq!(outgoing.end.why().expect("told").0, SessionClosed::Slow);
        // What is said after that waits nowhere, and is no second end.
        assert!(!outbox.send(assign(&payload)));
        assert!(payload.is_unique() && outgoing.next().now_or_never().is_none() && closed.try_recv().is_err());
    }

    #[test]
    fn a_runner_that_lets_too_many_messages_wait_is_slow() {
        let (outbox, _outgoing, mut closed) = with_slots(1);
        assert_eq!((0..1_000).take_while(|n| outbox.send(beat_ack(*n))).count(), 68);
        assert_eq!(closed.try_recv().expect("told").why, SessionClosed::Slow);
    }

    #[test]
    fn what_is_queued_when_a_session_is_told_to_end_is_still_sent() {
        let (outbox, outgoing, _closed) = with_slots(1);
        assert!(outbox.send(beat_ack(1)));
        outbox.close(SessionClosed::Drain, None);
        assert!(!outbox.send(beat_ack(2)));
        assert_eq!(outgoing.next().now_or_never().expect("there").kind, Some(beat_ack(1)));
    }

    #[test]
    fn a_stream_that_is_gone_leaves_nothing_queued() {
        let (outbox, outgoing, _closed) = with_slots(1);
        let payload = Bytes::from(vec![b'x'; 1 << 10]);
        assert!(outbox.send(assign(&payload)));
        drop(outgoing);
        assert!(payload.is_unique() && !outbox.send(assign(&payload)));
    }
}
