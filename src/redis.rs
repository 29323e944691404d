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
mod error;
mod link;
mod private;
mod reader;
mod reply;
mod script;

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

pub use client::Redis;
pub use error::{RedisError, Refusal};
pub use private::{PrivateRedis, PrivateRedisError, PrivateRedisOptions};
pub use reader::{BLOCK_MAX, ReadFrom, Reader};
pub use reply::{Arg, Entry, Reply};
pub use script::Script;

/// How long a call may take before it counts as a timeout, unless the settings say otherwise.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(3);

/// Where Redis is and how to log in.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// `redis://`, `rediss://` (TLS), `redis-cluster://`, `redis-sentinel://…?sentinelServiceName=…`, their
    /// `rediss-` forms, or `redis+unix:///path/to/socket`. More nodes: `?node=host:port&node=…`.
    pub url: String,
    /// How long one call may take, and one attempt to connect.
    pub command_timeout: Duration,
    /// The ACL user; wins over one in the URL.
    pub username: Option<String>,
    /// Its password; wins over one in the URL.
    pub password: Option<SecretString>,
    /// PEM file with the certificate authorities to trust instead of the system's; for `rediss` only.
    pub ca_file: Option<PathBuf>,
}

impl RedisSettings {
    /// The defaults for a Redis at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), command_timeout: COMMAND_TIMEOUT, username: None, password: None, ca_file: None }
    }
}
