//! What a server would lose as it is set up, and what to set: for `job-router doctor` and the start of a pod.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::{Arg, Redis, RedisError};

/// The settings that are looked at.
const SETTINGS: [&str; 7] = [
    "maxmemory-policy",
    "save",
    "appendfsync",
    "stream-node-max-bytes",
    "min-replicas-to-write",
    "min-replicas-max-lag",
    "timeout",
];
/// A bucket with one job takes 1,980 bytes up to here, and 5,052 at the default.
const STREAM_NODE_MAX_BYTES: u64 = 1024;

/// A look at one server.
#[derive(Debug, Clone)]
pub struct Checkup {
    /// What it is, in a line.
    pub server: String,
    /// What is not as it should be, the worst first.
    pub findings: Vec<Finding>,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad that is.
    pub severity: Severity,
    /// What is so.
    pub what: String,
    /// What comes of it.
    pub then: &'static str,
    /// What to set.
    pub set: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Jobs may be lost, or nothing moves.
    Loss,
    /// It costs memory or time.
    Waste,
}

/// What is known of a server.
#[derive(Debug, Clone, Default)]
struct Facts {
    info: HashMap<String, String>,
    /// Empty where the user may not see them.
    settings: HashMap<String, String>,
}

// === impl Severity ===

impl Severity {
    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Waste => "waste",
        }
    }
}

// === impl Redis ===

impl Redis {
    /// Looks at each server that has one of these prefixes. `require_replicas` and `lease` are the pods'.
    pub async fn checkups(
        &self,
        prefixes: &[String],
        require_replicas: u8,
        lease: Duration,
    ) -> Result<Vec<Checkup>, RedisError> {
        let mut servers = BTreeMap::new();
        for prefix in prefixes {
            let facts = self.facts(prefix).await?;
            let run_id = facts.info.get("run_id").cloned().unwrap_or_default();
            servers.entry(run_id).or_insert_with(|| facts.checkup(require_replicas, lease));
        }
        Ok(servers.into_values().collect())
    }

    async fn facts(&self, prefix: &str) -> Result<Facts, RedisError> {
        let sections = ["server", "replication", "persistence", "memory"].map(Arg::from);
        let info = self.command_at(prefix, "INFO", sections).await?;
        let lines = info.as_str()?.lines().filter_map(|line| line.split_once(':'));
        let info = lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        // Where Redis is somebody else's, CONFIG may be denied: then what INFO tells must do.
        let settings = match self.command_at(prefix, "CONFIG GET", SETTINGS.map(Arg::from)).await {
            Ok(pairs) => pairs.into_array()?,
            Err(error) if error.refusal().is_some() || matches!(error, RedisError::Failed { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        let pairs =
            settings.chunks_exact(2).map(|pair| Ok((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned())));
        Ok(Facts { info, settings: pairs.collect::<Result<_, RedisError>>()? })
    }
}

// === impl Facts ===

impl Facts {
    fn info(&self, name: &str) -> &str {
        self.info.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.settings.get(name)?.parse().ok()
    }

    fn checkup(&self, require_replicas: u8, lease: Duration) -> Checkup {
        let (name, version) = match self.info.get("valkey_version") {
            Some(version) => ("valkey", version.as_str()),
            None => ("redis", self.info("redis_version")),
        };
        let replicas: u8 = self.info("connected_slaves").parse().unwrap_or_default();
        let role = if self.info("role") == "master" { "primary" } else { "replica" };
        let server = format!("{name} {version}, {}, {role} with {replicas} replicas", self.info("redis_mode"));
        let mut findings = Vec::new();
        let mut find = |severity, what: String, then, set: &str| {
            findings.push(Finding { severity, what, then, set: set.to_owned() });
        };
        self.find_in_server(role, &mut find);
        self.find_in_persistence(&mut find);
        self.find_in_memory(&mut find);
        self.find_in_replication(replicas, require_replicas, lease, &mut find);
        findings.sort_by_key(|finding| finding.severity);
        Checkup { server, findings }
    }

    fn find_in_server(&self, role: &str, find: &mut impl FnMut(Severity, String, &'static str, &str)) {
        let version = self.info("redis_version");
        if version.split('.').next().and_then(|major| major.parse().ok()).is_some_and(|major: u32| major < 7) {
            let what = format!("its version is {version}");
            find(Severity::Loss, what, "there are no functions: nothing works", "use Redis 7.0 or newer, or Valkey");
        }
        if role == "replica" {
            let then = "every write is refused";
            find(
                Severity::Loss,
                "it is a replica".to_owned(),
                then,
                "redis_url: name the primary, or use redis-sentinel://",
            );
        }
        if self.number("timeout").is_some_and(|seconds| seconds > 0) {
            let what = format!("timeout is {}", self.settings["timeout"]);
            find(Severity::Waste, what, "connections that are idle are cut and made again", "timeout 0");
        }
    }

    fn find_in_persistence(&self, find: &mut impl FnMut(Severity, String, &'static str, &str)) {
        let append_only = self.info("aof_enabled") == "1";
        let saves = self.settings.get("save").is_none_or(|save| !save.is_empty());
        if !append_only {
            let (what, then) = if saves {
                (
                    "appendonly is no",
                    "a restart loses all that came after the last snapshot, until Rails publishes it again",
                )
            } else {
                (
                    "appendonly is no, and there are no snapshots",
                    "a restart loses every job, until Rails publishes it again",
                )
            };
            find(Severity::Loss, what.to_owned(), then, "appendonly yes");
        } else if self.settings.get("appendfsync").is_some_and(|policy| policy == "no") {
            let then = "a crash of the machine loses what the system has not written, about 30 s";
            find(Severity::Loss, "appendfsync is no".to_owned(), then, "appendfsync everysec");
        }
        for (name, what) in [("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "snapshot")] {
            if self.info.get(name).is_some_and(|status| status != "ok") {
                let what = format!("its last {what} could not be written");
                find(
                    Severity::Loss,
                    what,
                    "writes are refused, or lost with a restart",
                    "look at its log and its disk",
                );
            }
        }
    }

    fn find_in_memory(&self, find: &mut impl FnMut(Severity, String, &'static str, &str)) {
        let policy =
            self.settings.get("maxmemory-policy").map_or_else(|| self.info("maxmemory_policy"), String::as_str);
        if !policy.is_empty() && policy != "noeviction" {
            let then = "when it is full it removes jobs that wait or run";
            find(Severity::Loss, format!("maxmemory-policy is {policy}"), then, "maxmemory-policy noeviction");
        }
        if self.info("maxmemory") == "0" {
            let then = "a long queue grows until the system ends Redis";
            find(
                Severity::Waste,
                "maxmemory is not set".to_owned(),
                then,
                "maxmemory, below the memory of the machine",
            );
        }
        if let Some(bytes) = self.number("stream-node-max-bytes").filter(|bytes| *bytes > STREAM_NODE_MAX_BYTES) {
            let then = "a queue with one job takes 5,052 bytes and not 1,980";
            let set = format!("stream-node-max-bytes {STREAM_NODE_MAX_BYTES}");
            find(Severity::Waste, format!("stream-node-max-bytes is {bytes}"), then, &set);
        }
    }

    fn find_in_replication(
        &self,
        replicas: u8,
        required: u8,
        lease: Duration,
        find: &mut impl FnMut(Severity, String, &'static str, &str),
    ) {
        let is_cluster = self.info("redis_mode") == "cluster";
        if replicas < required {
            let what = format!("require_replicas is {required}, and there are {replicas}");
            find(Severity::Loss, what, "nothing is pushed until there are more", "more replicas, or require_replicas");
        } else if replicas > required && is_cluster {
            let then =
                "a failover loses what no replica had: a job may be pushed twice, an end or a cancel be forgotten";
            let set = "nothing: require_replicas is not for a cluster; see docs/reliability.md";
            find(Severity::Loss, "it is a cluster".to_owned(), then, set);
        } else if replicas > required {
            let what = format!("require_replicas is {required}, and there are {replicas} replicas");
            let then = "a failover may lose what not all of them had: a job may be pushed twice, an end or a cancel be forgotten";
            find(Severity::Loss, what, then, &format!("require_replicas = {replicas}"));
        }
        if replicas == 0 {
            return;
        }
        let then = "a primary that is cut off goes on answering beats after another one has taken over";
        match (self.number("min-replicas-to-write"), self.number("min-replicas-max-lag")) {
            (Some(0), _) => {
                find(Severity::Loss, "min-replicas-to-write is 0".to_owned(), then, "min-replicas-to-write 1");
            }
            (Some(_), Some(lag)) if lag == 0 || Duration::from_secs(lag) * 2 > lease => {
                let what = format!("min-replicas-max-lag is {lag} s, and a lease {} s", lease.as_secs());
                find(Severity::Loss, what, then, "min-replicas-max-lag 2");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(60);

    /// A server as it should be, but for these lines of INFO and these settings.
    fn findings(info: &[(&str, &str)], settings: &[(&str, &str)], required: u8) -> Vec<Finding> {
        let owned = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut facts = Facts {
            info: owned(&[
                ("redis_version", "7.0.15"),
                ("redis_mode", "standalone"),
                ("role", "master"),
                ("connected_slaves", "0"),
                ("aof_enabled", "1"),
                ("aof_last_write_status", "ok"),
                ("rdb_last_bgsave_status", "ok"),
                ("maxmemory", "1000000"),
            ]),
            settings: owned(&[
                ("maxmemory-policy", "noeviction"),
                ("save", ""),
                ("appendfsync", "everysec"),
                ("stream-node-max-bytes", "1024"),
                ("min-replicas-to-write", "1"),
                ("min-replicas-max-lag", "2"),
                ("timeout", "0"),
            ]),
        };
        facts.info.extend(owned(info));
        facts.settings.extend(owned(settings));
        facts.checkup(required, LEASE).findings
    }

    #[test]
    fn a_server_as_it_should_be_has_no_findings() {
        assert_eq!(findings(&[], &[], 0), []);
        assert_eq!(findings(&[("connected_slaves", "2")], &[], 2), []);
    }

    #[test]
    fn each_thing_that_is_wrong_is_said_and_what_to_set() {
        type Pairs = &'static [(&'static str, &'static str)];
        let cases: [(Pairs, Pairs, u8, Severity, &str, &str); 16] = [
            (&[("redis_version", "6.2.6")], &[], 0, Severity::Loss, "6.2.6", "Redis 7.0"),
            (&[("role", "slave")], &[], 0, Severity::Loss, "replica", "redis-sentinel"),
            (&[], &[("timeout", "30")], 0, Severity::Waste, "timeout is 30", "timeout 0"),
            (&[("aof_enabled", "0")], &[], 0, Severity::Loss, "no snapshots", "appendonly yes"),
            (&[("aof_enabled", "0")], &[("save", "60 1")], 0, Severity::Loss, "appendonly is no", "appendonly yes"),
            (&[], &[("appendfsync", "no")], 0, Severity::Loss, "appendfsync is no", "everysec"),
            (&[("aof_last_write_status", "err")], &[], 0, Severity::Loss, "append-only file", "disk"),
            (&[("rdb_last_bgsave_status", "err")], &[], 0, Severity::Loss, "snapshot", "disk"),
            (&[], &[("maxmemory-policy", "allkeys-lru")], 0, Severity::Loss, "allkeys-lru", "noeviction"),
            (&[("maxmemory", "0")], &[], 0, Severity::Waste, "maxmemory", "below"),
            (&[], &[("stream-node-max-bytes", "4096")], 0, Severity::Waste, "4096", "1024"),
            (&[("connected_slaves", "1")], &[], 2, Severity::Loss, "is 2, and there are 1", "more replicas"),
            (&[("connected_slaves", "2")], &[], 1, Severity::Loss, "is 1, and there are 2", "require_replicas = 2"),
            (&[("connected_slaves", "1"), ("redis_mode", "cluster")], &[], 0, Severity::Loss, "cluster", "nothing"),
            (&[("connected_slaves", "1")], &[("min-replicas-to-write", "0")], 1, Severity::Loss, "is 0", "to-write 1"),
            (&[("connected_slaves", "1")], &[("min-replicas-max-lag", "40")], 1, Severity::Loss, "40 s", "max-lag 2"),
        ];
        for (info, settings, required, severity, what, set) in cases {
            let found = findings(info, settings, required);
            assert_eq!(found.len(), 1, "{info:?} {settings:?}: {found:?}");
            let Finding { severity: found_severity, what: found_what, set: found_set, .. } = &found[0];
            assert_eq!(*found_severity, severity, "{found_what}");
            assert!(found_what.contains(what) && found_set.contains(set), "{found:?}");
        }
    }

    #[test]
    fn a_server_whose_settings_may_not_be_seen_is_judged_by_what_it_tells() {
        let info = [("maxmemory_policy", "allkeys-lru"), ("aof_enabled", "1"), ("maxmemory", "1")];
        let info = info.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let found = Facts { info, settings: HashMap::new() }.checkup(0, LEASE).findings;
        assert!(found.iter().any(|finding| finding.what.contains("allkeys-lru")), "{found:?}");
    }
}
