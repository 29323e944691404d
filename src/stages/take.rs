//! take: knows the free slots of this pod's fleet, takes jobs for them, and pushes each to its runner.
//!
//! In: sessions, their slots and ends; wakes; lanes. Out: `Assign` to runners; what could not be pushed to give_back; scopes in
//! use to the scopes stage; what has changed of the fleet to the presence stage.
//!
//! What must stay true (invariants 7 and 8):
//!
//! - For every lane that a class with a free slot matches, a take is under way, or this pod stands in the lane's
//!   `waiting`, or a wake for it is noted here.
//! - A wake is answered by a take of its lane: with slots if a class has some, else without, which passes it on.
//! - A slot is offered in one call at a time; what the answer leaves over is free again.
//! - What a runner may take is checked once more when its job is pushed.

mod affinity;
mod fleet;
mod held_back;
mod lanes;
mod push;

use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info};

use super::{BATCH, GiveBack, Opened, Pod, Queueing, Slot, ToTake, Undone, between, wire};
use crate::clock::jitter;
use crate::grpc::{Closed, SessionId, Slots, Spoken};
use crate::job::RunnerId;
use crate::redis::{Change, Manager, Offer, Taken};
use crate::runner::{Lane, RunnerRecord, Scope};
use crate::telemetry::labels::{self, SessionClosed, Took};
use crate::telemetry::metrics;
use affinity::Affinity;
use fleet::{ClassId, Fleet};
use held_back::HeldBack;
use lanes::{LaneId, Lanes, Turn};

/// The most lanes one take asks. A class that matches more asks them in turn; those found empty drop out, and those with a wake
/// go first.
const LANES_MAX: usize = 8;
/// How long a class waits after a take that failed for good.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// How often to count the free slots and look whether scopes are to be spoken for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The most slots one take offers.
const OFFERS_MAX: usize = BATCH;
/// How many it offers in lanes that are not known to be deep: each offer costs Redis, used or not.
const OFFERS_FIRST: usize = 8;

/// Where the stage hears from.
pub struct Inputs {
    /// The other stages.
    pub stages: mpsc::Receiver<ToTake>,
    /// Free slots of sessions.
    pub slots: mpsc::Receiver<Spoken<Slots>>,
    /// Ends of sessions.
    pub closed: mpsc::UnboundedReceiver<Closed>,
}

/// A take that is under way: what was asked for whom.
struct Asked {
    partition: u16,
    by: By,
    rank: i64,
    lanes: Vec<Lane>,
    offers: Vec<(Offer, SessionId)>,
}

/// Who asks.
#[derive(Clone, Copy)]
enum By {
    /// A class, for its free slots.
    Class(ClassId, Turn),
    /// Nobody here has a free slot: a wake is passed on.
    PassingOn,
}

type Answer = (Asked, Result<Taken, Undone>);

struct Take {
    pod: Pod,
    fleet: Fleet,
    lanes: Vec<Lanes>,
    affinity: Affinity,
    held_back: HeldBack,
    /// Takes under way.
    asking: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// Lanes of all partitions are read anew.
    loading: bool,
    /// Jobs to give back, until the stage that does it has room.
    returns: Vec<GiveBack>,
    /// Scopes to open, until the stage that does it has room.
    scopes: Vec<Scope>,
    scopes_told: Instant,
    /// Where to tell what has changed of the fleet.
    presence: mpsc::Sender<Vec<Change>>,
}

/// Takes and pushes until the pod has stopped.
pub async fn run(
    pod: Pod,
    mut inputs: Inputs,
    give_back: mpsc::Sender<GiveBack>,
    scopes: mpsc::Sender<Scope>,
    presence: mpsc::Sender<Vec<Change>>,
) {
    let mut take = Take {
        fleet: Fleet::default(),
        lanes: pod.partitions.iter().map(|_| Lanes::default()).collect(),
        affinity: Affinity::new(pod.config.affinity_memory),
        held_back: HeldBack::default(),
        asking: FuturesUnordered::new(),
        loading: true,
        returns: Vec::new(),
        scopes: Vec::new(),
        scopes_told: Instant::now(),
        presence,
        pod,
    };
    let stopped = take.pod.stopped.clone();
    let mut doubts = take.pod.redis.doubts();
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if take.loading && !take.load().await {
            return;
        }
        take.end_waits();
        take.ask_all();
        let look_again = take.next_look().unwrap_or_else(far_off);
        tokio::select! {
            () = stopped.cancelled() => return,
            Some((asked, answer)) = take.asking.next() => take.answered(asked, answer),
            // The end of a session before its slots: a slot of a session that is gone is none.
            Some(closed) = inputs.closed.recv() => take.closed(closed),
            Some(spoken) = inputs.slots.recv() => take.slots(&spoken),
            Some(said) = inputs.stages.recv() => take.hear(said),
            Ok(()) = doubts.changed() => take.loading = true,
            Ok(room) = give_back.reserve(), if !take.returns.is_empty() => {
                room.send(take.returns.pop().expect("there is one"));
            }
            Ok(room) = scopes.reserve(), if !take.scopes.is_empty() => {
                room.send(take.scopes.pop().expect("there is one"));
            }
            () = tokio::time::sleep_until(look_again) => {}
            _ = look.tick() => take.look(),
        }
    }
}

fn far_off() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

// === impl Take ===

impl Take {
    fn hear(&mut self, said: ToTake) {
        match said {
            ToTake::Opened(opened) => self.opened(*opened),
            ToTake::Changed(id, record) => self.changed(id, record.as_deref()),
            ToTake::BackOff(session) => {
                let until = self.alone_until();
                self.fleet.back_off(session, until);
            }
            ToTake::Wake(partition, lanes) => self.wake(partition, &lanes),
            ToTake::Likes(partition, lane, manager) => self.affinity.likes(partition, lane, manager),
            ToTake::Queueing(partition, jobs, all_or_none, answer) => {
                // Who asked waits, or the pod has stopped.
                let _ = answer.send(self.slots_for(partition, &jobs, all_or_none));
            }
            ToTake::Queued(partition, slots) => self.queued(partition, slots),
            ToTake::Standing(partition, lanes) => self.look_at_standing(partition, &lanes),
            ToTake::LaneOpened(partition, lane, capability) => {
                let id = self.lanes[usize::from(partition)].insert(lane, capability);
                self.fleet.match_lane(partition, id, &self.lanes[usize::from(partition)]);
            }
            ToTake::Resync => self.loading = true,
        }
    }

    /// Reads all lanes anew and forgets what this pod waited for. False: the pod has stopped.
    async fn load(&mut self) -> bool {
        for (number, partition) in self.pod.partitions.iter().enumerate() {
            let Ok(known) = self.pod.until_done("lanes", || partition.lanes()).await else {
                return !self.pod.stopped.is_cancelled();
            };
            self.lanes[number] = Lanes::of(known, &self.lanes[number]);
        }
        self.fleet.match_all(&self.lanes);
        self.scopes_told = Instant::now() - self.pod.config.scope_ttl;
        self.remind_scopes();
        self.loading = false;
        true
    }

    /// What a session says of its slots may come before the news that it was opened, on another channel.
    fn slots(&mut self, spoken: &Spoken<Slots>) {
        if self.pod.sessions.get(spoken.session).is_some() {
            self.fleet.set_slots(spoken.session, spoken.said);
            let freed = self.fleet.manager_with_room(spoken.session).map(|manager| self.held_back.freed(&manager));
            self.ask_for(freed.unwrap_or_default());
        }
    }

    /// What waited for a time that is over: sessions that were left alone, lanes whose jobs waited for a manager.
    fn end_waits(&mut self) {
        let now = Instant::now();
        self.fleet.end_back_offs(now);
        let over = self.held_back.over(now);
        self.ask_for(over);
    }

    /// When the next of these is over.
    fn next_look(&self) -> Option<Instant> {
        self.fleet.next_back_off().into_iter().chain(self.held_back.next()).min()
    }

    fn opened(&mut self, opened: Opened) {
        let session = opened.session;
        // Its end is told on another channel and may be known here before its beginning: nobody would tell it again.
        if self.pod.sessions.get(session).is_none() {
            return;
        }
        let (scopes, replaced) = self.fleet.open(opened, &self.lanes);
        self.scopes.extend(scopes);
        if let Some((older, outbox)) = replaced {
            let status = tonic::Status::aborted("a newer session of this system_id has taken over");
            outbox.close(SessionClosed::Replaced, Some(status));
            info!(session = %older, "session replaced by a newer one of its manager");
        }
    }

    fn closed(&mut self, closed: Closed) {
        if !self.pod.sessions.remove(closed.session) {
            return;
        }
        let manager = self.fleet.close(closed.session);
        let why = closed.why;
        metrics().sessions_closed_total.of(why).increment(1);
        let undelivered = self.pod.held.forget(closed.session, self.pod.config.lease);
        info!(session = %closed.session, reason = ?why, undelivered = undelivered.len(), "runner disconnected");
        let draining = self.pod.draining.is_cancelled();
        if let Some(manager) = manager.filter(|_| !draining && !undelivered.is_empty()) {
            let until = self.alone_until();
            self.fleet.back_off_manager(manager, until);
        }
        let why = if draining { labels::GaveBack::Drain } else { labels::GaveBack::SessionClosed };
        self.returns.extend(undelivered.into_iter().map(|lease| GiveBack { lease, why, back_off: None }));
    }

    /// A runner's record has changed: its sessions are of another class at once, or go.
    fn changed(&mut self, id: RunnerId, record: Option<&RunnerRecord>) {
        let (scopes, gone) = self.fleet.change(id, record, &self.lanes);
        self.scopes.extend(scopes);
        for outbox in gone {
            let status = tonic::Status::unauthenticated("no runner has this token any more");
            outbox.close(SessionClosed::Protocol, Some(status));
        }
    }

    /// Until when to leave somebody alone from now on.
    fn alone_until(&self) -> Instant {
        Instant::now() + jitter(self.pod.config.decline_backoff, 0.2)
    }

    fn look(&mut self) {
        self.fleet.forget_deserters(Instant::now());
        metrics().slots_free.set(self.fleet.free() as f64);
        self.remind_scopes();
        // While nobody takes the last word it is kept, and said in one with the next.
        if let Ok(room) = self.presence.try_reserve() {
            room.send(self.fleet.changes());
        }
    }

    /// Scopes in use are spoken for again, so that their lanes stay.
    fn remind_scopes(&mut self) {
        if self.scopes_told.elapsed() >= self.pod.config.scope_ttl / 3 {
            self.scopes_told = Instant::now();
            self.scopes = self.fleet.scopes();
        }
    }

    /// Sends every take there is a reason for.
    fn ask_all(&mut self) {
        if self.loading {
            return;
        }
        for partition in 0..self.lanes.len() as u16 {
            if !self.pod.draining.is_cancelled() {
                while let Some(asked) = self.next_ask(partition) {
                    self.ask(asked);
                }
            }
            let lanes = self.lanes[usize::from(partition)].wakes_to_pass_on(|lane| {
                !self.pod.draining.is_cancelled() && self.fleet.may_take_soon(partition, lane)
            });
            for batch in lanes.chunks(LANES_MAX) {
                metrics().wakes_total.of(labels::Wake::PassedOn).increment(batch.len() as u64);
                let lanes = batch.to_vec();
                self.ask(Asked { partition, by: By::PassingOn, rank: 0, lanes, offers: Vec::new() });
            }
        }
    }

    /// Asks lanes again in which jobs wait, with slots of the managers they like first.
    fn ask_for(&mut self, waiting: Vec<(u16, Lane, Manager)>) {
        for (partition, lane, manager) in waiting {
            self.affinity.likes(partition, lane, manager);
            self.wake(partition, &[lane]);
        }
    }

    fn wake(&mut self, partition: u16, lanes: &[Lane]) {
        let known = &mut self.lanes[usize::from(partition)];
        known.wake(&known.ids(lanes));
    }

    /// A lane with work, a free slot that suits it, and this pod just waits: its wake was lost.
    fn look_at_standing(&mut self, partition: u16, lanes: &[Lane]) {
        let known = &mut self.lanes[usize::from(partition)];
        let mut lost: Vec<LaneId> = known.ids(lanes);
        lost.retain(|id| known.is_waiting(*id) && self.fleet.can_ask(partition, *id));
        // Where jobs may wait for managers of other pods, it may just be such a one: no loss, but worth a look.
        let sure = self.pod.config.affinity_wait.is_zero();
        for id in lost.iter().filter(|_| sure) {
            metrics().sweep_rescues_total.increment(1);
            error!(lane = %known.get(*id).0, partition, "sweep found a lost wake");
        }
        known.wake(&lost);
    }

    /// A class with free slots and a lane that may have work for them.
    fn next_ask(&mut self, partition: u16) -> Option<Asked> {
        let known = &mut self.lanes[usize::from(partition)];
        let may_have_work = |id, rank| known.may_have_work(id, rank);
        let liked = self.affinity.liked(partition);
        let (class, ids) = self.fleet.class_to_ask(partition, known.woken(), may_have_work, LANES_MAX, liked)?;
        let most = if ids.iter().any(|id| known.is_deep(*id)) { OFFERS_MAX } else { OFFERS_FIRST };
        let (turn, lanes) = known.asked(&ids);
        self.held_back.asked(partition, &lanes);
        let liked = self.affinity.asked(partition, &lanes);
        let offers = self.fleet.offer(class, partition, most, &liked);
        let offers = offers
            .into_iter()
            .map(|(session, runner_id, system_id)| (self.pod.offer(partition, session, runner_id, system_id), session));
        let rank = self.fleet.rank_of(class);
        Some(Asked { partition, by: By::Class(class, turn), rank, lanes, offers: offers.collect() })
    }

    fn ask(&mut self, asked: Asked) {
        let pod = self.pod.clone();
        self.asking.push(Box::pin(async move {
            let partition = &pod.partitions[usize::from(asked.partition)];
            let offers: Vec<Offer> = asked.offers.iter().map(|(offer, _)| offer.clone()).collect();
            let call = || partition.take(&pod.name, pod.terms(), asked.rank, &asked.lanes, &offers);
            let answer = pod.until_done("take", call).await;
            if matches!(answer, Err(Undone::Failed(_))) {
                tokio::time::sleep(AFTER_FAILURE).await; // a bug; not to be met in a tight loop
            }
            (asked, answer)
        }));
    }

    fn answered(&mut self, asked: Asked, answer: Result<Taken, Undone>) {
        let Asked { partition, by, rank, lanes, offers } = asked;
        let known = &mut self.lanes[usize::from(partition)];
        let (class, turn) = match (by, &answer) {
            (By::Class(class, turn), _) => (class, turn),
            (By::PassingOn, Ok(taken)) => return self.wake(partition, &taken.again),
            (By::PassingOn, Err(_)) => return,
        };
        let Ok(Taken { jobs, slots, again, held }) = answer else {
            known.failed(&lanes);
            self.fleet.take_back(class, partition, offers.iter().map(|(_, session)| *session));
            return;
        };
        let took = if jobs.is_empty() { Took::Empty } else { Took::Jobs };
        metrics().takes_total.of(took).increment(1);
        // With slots left over the pod now waits in every lane asked but those to ask again; without, in none.
        let waits = (jobs.len() < offers.len()).then_some(rank);
        known.answered(turn, &lanes, waits);
        known.wake(&known.ids(&again));
        for job in held {
            self.held_back.add(partition, job.lane, job.likes, job.at_most);
        }
        let mut unused: Vec<SessionId> = Vec::with_capacity(offers.len() - jobs.len());
        // In the order of the offers.
        let mut jobs = jobs.into_iter().zip(slots).peekable();
        for (nth, (_, session)) in offers.into_iter().enumerate() {
            match jobs.next_if(|(_, slot)| *slot == nth) {
                Some((job, _)) => {
                    between("take: before Assign");
                    self.push(job, session, partition);
                }
                None => unused.push(session),
            }
        }
        self.fleet.take_back(class, partition, unused.into_iter());
    }
}
