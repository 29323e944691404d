//! A class of runners as this pod has it: its sessions, the lanes it matches, its takes.

use std::collections::BTreeSet;

use super::{ClassId, LaneId, Lanes};
use crate::grpc::SessionId;
use crate::runner::RunnerClass;

/// Sessions whose runners are all alike to a job.
pub(super) struct Class {
    pub(super) class: RunnerClass,
    pub(super) members: BTreeSet<SessionId>,
    /// Members with free slots that may be offered; most slots last.
    pub(super) free: BTreeSet<(u32, SessionId)>,
    /// Per partition, the lanes it matches.
    pub(super) lanes: Vec<Vec<LaneId>>,
    /// Per partition, takes under way.
    pub(super) asking: Vec<u32>,
    /// Per partition, where in `lanes` the next take begins, so that those beyond what one take asks get their turn.
    pub(super) next: Vec<usize>,
}

// === impl Class ===

impl Class {
    /// Highest runner priority first.
    pub(super) fn rank(&self) -> i64 {
        -i64::from(self.class.priority)
    }
}

/// The first of these classes, which come with their ranks; of those of its rank rather a `liked` one.
pub(super) fn first_of_equals<T>(
    mut classes: impl Iterator<Item = (ClassId, i64, T)>,
    liked: &[ClassId],
) -> Option<(ClassId, i64, T)> {
    let first = classes.next()?;
    if liked.is_empty() || liked.contains(&first.0) {
        return Some(first);
    }
    let of_liked = classes.take_while(|class| class.1 == first.1).find(|class| liked.contains(&class.0));
    Some(of_liked.unwrap_or(first))
}

/// Per partition, the lanes that a class matches.
pub(super) fn matched(class: &RunnerClass, lanes: &[Lanes]) -> Vec<Vec<LaneId>> {
    let matching = |lanes: &Lanes| {
        let matching = lanes.iter().filter(|(_, lane, capability)| class.matches(lane.scope, capability));
        matching.map(|(id, ..)| id).collect()
    };
    lanes.iter().map(matching).collect()
}
