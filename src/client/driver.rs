//! Carries the protocol out: one task that owns the session, the jobs and the clock.
//!
//! There is at most one session, and at most one being opened. After `Drain` both exist: the old one keeps
//! serving its jobs until the new one is welcome, so no job misses a beat and no outcome waits; what the old
//! one assigns meanwhile is declined, which moves it to another runner at once.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc::Sender;
use tokio::time::{Interval, MissedTickBehavior, Sleep, interval, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::backoff::Backoff;
use super::connect::{Dialer, Failure, Session};
use super::executor::Executor;
use super::fence::BootTime;
use super::jobs::{Ended, Jobs};
use super::protocol::{Action, Protocol};
use super::{ClientError, Options, Shutdown, Summary};
use crate::proto::runner_message::Kind as Up;
use crate::proto::{Hello, RouterMessage, RunnerMessage};

/// The longest time between two looks at the fences: bounds how long a job outlives its lease on a machine
/// that wakes from suspension.
const TICK_MAX: Duration = Duration::from_millis(250);
/// With more than this waiting to be sent, nothing more is read: the router does not read us either.
const OUTBOX_MAX: usize = 1024;
/// The most messages handled before beats and signals get their turn.
const BATCH: usize = 256;
/// How long the last outcomes may wait for their acknowledgement at shutdown, and jobs handed back for their answer.
const ACK_WAIT: Duration = Duration::from_secs(5);
/// How long the router may take to close a session that we have closed.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// A runner at work.
pub(super) struct Driver<E> {
    dialer: Arc<Dialer>,
    hello: Hello,
    protocol: Protocol,
    jobs: Jobs<E>,
    session: Option<Session>,
    opening: Option<Opening>,
    outbox: VecDeque<RunnerMessage>,
    /// Since when there has been no session, where there was one before.
    away_since: Option<Instant>,
    longest_away: Duration,
    backoff: Backoff,
    ticks: Interval,
    shutdown: Shutdown,
    shutdown_grace: Duration,
    ending: Option<Ending>,
}

/// The next session on its way.
enum Opening {
    Waiting(Pin<Box<Sleep>>),
    Connecting(BoxFuture<'static, Result<Channel, Failure>>),
    Greeting(BoxFuture<'static, Result<Session, Failure>>),
}

/// What is known once the runner was told to go away.
struct Ending {
    kill_at: Instant,
    killed: bool,
    /// Set when the last job's process is gone and no other can start.
    acks_until: Option<Instant>,
}

enum Event {
    Tick,
    Received(Result<Option<RouterMessage>, Status>),
    Room,
    Ended(Ended),
    Dial,
    Connected(Result<Channel, Failure>),
    Greeted(Result<Box<Session>, Failure>),
    Stop,
    Kill,
}

// === impl Driver ===

impl<E: Executor> Driver<E> {
    /// Has no session yet; the first is opened at once.
    pub(super) fn new(options: &Options, executor: E, shutdown: Shutdown) -> Result<Self, ClientError> {
        let hello = Hello {
            system_id: options.system_id.to_string(),
            version: options.version.chars().take(64).filter(char::is_ascii).collect(),
            features: options.features.iter().map(str::to_owned).collect(),
            ..Hello::default()
        };
        Ok(Self {
            dialer: Arc::new(Dialer::new(options)?),
            hello,
            protocol: Protocol::new(options.slots),
            jobs: Jobs::new(executor),
            session: None,
            opening: Some(Opening::after(Duration::ZERO)),
            outbox: VecDeque::new(),
            away_since: None,
            longest_away: Duration::ZERO,
            backoff: Backoff::default(),
            ticks: ticks(TICK_MAX),
            shutdown,
            shutdown_grace: options.shutdown_grace,
            ending: None,
        })
    }

    /// Serves until told to stop, or until the router refuses this runner for good.
    pub(super) async fn run(mut self) -> Result<Summary, ClientError> {
        while !self.is_done() {
            let event = self.next_event().await;
            if let Err(error) = self.handle(event) {
                self.jobs.kill_all().await;
                return Err(error);
            }
            self.settle();
        }
        self.close().await;
        Ok(Summary { longest_away: self.longest_away, ..self.protocol.summary() })
    }

    async fn next_event(&mut self) -> Event {
        let may_read = self.outbox.len() < OUTBOX_MAX;
        let may_send = !self.outbox.is_empty();
        let (sender, inbound) = match self.session.as_mut() {
            Some(session) => (Some(&session.sender), Some(&mut session.inbound)),
            None => (None, None),
        };
        tokio::select! {
            _ = self.ticks.tick() => Event::Tick,
            received = receive(inbound), if may_read => Event::Received(received),
            () = room(sender), if may_send => Event::Room,
            ended = self.jobs.next() => Event::Ended(ended),
            event = step(self.opening.as_mut()) => event,
            () = self.shutdown.stop.cancelled(), if self.ending.is_none() => Event::Stop,
            () = self.shutdown.kill.cancelled(), if !self.ending.as_ref().is_some_and(|ending| ending.killed) => Event::Kill,
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), ClientError> {
        match event {
            Event::Tick => self.tick(),
            Event::Room => {}
            Event::Received(received) => return self.receive_batch(received),
            Event::Ended((lease, outcome)) => {
                self.protocol.ended(&lease, outcome);
                while let Some((lease, outcome)) = self.jobs.try_next() {
                    self.protocol.ended(&lease, outcome);
                }
            }
            Event::Dial => {
                let dialer = Arc::clone(&self.dialer);
                self.opening = Some(Opening::Connecting(async move { dialer.connect().await }.boxed()));
            }
            Event::Connected(Ok(channel)) => {
                let (dialer, hello) = (Arc::clone(&self.dialer), self.protocol.hello(self.hello.clone()));
                self.opening = Some(Opening::Greeting(async move { dialer.greet(channel, hello).await }.boxed()));
            }
            Event::Greeted(Ok(session)) => self.welcomed(*session),
            Event::Connected(Err(failure)) | Event::Greeted(Err(failure)) => return self.retry(&failure),
            Event::Stop => self.stop(),
            Event::Kill => {
                if self.ending.is_none() {
                    self.stop();
                }
                self.kill();
            }
        }
        Ok(())
    }

    /// Handles what was received, and what else has arrived already.
    fn receive_batch(&mut self, mut received: Result<Option<RouterMessage>, Status>) -> Result<(), ClientError> {
        let now = BootTime::now();
        for left in (0..BATCH).rev() {
            let ended = match received {
                Ok(Some(RouterMessage { kind: Some(kind) })) => {
                    self.protocol.received(kind, now, |assignment| self.jobs.accept(assignment));
                    None
                }
                // A kind that a newer router knows and we do not.
                Ok(Some(RouterMessage { kind: None })) => None,
                Ok(None) => Some(Failure::Away("the router closed the session".to_owned())),
                Err(status) => Some(Failure::from(status)),
            };
            if let Some(failure) = ended {
                return self.session_ended(&failure);
            }
            // What is read here must be handled here.
            let next =
                self.session.as_mut().filter(|_| left > 0).and_then(|session| session.inbound.message().now_or_never());
            match next {
                Some(next) => received = next,
                None => break,
            }
        }
        Ok(())
    }

    /// Carries out all actions, tells of slots, and sends what the queue has room for.
    fn settle(&mut self) {
        while let Some(action) = self.protocol.next_action() {
            match action {
                Action::Send(kind) => self.outbox.push_back(RunnerMessage { kind: Some(kind) }),
                Action::Run(assignment, kill_wait) => self.jobs.start(assignment, kill_wait),
                Action::Cancel(lease) => self.jobs.cancel(&lease),
                Action::Kill(lease) => self.jobs.kill(&lease),
                Action::Move(delay) => {
                    tracing::info!(delay_ms = delay.as_millis() as u64, "pod is draining");
                    self.opening.get_or_insert_with(|| Opening::after(delay));
                }
                Action::HangUp(reason) => {
                    // Never fatal, so no error can be lost here.
                    let _ = self.session_ended(&Failure::Away(reason.to_owned()));
                }
            }
        }
        if let Some(slots) = self.protocol.slots_to_tell() {
            self.outbox.push_back(RunnerMessage { kind: Some(Up::Slots(slots)) });
        }
        let Some(session) = &self.session else { return self.outbox.clear() };
        while !self.outbox.is_empty()
            && let Ok(permit) = session.sender.try_reserve()
            && let Some(message) = self.outbox.pop_front()
        {
            permit.send(message);
        }
    }

    fn welcomed(&mut self, session: Session) {
        self.opening = None;
        self.outbox.clear();
        if let Some(old) = self.session.take() {
            self.backoff.session_ended(old.since.elapsed());
        }
        if let Some(since) = self.away_since.take() {
            self.longest_away = self.longest_away.max(since.elapsed());
        }
        let lease = Duration::from_millis(session.welcome.lease_ms.into());
        self.ticks = ticks((lease / 32).clamp(Duration::from_millis(5), TICK_MAX));
        tracing::info!(pod = session.welcome.pod, session = session.welcome.session, "session opened");
        self.protocol.welcomed(&session.welcome, &session.hello, BootTime::now());
        self.session = Some(session);
    }

    fn session_ended(&mut self, failure: &Failure) -> Result<(), ClientError> {
        let Some(session) = self.session.take() else { return Ok(()) };
        self.backoff.session_ended(session.since.elapsed());
        self.away_since = Some(Instant::now());
        self.protocol.session_lost();
        tracing::info!(pod = session.welcome.pod, session = session.welcome.session, reason = %failure, "session ended");
        match failure {
            Failure::Denied(_) => Err(ClientError::Refused(failure.to_string())),
            _ if self.opening.is_some() => Ok(()),
            _ => self.retry(failure),
        }
    }

    /// Tries again after a while, unless that is pointless.
    fn retry(&mut self, failure: &Failure) -> Result<(), ClientError> {
        let never_welcomed = self.protocol.summary().sessions == 0;
        let slowly = match failure {
            Failure::Denied(_) => return Err(ClientError::Refused(failure.to_string())),
            // After a first Welcome it may be one pod of another version: others, or its successor, may do.
            Failure::Invalid(_) if never_welcomed => return Err(ClientError::Refused(failure.to_string())),
            Failure::Invalid(_) | Failure::TokenUnknown(_) => true,
            Failure::Away(_) => false,
        };
        let delay = self.backoff.delay(slowly, rand::random());
        tracing::warn!(reason = %failure, retry_in_ms = delay.as_millis() as u64, "no session");
        self.opening = Some(Opening::after(delay));
        Ok(())
    }

    fn tick(&mut self) {
        self.protocol.tick(BootTime::now());
        if self.ending.as_ref().is_some_and(|ending| !ending.killed && Instant::now() >= ending.kill_at) {
            self.kill();
        }
    }

    fn stop(&mut self) {
        tracing::info!(jobs = self.protocol.occupied(), "runner is going away");
        self.ending = Some(Ending { kill_at: Instant::now() + self.shutdown_grace, killed: false, acks_until: None });
        self.protocol.stop();
    }

    fn kill(&mut self) {
        self.protocol.kill_all();
        if let Some(ending) = self.ending.as_mut() {
            ending.killed = true;
        }
    }

    /// Whether the runner was told to go away, no job runs or will, and the router has answered (or was waited for long enough).
    fn is_done(&mut self) -> bool {
        let Some(ending) = self.ending.as_mut().filter(|_| self.protocol.is_still()) else { return false };
        let acks_until = *ending.acks_until.get_or_insert_with(|| Instant::now() + ACK_WAIT);
        self.protocol.is_idle() || Instant::now() >= acks_until
    }

    /// Sends what is left, closes our half, and lets the router close its own: cutting the stream could
    /// overtake the last messages.
    async fn close(&mut self) {
        let Some(Session { sender, mut inbound, .. }) = self.session.take() else { return };
        let rest = async {
            for message in self.outbox.drain(..) {
                sender.send(message).await.ok();
            }
            drop(sender);
            while let Ok(Some(_)) = inbound.message().await {}
        };
        if timeout(CLOSE_WAIT, rest).await.is_err() {
            tracing::debug!("router did not close the session");
        }
    }
}

// === impl Opening ===

impl Opening {
    fn after(delay: Duration) -> Self {
        Self::Waiting(Box::pin(sleep(delay)))
    }
}

/// The next step of opening a session; for ever, while none is being opened.
async fn step(opening: Option<&mut Opening>) -> Event {
    match opening {
        None => std::future::pending().await,
        Some(Opening::Waiting(sleep)) => {
            sleep.await;
            Event::Dial
        }
        Some(Opening::Connecting(channel)) => Event::Connected(channel.await),
        Some(Opening::Greeting(session)) => Event::Greeted(session.await.map(Box::new)),
    }
}

async fn receive(inbound: Option<&mut Streaming<RouterMessage>>) -> Result<Option<RouterMessage>, Status> {
    match inbound {
        Some(inbound) => inbound.message().await,
        None => std::future::pending().await,
    }
}

/// Returns when the queue has room. A closed queue means that the call is over: reading tells why.
async fn room(sender: Option<&Sender<RunnerMessage>>) {
    match sender {
        Some(sender) if sender.reserve().await.is_ok() => {}
        _ => std::future::pending().await,
    }
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
