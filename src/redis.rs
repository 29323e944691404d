//! The edge to Redis: one client for commands and scripts, one connection for each blocking reader.
//!
//! Arrives: scripts and commands with their arguments. Leaves: a [`Reply`], or a [`RedisError`] that says
//! whether the call may have been applied and whether to send it again.
//!
//! What must stay true:
//!
//! - No type of the Redis library leaves this folder, so that a swap of the library is one folder.
//! - No call is sent twice behind the caller's back, but for one: a script that Redis did not know.
//! - Every call ends: in time, with [`RedisError::Timeout`], or at once when its connection ends.
//! - Calls polled in order on one [`Redis`] reach one server in that order, without waiting for each other.
//! - A blocking read has its own connection, and is never left half-way on a connection that lives on.

mod client;
mod durable;
mod error;
mod explain;
mod health;
mod keys;
mod link;
mod listing;
mod partition;
mod password;
mod pauses;
mod policy;
mod presence;
mod private;
mod reader;
mod reply;
mod runners;
mod script;
pub mod scripts;
mod settings;
mod stuck;

pub use client::Redis;
pub use error::{RedisError, Refusal};
pub use explain::{Explainer, ExplainerKeys};
pub use health::{Checkup, Finding, Severity};
pub use keys::Keys;
pub use listing::{JobHolder, ListedJob};
pub use partition::{
    Due, Empty, Expired, FannedOut, HandOver, Heartbeat, Look, Mail, Manager, Offer, Partition, PassedOver, Record,
    Remembered, Renewed, Report, Return, Started, Taken, TakenJob, Terms,
};
pub use password::Password;
pub use pauses::{Over, Resumed};
pub use policy::{LaneOrder, Policy};
pub use presence::{Change, FLEET_TTL, Presence};
pub use private::{PrivateRedis, PrivateRedisError, PrivateRedisOptions, ReservedPort};
pub use reader::{BLOCK_MAX, ReadFrom, Reader};
pub use reply::{Arg, Entry, Reply};
pub use runners::{NO_CHANGE, Runners};
pub use script::{Library, Script};
pub use settings::{COMMAND_TIMEOUT, RedisSettings};
pub use stuck::{BucketKind, BucketPage, StuckReason, Verdict};
