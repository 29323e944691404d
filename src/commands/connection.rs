//! How the tools find Redis: by the same variables and file as a pod, and a few flags.

use std::ffi::OsString;

use anyhow::Context;
use job_router::config::{self, Config, Mistakes};
use job_router::dispatcher;
use job_router::redis::{Keys, Redis};

/// Where Redis is. All other settings of a connection come from `JOB_ROUTER_*` variables, or the file that
/// `JOB_ROUTER_CONFIG` names, as those of `job-router serve` do.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct RedisArgs {
    /// Where Redis is [default: redis://127.0.0.1:6379] [env: JOB_ROUTER_REDIS_URL]
    #[arg(long, value_name = "URL")]
    pub(super) redis_url: Option<String>,
    /// The stream that jobs are published to [default: jr:inbox] [env: JOB_ROUTER_INBOX_STREAM]
    #[arg(long, alias = "inbox-stream", value_name = "STREAM")]
    pub(super) inbox: Option<String>,
    /// What the router's keys begin with [default: jr] [env: JOB_ROUTER_KEY_PREFIX]
    #[arg(long, value_name = "NAME")]
    pub(super) key_prefix: Option<String>,
    /// How many partitions the pods use [default: 1] [env: JOB_ROUTER_REDIS_PARTITIONS]
    #[arg(long, alias = "redis-partitions", value_name = "COUNT")]
    pub(super) partitions: Option<String>,
}

// === impl RedisArgs ===

impl RedisArgs {
    /// The configuration that these flags, the environment and the file give.
    pub(super) fn config(&self) -> Result<Config, Mistakes> {
        config_of(&self.flags(), std::env::vars_os())
    }

    /// The same flags for any command with these, `job-router serve` among them.
    pub(super) fn flags(&self) -> Vec<String> {
        let flags = [
            ("--redis-url", &self.redis_url),
            ("--inbox-stream", &self.inbox),
            ("--key-prefix", &self.key_prefix),
            ("--redis-partitions", &self.partitions),
        ];
        flags.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?))).collect()
    }
}

/// The configuration that these flags of `job-router serve` and this environment give.
pub(super) fn config_of(
    flags: &[String],
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Config, Mistakes> {
    let command = clap::Command::new("job-router").args(config::flags());
    let matches = command.get_matches_from(["job-router"].into_iter().chain(flags.iter().map(String::as_str)));
    Config::load(&matches, variables)
}

/// Connects to the Redis of this configuration.
pub(super) async fn connect(config: &Config) -> anyhow::Result<Redis> {
    Redis::connect(&dispatcher::redis_settings(config)?)
        .await
        .with_context(|| format!("cannot use Redis at {}", config.redis_url))
}

/// The names of the keys of this configuration.
pub(super) fn keys(config: &Config) -> Keys {
    Keys::new(&config.key_prefix, config.redis_partitions)
}

/// The prefixes of all partitions, in order.
pub(super) fn partitions(config: &Config) -> Vec<String> {
    let keys = keys(config);
    (0..keys.partitions()).map(|partition| keys.partition(partition)).collect()
}
