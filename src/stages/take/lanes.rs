//! The lanes of one partition as this pod knows them: what their jobs need, and whether there may be work.

use std::collections::HashMap;

use crate::runner::Lane;
use crate::tags::Capability;

/// A lane's number here: classes list lanes by number.
pub(super) type LaneId = usize;

/// The place of a take among all takes of a partition, in the order in which they were sent.
pub(super) type Turn = u64;

/// All lanes of a partition.
#[derive(Default)]
pub(super) struct Lanes {
    ids: HashMap<Lane, LaneId>,
    lanes: Vec<Known>,
    /// Lanes with a wake that no take has answered yet.
    woken: Vec<LaneId>,
    /// The last take's.
    turn: Turn,
}

struct Known {
    lane: Lane,
    capability: Capability,
    /// This pod stands in the lane's `waiting`, with this rank: it will be woken, asking is no use but for a better one.
    waiting: Option<i64>,
    woken: bool,
    /// The last take that was sent before a wake: until its answer and those before it are here, what they say of waiting
    /// may be older than the wake.
    distrusted: Turn,
    /// Takes of this lane that are under way.
    asked: u32,
    /// The last take got all it asked for: there may be much more.
    deep: bool,
}

// === impl Lanes ===

impl Lanes {
    /// These lanes, of which nothing else is known. Goes on from the turns of `before`, whose takes may still be under way.
    pub(super) fn of(known: Vec<(Lane, Capability)>, before: &Self) -> Self {
        let mut lanes = Self { turn: before.turn, ..Self::default() };
        for (lane, capability) in known {
            lanes.insert(lane, capability);
        }
        lanes
    }

    /// A lane was opened, perhaps again: whoever waited in it before waits no more.
    pub(super) fn insert(&mut self, lane: Lane, capability: Capability) -> LaneId {
        let id = *self.ids.entry(lane).or_insert(self.lanes.len());
        if id == self.lanes.len() {
            let (waiting, woken, asked, deep) = (None, false, 0, false);
            self.lanes.push(Known { lane, capability, waiting, woken, distrusted: 0, asked, deep });
        }
        self.lanes[id].waiting = None;
        self.lanes[id].distrusted = self.turn;
        id
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (LaneId, Lane, &Capability)> {
        self.lanes.iter().enumerate().map(|(id, known)| (id, known.lane, &known.capability))
    }

    pub(super) fn get(&self, id: LaneId) -> (Lane, &Capability) {
        (self.lanes[id].lane, &self.lanes[id].capability)
    }

    pub(super) fn capability(&self, lane: Lane) -> Option<&Capability> {
        self.ids.get(&lane).map(|id| &self.lanes[*id].capability)
    }

    /// The numbers of those of these lanes that are known. A lane that is not has no class here either; its opening is on
    /// its way by mail.
    pub(super) fn ids(&self, lanes: &[Lane]) -> Vec<LaneId> {
        lanes.iter().filter_map(|lane| self.ids.get(lane).copied()).collect()
    }

    /// There is work in these lanes, or is about to be, and this pod stands in their `waiting` no more.
    pub(super) fn wake(&mut self, ids: &[LaneId]) {
        for id in ids {
            let known = &mut self.lanes[*id];
            known.waiting = None;
            known.distrusted = self.turn;
            if !std::mem::replace(&mut known.woken, true) {
                self.woken.push(*id);
            }
        }
    }

    /// The lanes with a wake that no take has answered yet.
    pub(super) fn woken(&self) -> &[LaneId] {
        &self.woken
    }

    /// Whether this pod thinks that it stands in the lane's `waiting`.
    pub(super) fn is_waiting(&self, id: LaneId) -> bool {
        self.lanes[id].waiting.is_some()
    }

    /// Whether the last take of this lane got all it asked for.
    pub(super) fn is_deep(&self, id: LaneId) -> bool {
        self.lanes[id].deep
    }

    /// Whether a take of this lane by a class of this rank may bring something that no take under way is about to.
    pub(super) fn may_have_work(&self, id: LaneId, rank: i64) -> bool {
        let known = &self.lanes[id];
        known.waiting.is_none_or(|waiting| rank < waiting) && (known.asked == 0 || known.woken || known.deep)
    }

    /// A take of these lanes goes out: it answers their wakes.
    pub(super) fn asked(&mut self, ids: &[LaneId]) -> (Turn, Vec<Lane>) {
        for id in ids {
            self.lanes[*id].woken = false;
            self.lanes[*id].asked += 1;
        }
        self.woken.retain(|id| self.lanes[*id].woken);
        self.turn += 1;
        (self.turn, ids.iter().map(|id| self.lanes[*id].lane).collect())
    }

    /// Its answer is here. `waits`: the script put this pod into their `waiting`, with this rank; none: took it out.
    pub(super) fn answered(&mut self, turn: Turn, lanes: &[Lane], waits: Option<i64>) {
        for lane in lanes {
            if let Some(id) = self.ids.get(lane) {
                let known = &mut self.lanes[*id];
                known.asked = known.asked.saturating_sub(1);
                known.deep = waits.is_none();
                known.waiting = waits.filter(|_| turn > known.distrusted);
                if waits.is_none() {
                    // What an older take says, should its answer come later, is not so any more.
                    known.distrusted = known.distrusted.max(turn);
                }
            }
        }
    }

    /// It failed for good: nothing is known.
    pub(super) fn failed(&mut self, lanes: &[Lane]) {
        for lane in lanes {
            if let Some(id) = self.ids.get(lane) {
                let known = &mut self.lanes[*id];
                known.asked = known.asked.saturating_sub(1);
                known.waiting = None;
            }
        }
    }

    /// Woken lanes that no class here can answer, now or when a take under way comes back: others should.
    pub(super) fn wakes_to_pass_on(&mut self, may_take_soon: impl Fn(LaneId) -> bool) -> Vec<Lane> {
        let mut pass_on = Vec::new();
        let lanes = &mut self.lanes;
        self.woken.retain(|id| {
            let keep = may_take_soon(*id);
            if !keep {
                lanes[*id].woken = false;
                pass_on.push(lanes[*id].lane);
            }
            keep
        });
        pass_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::Scope;
    use crate::tags::TagSet;

    /// One known lane, and its number.
    fn one() -> (Lanes, Lane, LaneId) {
        let capability = Capability { tags: TagSet::default(), protected: false, requires: TagSet::default() };
        let lane = Lane { scope: Scope::Instance, fingerprint: capability.fingerprint() };
        let mut lanes = Lanes::default();
        let id = lanes.insert(lane, capability);
        (lanes, lane, id)
    }

    #[test]
    fn a_pod_that_waits_does_not_ask_until_it_is_woken() {
        let (mut lanes, lane, id) = one();
        assert!(lanes.may_have_work(id, 0), "nothing is known");
        let (turn, asked) = lanes.asked(&[id]);
        assert!(!lanes.may_have_work(id, 0), "that take will see what there is");
        lanes.answered(turn, &asked, Some(0));
        assert!(!lanes.may_have_work(id, 0) && lanes.is_waiting(id));
        assert!(lanes.may_have_work(id, -1), "a better slot is free now: it should stand further ahead");
        lanes.wake(&[id]);
        assert!(lanes.may_have_work(id, 0));
        assert_eq!(lanes.wakes_to_pass_on(|_| true), [], "it is kept");
        assert_eq!(lanes.wakes_to_pass_on(|_| false), [lane]);
        assert_eq!(lanes.wakes_to_pass_on(|_| false), [], "once");
    }

    #[test]
    fn what_an_answer_says_of_waiting_is_older_than_a_wake_that_came_after_its_take_was_sent() {
        let (mut lanes, _, id) = one();
        let (first, asked) = lanes.asked(&[id]);
        lanes.wake(&[id]);
        // A second take answers the wake; the answer of the first comes after that.
        let (second, _) = lanes.asked(&[id]);
        lanes.answered(first, &asked, Some(0));
        assert!(!lanes.is_waiting(id));
        lanes.answered(second, &asked, Some(0));
        assert!(lanes.is_waiting(id));
    }

    #[test]
    fn what_an_older_take_says_of_waiting_is_not_so_once_a_later_one_filled_all_slots() {
        let (mut lanes, _, id) = one();
        let (first, asked) = lanes.asked(&[id]);
        let (second, _) = lanes.asked(&[id]);
        lanes.answered(second, &asked, None);
        lanes.answered(first, &asked, Some(0));
        assert!(!lanes.is_waiting(id));
    }

    #[test]
    fn a_take_that_got_all_it_asked_for_leaves_a_lane_that_all_may_ask() {
        let (mut lanes, _, id) = one();
        let (turn, asked) = lanes.asked(&[id]);
        lanes.answered(turn, &asked, None);
        assert!(lanes.is_deep(id));
        lanes.asked(&[id]);
        assert!(lanes.may_have_work(id, 0), "for another class, at the same time");
    }

    #[test]
    fn nothing_is_believed_that_was_asked_before_the_lanes_were_read_anew() {
        let (mut lanes, lane, id) = one();
        let (turn, asked) = lanes.asked(&[id]);
        let capability = lanes.get(id).1.clone();
        let mut lanes = Lanes::of(vec![(lane, capability)], &lanes);
        lanes.answered(turn, &asked, Some(0));
        assert!(!lanes.is_waiting(id) && lanes.may_have_work(id, 0));
    }

    #[test]
    fn a_take_that_failed_leaves_its_lanes_to_others() {
        let (mut lanes, _, id) = one();
        let (_, asked) = lanes.asked(&[id]);
        lanes.failed(&asked);
        assert!(lanes.may_have_work(id, 0));
    }
}
