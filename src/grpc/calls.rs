//! Held calls of GitLab Runners: those of one manager are a session, and each of them is a slot of it.
//!
//! Arrives: calls, with who makes them. Leaves: [`Knock`], [`Slots`] and [`Closed`] as of a native session; for each call a job or
//! nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{OnceCell, oneshot};
use tonic::Status;

use super::convert;
use super::info::Info;
use super::log_in::LogIn;
use super::outbox::{End, SessionId, outbox_to_calls};
use super::server::Place;
use super::session::{Answer, Closed, Doors, Hello, Knock, Slots, Spoken};
use crate::job::Name;
use crate::proto::{Assign, router_message::Kind};
use crate::tags::TagSet;
use crate::telemetry::labels::{Limit, SessionClosed};
use crate::telemetry::metrics;

/// How long a session stays when it holds no call: between two calls, and while its manager has all it may run.
const LINGERS: Duration = Duration::from_secs(60);
/// The same where its last call was canceled: its manager has stopped.
const LINGERS_AFTER_CANCEL: Duration = Duration::from_secs(5);
/// How long a call is held that comes while the pod sends its runners away: it shall not come again at once, nor be cut with the
/// server, which ends a second after the last session.
pub(super) const WHILE_DRAINING: Duration = Duration::from_millis(500);

/// Who calls: calls that are alike in this are of one session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Caller {
    pub(super) token_sha256: String,
    pub(super) system_id: Name,
    pub(super) features: TagSet,
}

/// The sessions of all managers that call.
pub(super) struct Calls {
    doors: Doors,
    managers: Mutex<HashMap<Caller, Arc<Manager>>>,
}

/// One manager.
#[derive(Default)]
pub(super) struct Manager {
    session: OnceCell<Session>,
}

/// Its session, once it was let in; its end is told when it is dropped.
struct Session {
    id: SessionId,
    held: Arc<HeldCalls>,
    end: Arc<End>,
    doors: Doors,
    _place: Place,
}

/// The calls of a session, shared with its outbox.
pub(super) struct HeldCalls(Mutex<Held>);

#[derive(Default)]
struct Held {
    /// Calls without an answer, the oldest first.
    waiting: VecDeque<(u64, oneshot::Sender<Word>)>,
    last_call: u64,
    /// Jobs that were answered.
    assigned: u64,
    /// Those of them of which it is not known yet whether they run.
    unsure: u64,
    /// Sent away: what comes now is answered empty.
    draining: bool,
    /// The last word on slots found no room.
    untold: bool,
    /// Since when there is no call.
    idle_since: Option<Instant>,
    /// The last one did not wait for its answer, or there was none yet.
    canceled: bool,
}

/// What a call is told.
enum Word {
    Job(Box<Assign>),
    /// Nothing; say so after this time.
    Nothing(Duration),
}

/// A call while it waits.
struct Call<'a> {
    session: &'a Session,
    number: u64,
    word: oneshot::Receiver<Word>,
}

// === impl Calls ===

impl Calls {
    pub(super) fn new(doors: Doors) -> Self {
        Self { doors, managers: Mutex::default() }
    }

    /// The session of a caller, or a new one that has yet to be let in.
    pub(super) fn manager(&self, caller: &Caller) -> Arc<Manager> {
        let mut managers = self.lock();
        if let Some(known) = managers.get(caller).filter(|known| !known.has_ended()) {
            return known.clone();
        }
        let new = Arc::<Manager>::default();
        managers.insert(caller.clone(), new.clone());
        new
    }

    /// Ends sessions without calls, and tells again what found no room. To be called now and then.
    pub(super) fn look(&self) {
        let mut gone = Vec::new(); // dropped without the lock: that tells their ends
        let mut managers = self.lock();
        managers.retain(|_, manager| {
            let stays = Arc::strong_count(manager) > 1 || manager.session.get().is_some_and(Session::stays);
            if !stays {
                gone.push(manager.clone());
            }
            stays
        });
        managers.values().filter_map(|manager| manager.session.get()).for_each(Session::tell_again);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Caller, Arc<Manager>>> {
        self.managers.lock().expect("nobody panics with it")
    }

    /// Whether the pod is sending its runners away.
    pub(super) fn is_draining(&self) -> bool {
        self.doors.draining.is_cancelled()
    }

    /// Waits for so long, or until the pod sends its runners away; whether it does.
    pub(super) async fn drains_within(&self, time: Duration) -> bool {
        tokio::time::timeout(time, self.doors.draining.cancelled()).await.is_ok()
    }

    /// Lets the manager in, unless it is. Of several calls one knocks and the others wait for what it hears.
    pub(super) async fn let_in(
        &self,
        manager: &Manager,
        caller: &Caller,
        info: &Info,
        log_in: LogIn,
        place: impl FnOnce() -> Result<Place, Status>,
    ) -> Result<(), Status> {
        let knock = async || {
            let id = SessionId::next();
            let held = Arc::new(HeldCalls::new());
            let (outbox, end) = outbox_to_calls(id, held.clone(), self.doors.closed.clone());
            let hello = Hello {
                system_id: caller.system_id.clone(),
                version: info.version(),
                info: info.for_rails(),
                slots: 0,
                features: caller.features.clone(),
                running: Vec::new(),
            };
            let (answer, answered) = oneshot::channel();
            let token_sha256 = caller.token_sha256.clone();
            let knock = Knock { session: id, token_sha256, hello, outbox, answer: Answer::new(answer, log_in) };
            // Built before the answer, so that its end is told even if the call goes while it is let in.
            let session = Session { id, held, end, doors: self.doors.clone(), _place: place()? };
            let away = || Status::unavailable("the pod is stopping");
            self.doors.knocks.send(knock).await.map_err(|_| away())?;
            answered.await.map_err(|_| away())??;
            Ok(session)
        };
        manager.session.get_or_try_init(knock).await.map(drop)
    }
}

// === impl Manager ===

impl Manager {
    fn has_ended(&self) -> bool {
        self.session.get().is_some_and(Session::has_ended)
    }

    /// Holds a call of a manager that was let in, until there is a job for it, at most for `hold`. Answers the job, nothing, or why
    /// the session ended, if that is an error.
    pub(super) async fn hold(&self, hold: Duration, slots_max: u32) -> Result<Option<Assign>, Status> {
        let session = self.session.get().expect("it was let in");
        let Some(mut call) = session.enter(slots_max) else { return Ok(None) };
        let told = tokio::select! {
            biased;
            told = &mut call.word => told.ok(),
            () = session.end.now.cancelled() => None,
            () = tokio::time::sleep(hold) => None,
        };
        let told = told.or_else(|| call.leave());
        match told {
            Some(Word::Job(assign)) => Ok(Some(*assign)),
            Some(Word::Nothing(after)) => {
                tokio::time::sleep(after).await;
                Ok(None)
            }
            None => match session.end.why() {
                Some((SessionClosed::Protocol, Some(status))) => Err(status.clone()),
                _ => Ok(None),
            },
        }
    }
}

// === impl Session ===

impl Session {
    fn has_ended(&self) -> bool {
        self.end.now.is_cancelled()
    }

    fn stays(&self) -> bool {
        let held = self.held.lock();
        let is_used = !held.waiting.is_empty() || held.unsure > 0;
        let lingers = if held.canceled { LINGERS_AFTER_CANCEL } else { LINGERS };
        let idle = held.idle_since.is_some_and(|since| since.elapsed() >= lingers);
        !self.has_ended() && (is_used || !held.draining && !idle)
    }

    /// One more call; none, as there are as many as there may be.
    fn enter(&self, slots_max: u32) -> Option<Call<'_>> {
        let mut held = self.held.lock();
        if held.waiting.len() >= slots_max as usize {
            metrics().refused_total.of(Limit::SlotsPerSession).increment(1);
            return None;
        }
        held.last_call += 1;
        let (number, (told, word)) = (held.last_call, oneshot::channel());
        if held.draining {
            let _ = told.send(Word::Nothing(WHILE_DRAINING));
        } else {
            held.waiting.push_back((number, told));
            (held.idle_since, held.canceled) = (None, false);
            self.tell(&mut held);
        }
        Some(Call { session: self, number, word })
    }

    /// Tells how many calls wait.
    fn tell(&self, held: &mut Held) {
        let said = Slots { free: held.waiting.len() as u32, assigns_seen: held.assigned };
        held.untold = self.doors.slots.try_send(Spoken { session: self.id, said }).is_err();
    }

    fn tell_again(&self) {
        let mut held = self.held.lock();
        if held.untold {
            self.tell(&mut held);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let why = self.end.why().map_or(SessionClosed::Idle, |(why, _)| *why);
        let _ = self.doors.closed.send(Closed { session: self.id, why });
    }
}

// === impl HeldCalls ===

impl HeldCalls {
    fn new() -> Self {
        Self(Mutex::new(Held { idle_since: Some(Instant::now()), canceled: true, ..Held::default() }))
    }

    /// A message for the session. False: a job that no call is there for.
    pub(super) fn hear(&self, kind: Kind) -> bool {
        let mut held = self.lock();
        match kind {
            Kind::Assign(assign) => held.answer(assign),
            Kind::Start(_) | Kind::Revoked(_) => {
                held.unsure = held.unsure.saturating_sub(1);
                true
            }
            Kind::Drain(drain) => {
                held.draining = true;
                let after = Duration::from_millis(drain.reconnect_after_ms.into());
                held.waiting.drain(..).for_each(|(_, call)| drop(call.send(Word::Nothing(after))));
                true
            }
            // Its runner is told by Rails.
            _ => true,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().expect("nobody panics with it")
    }
}

// === impl Held ===

impl Held {
    /// The oldest call gets the job. Whether one was there or not, it will be told what became of it.
    fn answer(&mut self, assign: Assign) -> bool {
        self.unsure += 1;
        let mut word = Word::Job(Box::new(assign));
        while let Some((_, call)) = self.waiting.pop_front() {
            match call.send(word) {
                Ok(()) => {
                    self.assigned += 1;
                    self.idle_since = self.waiting.is_empty().then(Instant::now);
                    return true;
                }
                Err(back) => word = back,
            }
        }
        false
    }
}

// === impl Call ===

impl Call<'_> {
    /// The call waits no longer; what it was told just now.
    fn leave(&mut self) -> Option<Word> {
        let mut held = self.session.held.lock();
        let before = held.waiting.len();
        let number = self.number;
        held.waiting.retain(|(waiting, _)| *waiting != number);
        if held.waiting.len() < before {
            if held.waiting.is_empty() {
                held.idle_since = Some(Instant::now());
            }
            self.session.tell(&mut held);
        }
        // Nobody sends without the lock, so this is the last word.
        self.word.try_recv().ok()
    }
}

/// The caller has gone: a job that was on its way to it goes back.
impl Drop for Call<'_> {
    fn drop(&mut self) {
        {
            let mut held = self.session.held.lock();
            held.canceled |= held.waiting.iter().any(|(number, _)| *number == self.number);
        }
        if let Some(Word::Job(assign)) = self.leave()
            && let Ok(lease) = convert::lease("assign.lease", assign.lease.as_ref())
        {
            // Without room, the time to accept runs out.
            let _ = self.session.doors.declined.try_send(Spoken { session: self.session.id, said: lease });
        }
    }
}
