//! The contract with Rails, version 1: what its stream entries may say. For Rails developers: `docs/contract.md`.
//!
//! Arrives: the field-value pairs of one inbox entry, as bytes from outside. Leaves: a [`Message`] that cannot be
//! wrong, or a [`Rejection`] that says which field is. What may go wrong is anything at all, so:
//!
//! 1. No entry panics, and none costs more than a few passes over its bytes.
//! 2. A rejection tells the shape of a value and the limit it broke, never the value: payloads hold secrets.
//! 3. `payload` is forwarded byte for byte. It is never decoded deeper than to know that it is a JSON object.
//! 4. A field that version 1 does not know is ignored, so that Rails may be deployed before the router.
//!
//! JSON is read by hand (`contract/reader.rs`) and not with derived serde types: serde's messages quote the value they refuse.

use std::sync::Arc;

use crate::job::{JobId, Name, PendingJob, ProjectId, RunnerId, Tenant};
use crate::runner::RunnerRecord;

/// An enum whose variants have one name each.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Its name on the wire.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}
pub(crate) use words;

/// The same, to be read from the wire too.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident, $must:literal, { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        words! { $(#[$doc])* $name { $($(#[$variant_doc])* $variant = $text,)+ } }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::job::Malformed;

            fn from_str(text: &str) -> Result<Self, $crate::job::Malformed> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err($crate::job::Malformed($must)),
                }
            }
        }
    };
}

mod entry;
mod event;
mod messages;
pub(crate) mod reader;
mod rejection;
pub mod samples;
#[cfg(test)]
mod tests;

pub use entry::Entry;
pub use event::{Event, EventType};
pub(crate) use rejection::Fault;
pub use rejection::{DATA_START_MAX_BYTES, Rejection};

/// The version of the contract: the value of an entry's `v`.
pub const VERSION: &str = "1";
/// The greatest id: Rails keeps ids in a signed `bigint`. The least is 1; 0 would read as absent in protobuf.
pub const ID_MAX: u64 = i64::MAX as u64;
/// The most ancestors of a project. GitLab allows a group 20 ancestors (`Namespace::NUMBER_OF_ANCESTORS_ALLOWED`), so
/// a project has at most those and its own group.
pub const NAMESPACES_MAX: usize = 21;
/// The most groups, or projects, of one runner.
pub const RUNNER_SCOPES_MAX: usize = 1_000;
/// The longest `affinity` or `reason`, in bytes.
pub const TEXT_MAX_BYTES: usize = 255;
/// How long a job may run when Rails does not say, in seconds: GitLab's default of one hour.
pub const TIMEOUT_S_DEFAULT: u32 = 3_600;
/// The longest a job may run, in seconds: 30 days, GitLab's limit.
pub const TIMEOUT_S_MAX: u32 = 2_592_000;
/// The most starts of one job.
pub const ATTEMPTS_MAX: u32 = 10;
/// The greatest weight of a tenant; the least, and the default, is 1.
pub const WEIGHT_MAX: u32 = 1_000;
/// The greatest `max_running`. 0 is allowed: nothing runs for now.
pub const MAX_RUNNING_MAX: u32 = 1_000_000;
/// The greatest priority of a runner; the least is its negative.
pub const RUNNER_PRIORITY_MAX: i32 = 100;

/// One entry of the inbox, read and checked.
#[derive(Debug, Clone)]
pub enum Message {
    /// Run this job.
    JobPending(Box<PendingJob>),
    /// Do not run this job, or stop it.
    JobCanceled {
        /// The job.
        job_id: JobId,
        /// Who pays for it; names the partition it lives in.
        tenant: Tenant,
        /// Why, for people: at most 255 bytes without control characters; `canceled` unless Rails said more.
        reason: Arc<str>,
    },
    /// A runner that reports to Rails has started the job.
    JobRunning {
        /// The job.
        job_id: JobId,
        /// Who pays for it.
        tenant: Tenant,
        /// The runner, where Rails knows it.
        runner_id: Option<RunnerId>,
        /// The runner's manager, where Rails knows it.
        system_id: Option<Name>,
    },
    /// A runner that reports to Rails has ended the job.
    JobFinished {
        /// The job.
        job_id: JobId,
        /// Who pays for it.
        tenant: Tenant,
        /// How it ended.
        status: Status,
        /// The failing step's exit code.
        exit_code: Option<i32>,
        /// Why it failed: a short word of `[a-z0-9_]`.
        failure_reason: Option<Arc<str>>,
    },
    /// A runner is new or has changed. The record replaces the one before.
    RunnerUpserted(Box<RunnerRecord>),
    /// A runner is gone.
    RunnerDeleted {
        /// The runner.
        id: RunnerId,
    },
    /// A tenant's share or cap. Replaces what was said before.
    TenantUpserted {
        /// The tenant.
        tenant: Tenant,
        /// Its share against other tenants, 1 to 1,000.
        weight: u32,
        /// The most jobs it may run at once on instance runners; none: no cap.
        max_running: Option<u32>,
    },
    /// A project's flags or cap.
    ProjectUpserted {
        /// The project.
        project_id: ProjectId,
        /// Who pays for its jobs.
        tenant: Tenant,
        /// Whether instance runners may take its jobs; none: as before.
        instance_runners: Option<bool>,
        /// Whether group runners may take its jobs; none: as before.
        group_runners: Option<bool>,
        /// The most jobs it may run at once on instance runners; none: no cap.
        max_running: Option<u32>,
    },
}

named!(
    /// The types of inbox entries.
    MessageType,
    "must be a message type of version 1",
    {
        /// [`Message::JobPending`].
        JobPending = "job.pending",
        /// [`Message::JobCanceled`].
        JobCanceled = "job.canceled",
        /// [`Message::JobRunning`].
        JobRunning = "job.running",
        /// [`Message::JobFinished`].
        JobFinished = "job.finished",
        /// [`Message::RunnerUpserted`].
        RunnerUpserted = "runner.upserted",
        /// [`Message::RunnerDeleted`].
        RunnerDeleted = "runner.deleted",
        /// [`Message::TenantUpserted`].
        TenantUpserted = "tenant.upserted",
        /// [`Message::ProjectUpserted`].
        ProjectUpserted = "project.upserted",
    }
);

named!(
    /// How a job ended.
    Status,
    "must be success, failed or canceled",
    {
        /// All steps ran and succeeded.
        Success = "success",
        /// A step failed, or the job could not be run.
        Failed = "failed",
        /// Stopped because it was canceled.
        Canceled = "canceled",
    }
);

/// The limits an operator may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest `payload`, in bytes of its JSON. 1 MiB by default.
    pub payload_max_bytes: usize,
    /// The longest `data`, in bytes; longer ones are refused unread. By default 256 KiB more than a payload: enough
    /// for every other field at its limit.
    pub data_max_bytes: usize,
}

/// Reads one inbox entry: its field-value pairs, in any order.
///
/// Errors: the first field found wrong; what the entry has is looked at before what stands in its `data`. A malformed `traceparent` is dropped: tracing must not stop work.
pub fn parse<K: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(K, V)], limits: &Limits) -> Result<Message, Rejection> {
    messages::parse(fields, limits)
}

// === impl Message ===

impl Message {
    /// Its type.
    pub fn message_type(&self) -> MessageType {
        match self {
            Self::JobPending(_) => MessageType::JobPending,
            Self::JobCanceled { .. } => MessageType::JobCanceled,
            Self::JobRunning { .. } => MessageType::JobRunning,
            Self::JobFinished { .. } => MessageType::JobFinished,
            Self::RunnerUpserted(_) => MessageType::RunnerUpserted,
            Self::RunnerDeleted { .. } => MessageType::RunnerDeleted,
            Self::TenantUpserted { .. } => MessageType::TenantUpserted,
            Self::ProjectUpserted { .. } => MessageType::ProjectUpserted,
        }
    }
}

// === impl Limits ===

impl Limits {
    /// Limits for this longest payload.
    pub fn for_payload(payload_max_bytes: usize) -> Self {
        Self { payload_max_bytes, data_max_bytes: payload_max_bytes.saturating_add(256 << 10) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::for_payload(1 << 20)
    }
}
