//! The sessions of this pod by class, and their free slots.

mod back_off;
mod class;
mod member;
mod presence;

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;

use super::lanes::{LaneId, Lanes};
use crate::grpc::{Outbox, SessionId, Slots};
use crate::job::{Name, RunnerId};
use crate::redis::Manager;
use crate::runner::{RunnerClass, RunnerRecord, Scope};
use crate::stages::Opened;
use crate::tags::Capability;
use class::{Class, first_of_equals, matched};
use member::Member;

/// A class's number, never used again: a take that is under way may outlive the class it was sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ClassId(u64);

/// All sessions.
#[derive(Default)]
pub(super) struct Fleet {
    sessions: HashMap<SessionId, Member>,
    managers: HashMap<Manager, SessionId>,
    class_ids: HashMap<RunnerClass, ClassId>,
    /// Those with members, or with a take under way. What runners call their features makes classes: they must not add up.
    classes: HashMap<ClassId, Class>,
    last_class: u64,
    /// Classes, highest runner priority first.
    order: Vec<ClassId>,
    /// Sessions that are left alone, and until when.
    backing_off: BTreeSet<(Instant, SessionId)>,
    /// Managers that went away with jobs they had not answered for, and until when they are left alone.
    deserters: HashMap<Manager, Instant>,
    /// What sessions said of their slots before they were known here.
    early: HashMap<SessionId, Slots>,
    /// What is to be told of them to those who explain.
    touched: presence::Touched,
}

/// A free slot: its session, its runner and which manager of it.
pub(super) type Offered = (SessionId, RunnerId, Name);

// === impl Fleet ===

impl Fleet {
    /// Adds a session. Answers the scopes of its class, and the older session of the same manager, if there is one.
    pub(super) fn open(&mut self, opened: Opened, lanes: &[Lanes]) -> (Vec<Scope>, Option<(SessionId, Outbox)>) {
        let Opened { session, record, system_id, features, info, slots, outbox } = opened;
        let id = self.class_of(record.class(&features), lanes);
        let class = self.class_mut(id);
        class.members.insert(session);
        let scopes = class.class.scopes.iter().copied().collect();
        let manager = (record.runner_id(), system_id.clone());
        let member = Member {
            class: id,
            record,
            system_id,
            features,
            info,
            outbox,
            said_free: slots,
            sent: 0,
            seen: 0,
            offered: 0,
            back_off: None,
            ranked: 0,
        };
        self.sessions.insert(session, member);
        self.rank(session);
        if let Some(slots) = self.early.remove(&session) {
            self.set_slots(session, slots);
        }
        self.remember_back_off(&manager, session);
        // Of two, the one that said Hello first goes, also where it was let in last.
        let other = self.managers.get(&manager).copied();
        let newer = other.map_or(session, |other| other.max(session));
        self.managers.insert(manager, newer);
        let older = other.map(|other| other.min(session));
        let replaced = older.and_then(|older| {
            let member = self.sessions.get_mut(&older)?;
            member.said_free = 0;
            let outbox = member.outbox.clone();
            self.rank(older);
            Some((older, outbox))
        });
        (scopes, replaced)
    }

    /// A session has ended; answers whose it was.
    pub(super) fn close(&mut self, session: SessionId) -> Option<Manager> {
        self.early.remove(&session);
        let member = self.sessions.remove(&session)?;
        self.leave(member.class, session, member.ranked);
        let manager = (member.record.runner_id(), member.system_id);
        if self.managers.get(&manager) == Some(&session) {
            self.managers.remove(&manager);
            self.touched.leaves(manager.clone());
        }
        Some(manager)
    }

    /// A runner's record may have changed. Answers scopes its sessions have now if it has, and the outboxes of those that must go.
    pub(super) fn change(
        &mut self,
        id: RunnerId,
        record: Option<&RunnerRecord>,
        lanes: &[Lanes],
    ) -> (Vec<Scope>, Vec<Outbox>) {
        let (mut scopes, mut gone) = (Vec::new(), Vec::new());
        let is_other = |member: &Member| member.record.runner_id() == id && record != Some(&member.record);
        let members = self.sessions.iter().filter(|(_, member)| is_other(member));
        let sessions: Vec<SessionId> = members.map(|(session, _)| *session).collect();
        for session in sessions {
            let member = &self.sessions[&session];
            let Some(record) = record.filter(|record| record.token_sha256 == member.record.token_sha256) else {
                gone.push(member.outbox.clone());
                continue;
            };
            let (old, features) = (member.class, member.features.clone());
            let class = self.class_of(record.class(&features), lanes);
            if class != old {
                let ranked = std::mem::take(&mut self.sessions.get_mut(&session).expect("found above").ranked);
                self.class_mut(class).members.insert(session);
                self.leave(old, session, ranked);
            }
            scopes.extend(self.class(class).class.scopes.iter().copied());
            let member = self.sessions.get_mut(&session).expect("found above");
            member.class = class;
            member.record = record.clone();
            self.rank(session);
        }
        (scopes, gone)
    }

    /// What a session says of its slots; one that is not known here yet will be, or is closed.
    pub(super) fn set_slots(&mut self, session: SessionId, slots: Slots) {
        if let Some(member) = self.sessions.get_mut(&session) {
            member.said_free = slots.free;
            member.seen = slots.assigns_seen.min(member.sent);
            self.rank(session);
        } else {
            self.early.insert(session, slots);
        }
    }

    /// The manager of a session that has a free slot to offer.
    pub(super) fn manager_with_room(&self, session: SessionId) -> Option<Manager> {
        let member = self.sessions.get(&session).filter(|member| member.ranked > 0)?;
        Some((member.record.runner_id(), member.system_id.clone()))
    }

    /// Free slots of all sessions.
    pub(super) fn free(&self) -> u64 {
        self.sessions.values().map(|member| u64::from(member.free())).sum()
    }

    /// The scopes of all sessions.
    pub(super) fn scopes(&self) -> Vec<Scope> {
        let used = self.classes.values().filter(|class| !class.members.is_empty());
        let scopes: BTreeSet<Scope> = used.flat_map(|class| class.class.scopes.iter().copied()).collect();
        scopes.into_iter().collect()
    }

    /// Matches a new lane against all classes.
    pub(super) fn match_lane(&mut self, partition: u16, id: LaneId, lanes: &Lanes) {
        let (lane, capability) = lanes.get(id);
        for class in self.classes.values_mut() {
            let matched = &mut class.lanes[usize::from(partition)];
            if class.class.matches(lane.scope, capability) && !matched.contains(&id) {
                matched.push(id);
            }
        }
    }

    /// Matches all classes against all lanes, which have new numbers.
    pub(super) fn match_all(&mut self, lanes: &[Lanes]) {
        for class in self.classes.values_mut() {
            class.lanes = matched(&class.class, lanes);
        }
    }

    /// A class with a free slot and lanes to ask for it, at most `max` of them: `woken` ones, then those that were asked
    /// longest ago. Of equals the class of a `liked` manager.
    pub(super) fn class_to_ask<'a>(
        &mut self,
        partition: u16,
        woken: &[LaneId],
        may_have_work: impl Fn(LaneId, i64) -> bool,
        max: usize,
        liked: impl Iterator<Item = &'a Manager>,
    ) -> Option<(ClassId, Vec<LaneId>)> {
        let number = usize::from(partition);
        // Highest runner priority first: lower classes get what is left over, when what was asked for higher ones is known.
        let mut asking: Vec<&Class> = Vec::new();
        let can = self.order.iter().filter_map(|id| {
            let class = self.class(*id);
            if class.asking[number] > 0 {
                asking.push(class);
            }
            if class.asking[number] > 0 || class.free.is_empty() {
                return None;
            }
            let rank = class.rank();
            let higher: Vec<_> = asking.iter().filter(|other| other.rank() < rank).collect();
            let is_theirs = |lane: &LaneId| higher.iter().any(|other| other.lanes[number].contains(lane));
            let may_bring = |lane: &&LaneId| may_have_work(**lane, rank) && !is_theirs(lane);
            let matched = &class.lanes[number];
            let first = woken.iter().filter(may_bring).filter(|lane| matched.contains(lane));
            let mut found: Vec<LaneId> = first.take(max).copied().collect();
            let (before, after) = matched.split_at(class.next[number].min(matched.len()));
            let mut next = before.len();
            for (at, lane) in after.iter().chain(before).enumerate().filter(|(_, lane)| may_bring(lane)) {
                if found.len() < max && !found.contains(lane) {
                    found.push(*lane);
                    next = (before.len() + at + 1) % matched.len();
                }
            }
            (!found.is_empty()).then_some((*id, rank, (next, found)))
        });
        let liked: Vec<ClassId> = liked.filter_map(|manager| self.free_class_of(manager)).collect();
        let (id, _, (next, lanes)) = first_of_equals(can, &liked)?;
        self.class_mut(id).next[number] = next;
        Some((id, lanes))
    }

    /// Offers up to `max` free slots of a class, those of `liked` managers first, then those of the session with the most free
    /// ones.
    pub(super) fn offer(&mut self, class: ClassId, partition: u16, max: usize, liked: &[Manager]) -> Vec<Offered> {
        self.class_mut(class).asking[usize::from(partition)] += 1;
        let mut offers: Vec<Offered> =
            liked.iter().filter_map(|manager| self.offer_liked(class, manager)).take(max).collect();
        while let Some(offer) = (offers.len() < max).then(|| self.offer_one(class)).flatten() {
            // One slot of the freest session at a time, so that a batch spreads as single jobs would.
            offers.push(offer);
        }
        offers
    }

    /// Offers a free slot that suits one of these lanes, of the class that comes first among those that `wait` in all their
    /// lanes and do not ask; of equals that of the `liked` manager.
    pub(super) fn slot_for(
        &mut self,
        partition: u16,
        lanes: &[LaneId],
        waits: impl Fn(LaneId) -> bool,
        liked: Option<&Manager>,
    ) -> Option<(LaneId, i64, Offered)> {
        let number = usize::from(partition);
        let mut asking = None; // the highest rank of a class that asks for one of these lanes
        let can = self.order.iter().filter_map(|id| {
            let class = self.class(*id);
            let matched = &class.lanes[number];
            let lane = lanes.iter().find(|lane| matched.contains(lane))?;
            if class.asking[number] > 0 {
                asking = asking.or(Some(class.rank()));
                return None;
            }
            let is_next = asking.is_none_or(|rank| rank >= class.rank());
            let has_room = !class.free.is_empty() && matched.iter().all(|lane| waits(*lane));
            (is_next && has_room).then_some((*id, class.rank(), *lane))
        });
        let liked_class = liked.and_then(|manager| self.free_class_of(manager));
        let (class, rank, lane) = first_of_equals(can, liked_class.as_slice())?;
        let offered = liked.and_then(|manager| self.offer_liked(class, manager)).or_else(|| self.offer_one(class))?;
        Some((lane, rank, offered))
    }

    /// The class of a manager that has a free slot to offer.
    fn free_class_of(&self, manager: &Manager) -> Option<ClassId> {
        let member = self.sessions.get(self.managers.get(manager)?)?;
        (member.ranked > 0).then_some(member.class)
    }

    fn offer_liked(&mut self, class: ClassId, manager: &Manager) -> Option<Offered> {
        let is_free = self.free_class_of(manager) == Some(class);
        let session = self.managers.get(manager).copied().filter(|_| is_free)?;
        Some(self.offer_of(session))
    }

    fn offer_one(&mut self, class: ClassId) -> Option<Offered> {
        let (_, session) = self.class(class).free.last().copied()?;
        Some(self.offer_of(session))
    }

    fn offer_of(&mut self, session: SessionId) -> Offered {
        let member = self.sessions.get_mut(&session).expect("members are sessions");
        member.offered += 1;
        let offered = (session, member.record.runner_id(), member.system_id.clone());
        self.rank(session);
        offered
    }

    /// A take is answered; these slots were not used.
    pub(super) fn take_back(&mut self, class: ClassId, partition: u16, unused: impl Iterator<Item = SessionId>) {
        self.class_mut(class).asking[usize::from(partition)] -= 1;
        for session in unused {
            self.release(session);
        }
        self.drop_unused(class);
    }

    /// An offered slot was not used.
    pub(super) fn release(&mut self, session: SessionId) {
        if let Some(member) = self.sessions.get_mut(&session) {
            member.offered = member.offered.saturating_sub(1);
        }
        self.rank(session);
    }

    /// An offered slot was used: an assignment is on its way.
    pub(super) fn assigned(&mut self, session: SessionId) -> Option<Manager> {
        let member = self.sessions.get_mut(&session)?;
        member.offered = member.offered.saturating_sub(1);
        member.sent += 1;
        let manager = (member.record.runner_id(), member.system_id.clone());
        self.rank(session);
        Some(manager)
    }

    /// Whether a class could answer a wake of this lane now or when a take under way is answered.
    pub(super) fn may_take_soon(&self, partition: u16, lane: LaneId) -> bool {
        let number = usize::from(partition);
        let could = |class: &Class| class.asking[number] > 0 || !class.free.is_empty();
        self.classes.values().any(|class| class.lanes[number].contains(&lane) && could(class))
    }

    /// Whether a take of this lane with a free slot could be sent now.
    pub(super) fn can_ask(&self, partition: u16, lane: LaneId) -> bool {
        let number = usize::from(partition);
        let can = |class: &Class| class.asking[number] == 0 && !class.free.is_empty();
        self.classes.values().any(|class| can(class) && class.lanes[number].contains(&lane))
    }

    /// Whether the session is there and its runner may take such a job, as the record is now.
    pub(super) fn may_take(&self, session: SessionId, scope: Scope, capability: &Capability) -> bool {
        let member = self.sessions.get(&session);
        member.is_some_and(|member| self.class(member.class).class.matches(scope, capability))
    }

    fn class_of(&mut self, class: RunnerClass, lanes: &[Lanes]) -> ClassId {
        if let Some(id) = self.class_ids.get(&class) {
            return *id;
        }
        self.last_class += 1;
        let id = ClassId(self.last_class);
        let new = Class {
            lanes: matched(&class, lanes),
            class: class.clone(),
            members: BTreeSet::new(),
            free: BTreeSet::new(),
            asking: vec![0; lanes.len()],
            next: vec![0; lanes.len()],
        };
        self.classes.insert(id, new);
        self.class_ids.insert(class, id);
        self.order.push(id);
        self.order.sort_by_key(|id| std::cmp::Reverse(self.classes[id].class.priority));
        id
    }

    /// The rank of a class: lower is served first.
    pub(super) fn rank_of(&self, id: ClassId) -> i64 {
        self.class(id).rank()
    }

    fn class(&self, id: ClassId) -> &Class {
        self.classes.get(&id).expect("a class stays while it has members or a take under way")
    }

    fn class_mut(&mut self, id: ClassId) -> &mut Class {
        self.classes.get_mut(&id).expect("a class stays while it has members or a take under way")
    }

    /// A session is not of this class any more.
    fn leave(&mut self, id: ClassId, session: SessionId, ranked: u32) {
        let class = self.class_mut(id);
        class.members.remove(&session);
        class.free.remove(&(ranked, session));
        self.drop_unused(id);
    }

    fn drop_unused(&mut self, id: ClassId) {
        let class = self.class(id);
        if class.members.is_empty() && class.asking.iter().all(|takes| *takes == 0) {
            let class = self.classes.remove(&id).expect("just seen");
            self.class_ids.remove(&class.class);
            self.order.retain(|ordered| *ordered != id);
        }
    }

    /// Puts a session where its free slots belong in its class.
    fn rank(&mut self, session: SessionId) {
        let Some(member) = self.sessions.get_mut(&session) else { return };
        self.touched.touch(session);
        let (before, now) = (member.ranked, member.offerable());
        if before == now {
            return;
        }
        member.ranked = now;
        let class = self.classes.get_mut(&member.class).expect("a class stays while it has members");
        let free = &mut class.free;
        free.remove(&(before, session));
        if now > 0 {
            free.insert((now, session));
        }
    }
}

#[cfg(test)]
mod tests;
