//! A session as the take stage has it.

use std::sync::Arc;

use tokio::time::Instant;

use super::ClassId;
use crate::grpc::Outbox;
use crate::job::Name;
use crate::runner::RunnerRecord;
use crate::tags::TagSet;

/// One session.
pub(super) struct Member {
    pub(super) class: ClassId,
    pub(super) record: RunnerRecord,
    pub(super) system_id: Name,
    pub(super) features: TagSet,
    pub(super) info: Arc<str>,
    pub(super) outbox: Outbox,
    /// Free slots as the runner said last.
    pub(super) said_free: u32,
    /// Assignments sent; and those of them that the runner had seen when it counted.
    pub(super) sent: u64,
    pub(super) seen: u64,
    /// Slots offered in takes that are under way.
    pub(super) offered: u32,
    pub(super) back_off: Option<Instant>,
    /// Free slots as they stand in its class's `free`.
    pub(super) ranked: u32,
}

// === impl Member ===

impl Member {
    pub(super) fn free(&self) -> u32 {
        let on_their_way = self.sent.saturating_sub(self.seen);
        self.said_free.saturating_sub(u32::try_from(on_their_way).unwrap_or(u32::MAX)).saturating_sub(self.offered)
    }

    pub(super) fn offerable(&self) -> u32 {
        if self.back_off.is_some() { 0 } else { self.free() }
    }
}
