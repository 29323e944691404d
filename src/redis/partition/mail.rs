//! What scripts that other pods ran tell this one.

use std::time::Duration;

use super::{Entry, Manager};
use crate::job::Lease;
use crate::runner::Lane;
use crate::tags::Capability;

/// A letter from a script to one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mail {
    /// The pod waited in this lane, and now there is work; for this manager above all.
    Wake(Lane, Option<Manager>),
    /// There is a new lane.
    LaneOpened(Lane, Capability),
    /// There may be work in any lane.
    Resync,
    /// A running job of this pod is to stop.
    Cancel {
        /// The job.
        lease: Lease,
        /// How long its runner has.
        grace: Duration,
        /// Why, for people.
        reason: String,
    },
    /// Rails says that the runner runs this job of this pod.
    Started(Lease),
    /// A lease of this pod has ended.
    Revoke {
        /// The job and its former lease.
        lease: Lease,
        /// A reason word.
        reason: String,
    },
}

// === impl Mail ===

impl Mail {
    pub(super) fn of(entry: &Entry) -> Option<Self> {
        let text = |name: &str| std::str::from_utf8(entry.field(name)?).ok();
        let lease = || Some(Lease { job_id: text("job")?.parse().ok()?, lease_id: text("lease")?.parse().ok()? });
        match text("type")? {
            "wake" => {
                let manager = |text: &str| {
                    let (runner_id, system_id) = text.split_once(' ')?;
                    Some((runner_id.parse().ok()?, system_id.parse().ok()?))
                };
                Some(Self::Wake(text("lane")?.parse().ok()?, text("likes").and_then(manager)))
            }
            "lane" => {
                let capability = serde_json::from_str(text("capability")?).ok()?;
                Some(Self::LaneOpened(text("lane")?.parse().ok()?, capability))
            }
            "resync" => Some(Self::Resync),
            "cancel" => Some(Self::Cancel {
                lease: lease()?,
                grace: Duration::from_millis(text("grace_ms")?.parse().ok()?),
                reason: serde_json::from_str(text("reason")?).ok()?,
            }),
            "started" => Some(Self::Started(lease()?)),
            "revoke" => Some(Self::Revoke { lease: lease()?, reason: text("reason")?.to_owned() }),
            _ => None,
        }
    }
}
