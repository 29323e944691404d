//! What a job is: its ids, its owner, and what Rails said about it.
//!
//! Arrives: text and numbers from outside. Leaves: values that cannot be wrong. An id is not a
//! number and a lease id is not a string, so that they cannot be swapped; all text that may become part
//! of a Redis key or an event is limited or encoded here (invariant 9).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rand::RngCore;
use serde_json::value::RawValue;

use crate::tags::Capability;

/// The longest tenant name, in bytes.
pub const TENANT_MAX_BYTES: usize = 64;
/// The longest pod or system id, in bytes.
pub const NAME_MAX_BYTES: usize = 64;

/// A value did not have the shape its type promises. Says which shape that is, never the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

macro_rules! numeric_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = Malformed;

            fn from_str(text: &str) -> Result<Self, Malformed> {
                text.parse().map(Self).map_err(|_| Malformed("must be a whole number from 0 to 2^64-1"))
            }
        }
    };
}

numeric_id!(
    /// A job's id, as Rails gave it.
    JobId
);
numeric_id!(
    /// A project's id, as Rails gave it.
    ProjectId
);
numeric_id!(
    /// A runner's id in the registry, as Rails gave it. Several managers may share it.
    RunnerId
);

/// Who pays for fairness: by default the root namespace of the project.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(Arc<str>);

/// Ownership of a job by one runner, for a time: 112 bits, never used twice, behind the 16 bits of the job's
/// partition, so that a runner's word about a lease finds its way on any pod.
///
/// Scripts make it of the [`OfferId`] of the slot, the job and the attempt, and compare it for equality only.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId([u8; 16]);

/// One offer of a free slot: 112 random bits behind the 16 bits of the partition. It may come again, when an answer was
/// lost; the leases that are made of it are told apart by their jobs and attempts.
///
/// Random, as a counter kept in Redis would be no fence: after a failover the promoted replica hands out the same number again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OfferId(LeaseId);

/// A job's rank within its tenant, −2 to 2; higher goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Priority(i8);

/// A short name of a pod or a runner manager: 1 to 64 of `[A-Za-z0-9_.:-]`, safe in keys, JSON and logs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

/// A job under one lease: names exactly one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The job.
    pub job_id: JobId,
    /// The attempt's lease.
    pub lease_id: LeaseId,
}

/// What Rails said of one pending job. Fields and limits: `docs/contract.md`.
///
/// Its `Debug` shows all but the payload, which holds secrets.
#[derive(Clone)]
pub struct PendingJob {
    /// The job's id.
    pub id: JobId,
    /// Who pays for fairness.
    pub tenant: Tenant,
    /// The project and who may run its jobs.
    pub project: ProjectFacts,
    /// The pipeline, where given.
    pub pipeline_id: Option<u64>,
    /// What it needs of a runner.
    pub capability: Arc<Capability>,
    /// Its rank within the tenant.
    pub priority: Priority,
    /// When Rails queued it, in Unix milliseconds; absent: when it reached the inbox.
    pub queued_at_ms: Option<u64>,
    /// The longest it may run, in seconds.
    pub timeout_s: u32,
    /// How often it may be started.
    pub max_attempts: u32,
    /// Jobs with the same key like the same runner.
    pub affinity: Arc<str>,
    /// The job as the runner gets it: a JSON object, forwarded as it came.
    pub payload: Box<RawValue>,
    /// W3C trace context of the publisher; empty if none.
    pub traceparent: String,
}

/// What belongs to a project, though every `job.pending` carries it: the newest message wins for all its jobs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProjectFacts {
    /// The project.
    pub id: ProjectId,
    /// Its ancestors, root first.
    pub namespace_ids: Vec<u64>,
    /// Whether instance runners may take its jobs.
    pub instance_runners: bool,
    /// Whether group runners may take its jobs.
    pub group_runners: bool,
}

/// What a tenant's name keeps in a key: everything else, `:` and `%` above all, is percent-encoded, so
/// that no two tenants share a key and none can leave its hash tag.
const KEY_UNSAFE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'.').remove(b'-');

// === impl Tenant ===

impl Tenant {
    /// A tenant by its name: 1 to 64 bytes without control characters.
    pub fn new(name: &str) -> Result<Self, Malformed> {
        if name.is_empty() || name.len() > TENANT_MAX_BYTES || name.chars().any(char::is_control) {
            return Err(Malformed("must be 1 to 64 bytes without control characters"));
        }
        Ok(Self(name.into()))
    }

    /// The default tenant of a project: its root namespace.
    pub fn of_namespace(root_id: u64) -> Self {
        Self(format!("ns:{root_id}").into())
    }

    /// The name as Rails knows it.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The name as it stands in keys: percent-encoded but for `[A-Za-z0-9_.-]`.
    pub fn key(&self) -> String {
        utf8_percent_encode(&self.0, KEY_UNSAFE).to_string()
    }

    /// The tenant whose [`key`](Self::key) this is.
    pub fn from_key(key: &str) -> Result<Self, Malformed> {
        let name = percent_encoding::percent_decode_str(key).decode_utf8().map_err(|_| Malformed("must be UTF-8"))?;
        Self::new(&name)
    }
}

// === impl LeaseId ===

impl LeaseId {
    /// An id that nothing else has, from the thread's cryptographic generator.
    pub fn random(partition: u16) -> Self {
        let mut bits = [0; 16];
        bits[..2].copy_from_slice(&partition.to_be_bytes());
        rand::rng().fill_bytes(&mut bits[2..]);
        Self(bits)
    }

    /// The partition its job lives in. From outside, it may be any number.
    pub fn partition(self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 32];
        hex::encode_to_slice(self.0, &mut text).expect("32 digits hold 16 bytes");
        f.write_str(std::str::from_utf8(&text).expect("hex is ASCII"))
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for LeaseId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let lower = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mut bits = [0; 16];
        match hex::decode_to_slice(text, &mut bits) {
            Ok(()) if lower => Ok(Self(bits)),
            _ => Err(Malformed("must be 32 lower-case hex digits")),
        }
    }
}

// === impl OfferId ===

impl OfferId {
    /// A new offer, for a job of this partition.
    pub fn random(partition: u16) -> Self {
        Self(LeaseId::random(partition))
    }
}

impl fmt::Display for OfferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl Priority ===

impl Priority {
    /// A rank from −2 to 2.
    pub fn new(rank: i64) -> Result<Self, Malformed> {
        match rank {
            -2..=2 => Ok(Self(rank as i8)),
            _ => Err(Malformed("must be a whole number from -2 to 2")),
        }
    }

    /// The rank, −2 to 2.
    pub fn rank(self) -> i8 {
        self.0
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl PendingJob ===

impl fmt::Debug for PendingJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingJob")
            .field("id", &self.id)
            .field("tenant", &self.tenant)
            .field("project", &self.project)
            .field("pipeline_id", &self.pipeline_id)
            .field("capability", &self.capability)
            .field("priority", &self.priority)
            .field("queued_at_ms", &self.queued_at_ms)
            .field("timeout_s", &self.timeout_s)
            .field("max_attempts", &self.max_attempts)
            .field("affinity", &self.affinity)
            .field("traceparent", &self.traceparent)
            .finish_non_exhaustive()
    }
}

// === impl Name ===

impl Name {
    /// A name of 1 to 64 of `[A-Za-z0-9_.:-]`.
    pub fn new(text: &str) -> Result<Self, Malformed> {
        let safe = |b: u8| b.is_ascii_alphanumeric() || b"_.:-".contains(&b);
        if text.is_empty() || text.len() > NAME_MAX_BYTES || !text.bytes().all(safe) {
            return Err(Malformed("must be 1 to 64 of [A-Za-z0-9_.:-]"));
        }
        Ok(Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        Self::new(text)
    }
}

/// Whether `text` is a short reason word: 1 to 64 of `[a-z0-9_]`. Such words go into events unescaped.
pub fn is_reason_word(text: &str) -> bool {
    (1..=NAME_MAX_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_lease_id_reads_back_and_only_in_its_one_spelling() {
        let id = LeaseId::random(7);
        assert_eq!(id.partition(), 7);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(
            id.to_string().to_uppercase().parse::<LeaseId>().is_err()
                || !id.to_string().contains(|c: char| c.is_alphabetic())
        );
        assert!("".parse::<LeaseId>().is_err());
    }

    proptest! {
        #[test]
        fn a_tenant_key_reads_back_and_holds_nothing_that_splits_a_key(name in "\\PC{1,16}") {
            let tenant = Tenant::new(&name).expect("printable and short");
            let key = tenant.key();
            let splits = key.contains([':', '{', '}', ' ', '\n']);
            prop_assert!(!splits);
            prop_assert_eq!(Tenant::from_key(&key), Ok(tenant));
        }
    }
}
