//! What the integration tests share: one private Redis per test binary, one instance name per test.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

pub mod certificates;
pub mod net;
pub mod pods;
pub mod processes;
pub mod raw;
pub mod rules;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use job_router::job::{JobId, Name, OfferId, PendingJob, Priority, ProjectFacts, ProjectId, RunnerId, Tenant};
use job_router::redis::{
    Arg, Empty, Keys, Offer, Partition, PrivateRedis, PrivateRedisOptions, Redis, RedisSettings, Reply,
};
use job_router::runner::{Lane, Scope};
use job_router::tags::{Capability, TagSet};

/// The Redis user of pods, and its password.
pub const POD_USER: &str = "job-router";
pub const POD_PASSWORD: &str = "CHANGE-ME";

/// The private Redis of this test binary.
pub fn redis_url() -> String {
    static REDIS: OnceLock<PrivateRedis> = OnceLock::new();
    REDIS.get_or_init(|| start_redis(PrivateRedisOptions::default())).url()
}

/// A Redis that has the users of `docs/security.md`, for instances as [`instance`] names them. The test itself may do all.
pub fn start_redis(mut options: PrivateRedisOptions) -> PrivateRedis {
    let ours = |line: &str| line.replace("~jr:inbox", "~t*:inbox").replace("jr:*", "t*");
    options.config.extend(documented_users().map(ours));
    PrivateRedis::start(&options).expect("redis-server starts")
}

/// The users of `docs/security.md`, as lines of a configuration, for keys that begin with `jr`.
pub fn documented_users() -> impl Iterator<Item = &'static str> {
    include_str!("../../docs/security.md").lines().filter(|line| line.starts_with("user "))
}

/// An instance name no other test uses.
pub fn instance() -> Name {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    Name::new(&format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed))).expect("a name")
}

pub fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

pub fn tags(tags: &[&str]) -> TagSet {
    TagSet::new(tags.iter().copied()).expect("short tags")
}

/// One partition of an own installation, and a way to look at everything in it.
pub struct World {
    pub redis: Redis,
    pub partition: Partition,
    pub prefix: String,
    entries: AtomicU32,
}

impl World {
    pub async fn new() -> Self {
        let world = Self::on(Redis::connect(&RedisSettings::new(redis_url())).await.expect("connects"));
        world.command("SET", &[&format!("{}instance", world.prefix), "known"]).await;
        world
    }

    /// A world on a Redis of the caller's own.
    pub fn on(redis: Redis) -> Self {
        let prefix = Keys::new(&instance(), 1).partition(0);
        let partition = Partition::new(redis.clone(), &prefix);
        Self { redis, partition, prefix, entries: AtomicU32::new(1) }
    }

    /// A world with one living pod named `pod` and these scopes open.
    pub async fn with_scopes(scopes: &[Scope]) -> Self {
        let world = Self::new().await;
        world.heartbeat("pod").await;
        for scope in scopes {
            world.open(*scope).await;
        }
        world
    }

    pub async fn heartbeat(&self, pod: &str) -> Vec<(Name, String)> {
        let mail_ttl = std::time::Duration::from_secs(60);
        self.partition.heartbeat(&name(pod), "0", mail_ttl, &empty()).await.expect("beats").pods
    }

    pub async fn open(&self, scope: Scope) -> Vec<Lane> {
        let mut wakes = Vec::new();
        if !self.partition.scope(scope, false).await.expect("opens") {
            wakes = self.partition.index(&name("pod"), None).await.expect("indexes");
            assert!(self.partition.scope(scope, true).await.expect("opens"));
        }
        wakes
    }

    pub async fn command(&self, name: &'static str, args: &[&str]) -> Reply {
        self.redis.command(name, args.iter().map(|arg| Arg::from(*arg))).await.expect("a reply")
    }

    /// Queues a job, as from its own inbox entry.
    pub async fn queue(&self, job: PendingJob) -> job_router::redis::FannedOut {
        let entry = format!("{}-0", 1_780_000_000_000u64 + u64::from(self.entries.fetch_add(1, Ordering::Relaxed)));
        self.partition.fan_out(&name("pod"), &[(entry, job)], std::time::Duration::ZERO, &[]).await.expect("fans out")
    }

    /// A job that was taken runs and succeeds.
    pub async fn finish(&self, lease: job_router::job::Lease) {
        let (long, start) = (std::time::Duration::from_secs(3600), [lease]);
        self.partition.start(long, &start).await.expect("starts");
        let report = job_router::redis::Report {
            job_id: lease.job_id,
            lease_id: Some(lease.lease_id),
            status: "success",
            exit_code: 0,
            failure_reason: String::new(),
        };
        self.partition.finish(long, &[report]).await.expect("finishes");
    }

    /// All data is lost.
    pub async fn lose(&self) {
        for key in self.keys().await {
            self.command("DEL", &[&key]).await;
        }
    }

    async fn keys(&self) -> Vec<String> {
        let pattern = format!("{}*", self.prefix.replace(['[', ']', '*', '?'], "?"));
        let mut keys = Vec::new();
        let mut cursor = "0".to_owned();
        loop {
            let args = [cursor.as_str(), "MATCH", &pattern, "COUNT", "1000"].map(Arg::from);
            let reply = self.redis.command_at(&self.prefix, "SCAN", args).await.expect("a reply");
            let [next, page] = reply.into_tuple().expect("cursor and keys");
            keys.extend(page.into_array().expect("keys").iter().map(|key| key.as_str().expect("text").to_owned()));
            cursor = next.as_str().expect("text").to_owned();
            if cursor == "0" {
                return keys;
            }
        }
    }

    /// Every key of the partition with its value, as text; hashes and sets sorted.
    pub async fn snapshot(&self) -> BTreeMap<String, String> {
        let mut snapshot = BTreeMap::new();
        for key in self.keys().await {
            let kind = self.command("TYPE", &[&key]).await;
            let value = match kind.as_str().expect("a type") {
                "string" => text(&self.command("GET", &[&key]).await),
                "hash" => sorted_pairs(&self.command("HGETALL", &[&key]).await),
                "set" => sorted(&self.command("SMEMBERS", &[&key]).await),
                "zset" => text(&self.command("ZRANGE", &[&key, "0", "-1", "WITHSCORES"]).await),
                "stream" => text(&self.command("XRANGE", &[&key, "-", "+"]).await),
                other => panic!("no key has type {other}"),
            };
            snapshot.insert(key[self.prefix.len()..].to_owned(), value);
        }
        snapshot
    }

    /// The types of the events so far, each with its job's id.
    pub async fn events(&self) -> Vec<String> {
        let reply = self.command("XRANGE", &[&self.partition.key("events"), "-", "+"]).await;
        let entries = reply.into_entries().expect("entries");
        entries
            .iter()
            .map(|entry| {
                let kind = std::str::from_utf8(entry.field("type").expect("a type")).expect("text");
                let data: serde_json::Value =
                    serde_json::from_slice(entry.field("data").expect("data")).expect("the data is JSON");
                format!("{} {}", data["id"], kind.strip_prefix("job.").unwrap_or(kind))
            })
            .collect()
    }

    pub async fn fields(&self, id: u64) -> BTreeMap<String, String> {
        let reply = self.command("HGETALL", &[&self.partition.key(&format!("job:{id}"))]).await;
        let flat: Vec<String> = reply.into_array().expect("fields").iter().map(text).collect();
        flat.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
    }
}

/// What becomes of an empty Redis: no runner is left over from before.
pub fn empty() -> Empty {
    Empty { name: "new".to_owned(), hold: std::time::Duration::ZERO }
}

pub fn text(reply: &Reply) -> String {
    match reply {
        Reply::Nil => "nil".into(),
        Reply::Int(number) => number.to_string(),
        Reply::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Reply::Array(items) => format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(" ")),
        Reply::Error(error) => format!("error {error}"),
    }
}

fn sorted(reply: &Reply) -> String {
    let Reply::Array(items) = reply else { panic!("a list") };
    let mut items: Vec<String> = items.iter().map(text).collect();
    items.sort();
    items.join(" ")
}

fn sorted_pairs(reply: &Reply) -> String {
    let Reply::Array(items) = reply else { panic!("a list") };
    let mut pairs: Vec<String> = items.chunks(2).map(|pair| format!("{}={}", text(&pair[0]), text(&pair[1]))).collect();
    pairs.sort();
    pairs.join(" ")
}

/// A job to vary: untagged, of project 1 in namespace 1.
pub fn job(id: u64) -> PendingJob {
    PendingJob {
        id: JobId(id),
        tenant: Tenant::of_namespace(1),
        project: ProjectFacts { id: ProjectId(1), namespace_ids: vec![1], instance_runners: true, group_runners: true },
        pipeline_id: None,
        capability: Arc::new(Capability::default()),
        priority: Priority::default(),
        queued_at_ms: None,
        timeout_s: 3600,
        max_attempts: 1,
        affinity: "".into(),
        payload: serde_json::from_str(r#"{"steps":[]}"#).expect("JSON"),
        traceparent: String::new(),
    }
}

/// The same job for another tenant's project.
pub fn of_tenant(mut job: PendingJob, tenant: u64, project: u64) -> PendingJob {
    job.tenant = Tenant::of_namespace(tenant);
    job.project.id = ProjectId(project);
    job.project.namespace_ids = vec![tenant];
    job
}

/// The instance lane of untagged, unprotected jobs.
pub fn instance_lane() -> Lane {
    Lane { scope: Scope::Instance, fingerprint: Capability::default().fingerprint() }
}

/// `n` free slots of runner 1.
pub fn offers(n: usize) -> Vec<Offer> {
    let offer =
        || Offer { id: OfferId::random(0), runner_id: RunnerId(1), system_id: name("s_1"), accept_timeout: None };
    (0..n).map(|_| offer()).collect()
}
