//! The configuration of `job-router serve`.
//!
//! Arrives: flags, `JOB_ROUTER_*` variables, a TOML file; a flag wins over a variable, a variable over the file, the
//! file over the defaults. Leaves: a [`Config`] that holds together, or every mistake at once.
//!
//! `config/defaults.toml` is the one source of keys, defaults, limits and help: a test keeps [`Config`] in step.
//! Secrets are never printed, nor is any value that was refused, as it may be a secret in the wrong place.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ArgMatches;
use secrecy::SecretString;

use crate::job::Name;
use crate::telemetry::logging::LogFormat;

mod contradictions;
mod keys;
mod mistakes;
mod read;
mod redis_url;
mod shape;
mod sources;
#[cfg(test)]
mod tests;

pub use keys::DEFAULTS_TOML;
pub use mistakes::{EXIT_CODE, Mistake, Mistakes, Origin};
pub use redis_url::RedisUrl;
pub use sources::{OTHER_VARIABLES, RUNNER_TOKEN_FILE, RUNNER_URL, flags};

use read::FromValue;
pub use read::read_secret;
use shape::Value;

macro_rules! settings {
    ($($(#[$doc:meta])* $key:ident: $type:ty,)*) => {
        /// The configuration of one pod. What each value means and its limits: `config/defaults.toml`.
        #[derive(Debug, Clone)]
        pub struct Config {
            $($(#[$doc])* pub $key: $type,)*
        }

        impl Config {
            fn read(values: &Values) -> Self {
                Self { $($key: FromValue::from_value(&values[stringify!($key)]),)* }
            }

            #[cfg(test)]
            const FIELDS: &[&str] = &[$(stringify!($key)),*];
        }
    };
}

settings! {
    /// Where Redis is.
    redis_url: RedisUrl,
    /// The user to log in to Redis as.
    redis_username: Option<String>,
    /// The password, if it was given directly: ask [`Config::read_redis_password`].
    redis_password: Option<SecretString>,
    /// The file with the password.
    redis_password_file: Option<PathBuf>,
    /// The authorities that may sign the certificate of Redis.
    redis_ca_file: Option<PathBuf>,
    /// The certificate that is shown to Redis. Given exactly if `redis_key_file` is.
    redis_cert_file: Option<PathBuf>,
    /// Its private key.
    redis_key_file: Option<PathBuf>,
    /// How long one command may take.
    redis_command_timeout: Duration,
    /// Into how many slots tenants are spread.
    redis_partitions: u16,
    /// How many replicas must have a write before it is acted on.
    require_replicas: u8,
    /// What the router's own keys begin with.
    key_prefix: Name,
    /// The stream that Rails appends to.
    inbox_stream: String,
    /// The consumer group of the pods on the inbox.
    inbox_group: Name,
    /// How many inbox entries are read at once.
    inbox_batch: u32,
    /// How many events an event stream keeps, about.
    events_max_len: u64,
    /// How long the record of an ended job stays.
    ended_ttl: Duration,
    /// The largest `data` of an inbox entry.
    data_max_bytes: usize,
    /// The largest payload of a job.
    payload_max_bytes: usize,
    /// The name of this pod; made from the host's name unless given.
    pod_id: Name,
    /// Where runners connect.
    grpc_listen: SocketAddr,
    /// The certificate chain for runners; with it, TLS. Given exactly if `grpc_tls_key_file` is.
    grpc_tls_cert_file: Option<PathBuf>,
    /// The private key of the certificate.
    grpc_tls_key_file: Option<PathBuf>,
    /// The authorities that must have signed what a runner shows. Only with a certificate of our own.
    grpc_tls_client_ca_file: Option<PathBuf>,
    /// Where the admin server is.
    admin_listen: SocketAddr,
    /// How often a pod says that it lives.
    pod_heartbeat: Duration,
    /// How long a pod may be silent; at least two heartbeats.
    pod_dead_after: Duration,
    /// How often to look for what was missed; to be jittered.
    sweep_interval: Duration,
    /// How long leaving may take.
    drain_timeout: Duration,
    /// How long a runner has to accept.
    accept_timeout: Duration,
    /// How long a job is owned without a beat.
    lease: Duration,
    /// Which part of all leases may run out at once, in percent.
    mass_expiry_percent: u32,
    /// How long more than that is held up.
    mass_expiry_hold: Duration,
    /// How long nothing is assigned once Redis is found empty: ask [`Config::rebuild_hold`].
    rebuild_hold: Option<Duration>,
    /// How long before the end of its lease a runner stops by itself.
    lease_margin: Duration,
    /// How often runners beat; twice this is at most `lease` less `lease_margin`.
    beat_interval: Duration,
    /// How long a runner has to stop a canceled job.
    cancel_grace: Duration,
    /// How many failed deliveries fail a job.
    give_back_limit: u32,
    /// How long a runner that declined gets nothing; zero: no back-off.
    decline_backoff: Duration,
    /// How long a job that no online runner could ever take waits before Rails is told.
    stuck_after: Duration,
    /// How long it is remembered which runner ran jobs with an affinity key; zero: not at all.
    affinity_memory: Duration,
    /// How long a job waits for the runner it likes; zero: not at all.
    affinity_wait: Duration,
    /// The order of group and project lanes.
    group_lane_order: GroupLaneOrder,
    /// Among whose jobs priorities hold.
    priority: PriorityReach,
    /// What a step of priority is worth where it holds among all: so much waiting.
    priority_ageing: Duration,
    /// How long an empty lane is remembered.
    lane_idle_ttl: Duration,
    /// How long a scope without a runner is indexed.
    scope_ttl: Duration,
    /// How often Rails is told again that a manager is connected.
    online_interval: Duration,
    /// How long nobody has said that one is connected before Rails is told that it is not.
    offline_after: Duration,
    /// How long a new connection has to say who it is.
    hello_timeout: Duration,
    /// How long a `GetJob` call is held; to be jittered by a tenth.
    gitlab_hold: Duration,
    /// How long a GitLab Runner has to tell Rails that it runs its job.
    gitlab_ack_timeout: Duration,
    /// Where GitLab Runners find the router.
    gitlab_server_url: Option<String>,
    /// The most connections.
    max_connections: usize,
    /// Those of them from one address.
    max_connections_per_address: usize,
    /// The most streams and held calls of one connection.
    max_streams_per_connection: usize,
    /// The most sessions of this pod.
    max_sessions: usize,
    /// Those of them with one token.
    max_sessions_per_token: usize,
    /// The most free slots of one session.
    max_slots_per_session: u32,
    /// The largest message from a runner.
    message_max_bytes: usize,
    /// How many failed logins an address has a minute; at least 1.
    auth_failures_per_minute: u32,
    /// How long a connection may be silent before it is pinged.
    keepalive_interval: Duration,
    /// How long the answer to a ping may take.
    keepalive_timeout: Duration,
    /// How log lines look.
    log_format: LogFormat,
    /// What is logged: a filter for [`crate::telemetry::logging::init`].
    log: String,
}

/// Who goes first in a group or project lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupLaneOrder {
    /// By priority, then the oldest.
    Fifo,
    /// As in an instance lane: by running jobs.
    Fair,
}

/// Among whose jobs priorities hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PriorityReach {
    /// Those of one tenant.
    Tenant,
    /// All.
    Global,
}

/// A value for each key.
type Values = HashMap<&'static str, Value>;

// === impl Config ===

impl Config {
    /// The configuration that these sources give. `flags` are matches of a command that has all of [`flags()`];
    /// `variables` is the environment, such as [`std::env::vars_os`]. Reads the file that they name, and looks
    /// whether the files that the configuration names can be read.
    ///
    /// # Errors
    ///
    /// Every mistake in them; the caller prints them and exits with [`EXIT_CODE`].
    ///
    /// # Panics
    ///
    /// If `flags` are of a command that lacks one of [`flags()`].
    pub fn load(
        flags: &ArgMatches,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let given = sources::gather(flags, variables, &mut mistakes);
        let mut origins: HashMap<&str, Origin> = HashMap::new();
        let mut refused = HashSet::new();
        let mut values = defaults();
        for sources::Given { key, text, origin } in given {
            match key.shape.check(&text) {
                Ok(value) => {
                    values.insert(key.name, value);
                    origins.insert(key.name, origin);
                }
                Err(refusal) => {
                    refused.insert(key.name);
                    let what = format!("{} must be {}; is {}", key.name, refusal.must, refusal.is);
                    mistakes.push(Mistake { origin, what });
                }
            }
        }
        if values["pod_id"] == Value::Empty {
            values.insert("pod_id", Value::Name(read::new_pod_id(&gethostname::gethostname().to_string_lossy())));
        }
        let config = Self::read(&values);
        let origin_of = |key: &'static str| origins.get(key).cloned().unwrap_or(Origin::Default(key));
        mistakes.extend(contradictions::find(&config, |key| !refused.contains(key), origin_of));
        if mistakes.is_empty() { Ok(config) } else { Err(Mistakes(mistakes)) }
    }

    /// The password for Redis, read anew from its file if it has one, so that it may be rotated under a running pod.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or is not text of at most 64 KiB.
    pub fn read_redis_password(&self) -> std::io::Result<Option<SecretString>> {
        match &self.redis_password_file {
            Some(path) => read::read_secret(path).map(Some),
            None => Ok(self.redis_password.clone()),
        }
    }
}

impl Config {
    /// How long nothing is assigned once Redis is found empty.
    pub fn rebuild_hold(&self) -> Duration {
        self.rebuild_hold.unwrap_or(self.lease)
    }
}

/// The defaults alone: what tests start from. Its pod id is new each time.
impl Default for Config {
    fn default() -> Self {
        let mut values = defaults();
        values.insert("pod_id", Value::Name(read::new_pod_id("pod")));
        Self::read(&values)
    }
}

fn defaults() -> Values {
    let check = |key: &keys::Key| key.shape.check(&key.default).expect("a test checks every default");
    keys::keys().iter().map(|key| (key.name, check(key))).collect()
}
