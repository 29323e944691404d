//! The lanes of one partition as this pod knows them: what their jobs need, and whether there may be work.

use std::collections::HashMap;

use crate::runner::Lane;
use crate::tags::Capability;

/// A lane's number here: classes list lanes by number.
pub(super) type LaneId = usize;

/// All lanes of a partition.
#[derive(Default)]
pub(super) struct Lanes {
    ids: HashMap<Lane, LaneId>,
    lanes: Vec<Known>,
    /// Lanes with a wake that no take has answered yet.
    woken: Vec<LaneId>,
}

struct Known {
    lane: Lane,
    capability: Capability,
    /// This pod stands in the lane's `waiting`: it will be woken, asking is no use.
    waiting: bool,
    woken: bool,
    /// Takes of this lane that are under way.
    asked: u32,
}

// === impl Lanes ===

impl Lanes {
    pub(super) fn of(known: Vec<(Lane, Capability)>) -> Self {
        let mut lanes = Self::default();
        for (lane, capability) in known {
            lanes.insert(lane, capability);
        }
        lanes
    }

    /// A lane was opened, perhaps again: whoever waited in it before waits no more.
    pub(super) fn insert(&mut self, lane: Lane, capability: Capability) -> LaneId {
        let id = *self.ids.entry(lane).or_insert(self.lanes.len());
        if id == self.lanes.len() {
            self.lanes.push(Known { lane, capability, waiting: false, woken: false, asked: 0 });
        }
        self.lanes[id].waiting = false;
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

    /// There is work in these lanes, and this pod stands in their `waiting` no more.
    pub(super) fn wake(&mut self, lanes: Vec<Lane>) {
        for lane in lanes {
            // A lane that is not known here has no class here either; its opening is on its way by mail.
            let Some(id) = self.ids.get(&lane) else { continue };
            let known = &mut self.lanes[*id];
            known.waiting = false;
            if !std::mem::replace(&mut known.woken, true) {
                self.woken.push(*id);
            }
        }
    }

    /// The numbers of those of these lanes that are known.
    pub(super) fn ids(&self, lanes: &[Lane]) -> Vec<LaneId> {
        lanes.iter().filter_map(|lane| self.ids.get(lane).copied()).collect()
    }

    /// There is about to be work in these lanes.
    pub(super) fn expect_work(&mut self, ids: &[LaneId]) {
        self.wake(ids.iter().map(|id| self.lanes[*id].lane).collect());
    }

    /// Whether one of these lanes has a wake that no take has answered yet.
    pub(super) fn any_woken(&self, ids: &[LaneId]) -> bool {
        ids.iter().any(|id| self.lanes[*id].woken)
    }

    /// Whether a take of this lane may bring something that no other take is about to.
    pub(super) fn may_have_work(&self, id: LaneId) -> bool {
        !self.lanes[id].waiting
    }

    /// A take of these lanes goes out: it answers their wakes.
    pub(super) fn asked(&mut self, ids: &[LaneId]) -> Vec<Lane> {
        for id in ids {
            self.lanes[*id].woken = false;
            self.lanes[*id].asked += 1;
        }
        self.woken.retain(|id| self.lanes[*id].woken);
        ids.iter().map(|id| self.lanes[*id].lane).collect()
    }

    /// Its answer is here. `waits`: the script put this pod into their `waiting`.
    pub(super) fn answered(&mut self, lanes: &[Lane], waits: bool) {
        for lane in lanes {
            if let Some(id) = self.ids.get(lane) {
                let known = &mut self.lanes[*id];
                known.asked = known.asked.saturating_sub(1);
                // A wake that overtook the answer was sent after the script put the pod there: the wake is newer.
                known.waiting = waits && !known.woken;
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
