//! Whole pods, runners and a Rails for tests: real gRPC on loopback, real Redis, all in this process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use job_router::client::{self, Executor, JobContext, Options, Outcome, Shutdown, Summary};
use job_router::config::Config;
use job_router::contract::Event;
use job_router::dispatcher::{self, Listeners};
use job_router::job::Name;
use job_router::redis::{Arg, Partition, PrivateRedis, PrivateRedisOptions, Redis, RedisSettings, Reply};
use secrecy::SecretString;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{POD_PASSWORD, POD_USER, instance, redis_url, start_redis};

/// How long anything may take before a test gives up on it.
pub const LIMIT: Duration = Duration::from_secs(20);

/// One installation under its own name.
pub struct Installation {
    pub redis: Redis,
    pub config: Config,
}

/// A pod in this process.
pub struct TestPod {
    pub url: String,
    pub admin: String,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

/// A runner in this process.
pub struct TestRunner {
    pub shutdown: Shutdown,
    task: JoinHandle<Result<Summary, client::ClientError>>,
}

impl Installation {
    pub async fn new() -> Self {
        let instance = instance();
        let config = Config {
            redis_url: redis_url().parse().expect("a URL"),
            redis_username: Some(POD_USER.to_owned()),
            redis_password: Some(POD_PASSWORD.into()),
            inbox_stream: format!("{instance}:inbox"),
            key_prefix: instance,
            drain_timeout: Duration::from_secs(1), // raw runners stay until they are cut
            rebuild_hold: Some(Duration::ZERO),    // no runner is left over from before
            ..Config::default()
        };
        let redis = Redis::connect(&RedisSettings::new(redis_url())).await.expect("connects");
        Self { redis, config }
    }

    /// One with a Redis that no other test uses: to hold up, to count its calls, or to take its rights away.
    pub async fn alone() -> (Self, PrivateRedis) {
        Self::alone_with(PrivateRedisOptions::default()).await
    }

    pub async fn alone_with(options: PrivateRedisOptions) -> (Self, PrivateRedis) {
        let server = start_redis(options);
        let mut installation = Self::new().await;
        installation.config.redis_url = server.url().parse().expect("a URL");
        installation.redis = Redis::connect(&RedisSettings::new(server.url())).await.expect("connects");
        (installation, server)
    }

    /// Its first partition.
    pub fn partition(&self) -> Partition {
        Partition::new(self.redis.clone(), &format!("{{{}:0}}:", self.config.key_prefix))
    }

    pub async fn pod(&self, name: &str) -> TestPod {
        self.pod_at(name, TcpListener::bind("127.0.0.1:0").await.expect("a port")).await
    }

    /// One that runners reach at this listener.
    pub async fn pod_at(&self, name: &str, grpc: TcpListener) -> TestPod {
        let admin = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut config = self.config.clone();
        config.pod_id = Name::new(name).expect("a name");
        let url = format!("http://{}", grpc.local_addr().expect("an address"));
        let admin_url = admin.local_addr().expect("an address").to_string();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(dispatcher::run(config, Listeners { grpc, admin }, shutdown.clone()));
        TestPod { url, admin: admin_url, shutdown, task }
    }

    /// A command that has nothing to do with a key.
    pub async fn command(&self, name: &'static str, args: &[&str]) -> Reply {
        self.redis.command_at("any", name, args.iter().map(|arg| Arg::from(*arg))).await.expect("a reply")
    }

    /// How many scripts Redis was asked to run.
    pub async fn scripts_run(&self) -> u64 {
        let stats = self.command("INFO", &["commandstats"]).await;
        let line = stats.as_str().expect("text").lines().find_map(|line| line.strip_prefix("cmdstat_fcall:calls="));
        line.and_then(|line| line.split(',').next()?.parse().ok()).expect("a count")
    }

    /// Whether an entry is still in the inbox.
    pub async fn in_inbox(&self, entry_id: &str) -> bool {
        let args = [self.config.inbox_stream.as_str(), entry_id, entry_id].map(Arg::from);
        !self.redis.command("XRANGE", args).await.expect("a reply").into_entries().expect("entries").is_empty()
    }

    /// Publishes a message as Rails would.
    pub async fn publish(&self, kind: &str, data: Value) -> String {
        self.xadd(&[("v", "1"), ("type", kind), ("data", &data.to_string())]).await
    }

    pub async fn xadd(&self, fields: &[(&str, &str)]) -> String {
        let args = [Arg::from(&self.config.inbox_stream), "*".into()];
        let fields = fields.iter().flat_map(|(name, value)| [Arg::from(*name), Arg::from(*value)]);
        let id = self.redis.command("XADD", args.into_iter().chain(fields)).await.expect("adds");
        id.as_str().expect("an id").to_owned()
    }

    /// Registers a runner; its token is `token-<id>`.
    pub async fn register(&self, id: u64, data: Value) {
        let mut record = json!({
            "id": id, "token_sha256": hex::encode(Sha256::digest(token(id))), "type": "instance", "run_untagged": true,
        });
        for (key, value) in data.as_object().expect("an object") {
            record[key] = value.clone();
        }
        self.publish("runner.upserted", record).await;
        self.until("the runner is registered", async || {
            let key = format!("{{{}:runners}}:id:{id}", self.config.key_prefix);
            let stored = self.redis.command("HEXISTS", [Arg::from(key), "record".into()]).await.expect("a reply");
            (stored.as_u64().ok()? == 1).then_some(())
        })
        .await;
    }

    pub async fn job(&self, id: u64, data: Value) -> String {
        let mut job = json!({"id": id, "project_id": 1, "namespace_ids": [1], "payload": {"steps": []}});
        for (key, value) in data.as_object().expect("an object") {
            job[key] = value.clone();
        }
        self.publish("job.pending", job).await
    }

    pub fn runner<E: Executor>(&self, url: &str, id: u64, system_id: &str, slots: u32, executor: E) -> TestRunner {
        let mut options =
            Options::new(url, SecretString::from(token(id)), Name::new(system_id).expect("a name"), slots);
        options.shutdown_grace = Duration::from_secs(5);
        let shutdown = Shutdown::default();
        let task = tokio::spawn(client::run(options, executor, shutdown.clone()));
        TestRunner { shutdown, task }
    }

    /// Publishes many entries at once, in this order.
    pub async fn publish_all(&self, entries: impl IntoIterator<Item = Vec<(String, Vec<u8>)>>) {
        let calls = entries.into_iter().map(|fields| {
            let args = [Arg::from(&self.config.inbox_stream), "*".into()].into_iter();
            let fields = fields.into_iter().flat_map(|(name, value)| [Arg::from(name), Arg::from(value)]);
            self.redis.command("XADD", args.chain(fields).collect::<Vec<_>>())
        });
        let calls: Vec<_> = calls.collect();
        for added in futures::future::join_all(calls).await {
            added.expect("adds");
        }
    }

    /// Waits until all of the inbox is applied: nothing in it, nothing pending.
    pub async fn until_inbox_empty(&self) {
        let (inbox, group) = (&self.config.inbox_stream, self.config.inbox_group.as_str());
        self.until("the inbox is empty", async || {
            let len = self.redis.command("XLEN", [Arg::from(inbox)]).await.ok()?.as_u64().ok()?;
            let pending = self.redis.command("XPENDING", [Arg::from(inbox), group.into()]).await.ok()?;
            let pending = pending.into_array().ok()?.first()?.as_u64().ok()?;
            (len == 0 && pending == 0).then_some(())
        })
        .await;
    }

    /// The types of one job's events, in order, without `job.`.
    pub async fn story_of(&self, id: u64) -> Vec<String> {
        let events = self.events().await;
        let of_job = events.iter().filter(|event| event.id.is_some_and(|job| job.0 == id));
        of_job.map(|event| event.event_type.to_string().trim_start_matches("job.").to_owned()).collect()
    }

    /// All events so far.
    pub async fn events(&self) -> Vec<Event> {
        let key = format!("{{{}:0}}:events", self.config.key_prefix);
        let reply = self.redis.command("XRANGE", [Arg::from(key), "-".into(), "+".into()]).await.expect("a reply");
        let entries = reply.into_entries().expect("entries");
        entries.iter().map(|entry| Event::parse(&entry.fields).expect("an event")).collect()
    }

    /// How many events there are of each type.
    pub async fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for event in self.events().await {
            *counts.entry(event.event_type.to_string()).or_default() += 1;
        }
        counts
    }

    /// Waits until there are `n` events of a type.
    pub async fn until_events(&self, kind: &str, n: usize) {
        self.until(kind, async || (self.counts().await.get(kind).copied().unwrap_or(0) >= n).then_some(())).await;
    }

    /// What happened to jobs that have not ended, for the message of a failure.
    async fn unended(&self) -> String {
        let mut jobs: BTreeMap<u64, Vec<Event>> = BTreeMap::new();
        for event in self.events().await {
            jobs.entry(event.id.map_or(0, |id| id.0)).or_default().push(event);
        }
        let ends = ["job.finished", "job.failed", "job.canceled", "message.rejected"];
        jobs.retain(|_, events| !events.iter().any(|event| ends.contains(&event.event_type.to_string().as_str())));
        let tell = |event: &Event| {
            let by = [event.pod.as_ref().map(|pod| pod.as_str()), event.system_id.as_ref().map(|id| id.as_str())];
            format!("  {} {} {by:?} {:?}", event.at_ms, event.event_type, event.text("reason"))
        };
        let job = |(id, events): (&u64, &Vec<Event>)| {
            format!("job {id}:\n{}", events.iter().map(tell).collect::<Vec<_>>().join("\n"))
        };
        jobs.iter().take(5).map(job).collect::<Vec<_>>().join("\n")
    }

    /// Waits until a pod has so many free slots, as it tells those who explain.
    pub async fn until_free(&self, pod: &str, slots: u64) {
        let key = format!("{{{}:runners}}:fleet:{pod}", self.config.key_prefix);
        let told = async || {
            let told = self.redis.command("HVALS", [key.as_str().into()]).await.ok()?.into_array().ok()?;
            let seen = told.iter().filter_map(|seen| serde_json::from_str::<Value>(seen.as_str().ok()?).ok());
            Some(seen.filter_map(|seen| seen["free"].as_u64()).sum::<u64>())
        };
        self.until("slots are free", async || (told().await? == slots).then_some(())).await;
    }

    /// Waits for something, with a limit.
    pub async fn until<T>(&self, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
        let look = async {
            loop {
                if let Some(found) = look().await {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(LIMIT, look).await {
            Ok(found) => found,
            Err(_) => panic!("not in time: {what}; events: {:?}\n{}", self.counts().await, self.unended().await),
        }
    }
}

impl TestPod {
    /// A page of its admin server: the status line's code, and the body.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut tcp = tokio::net::TcpStream::connect(&self.admin).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.expect("writes");
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.expect("reads");
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        (code, answer)
    }

    /// That no wake was lost so far, in any test of this process; then stops it.
    pub async fn end(self) {
        let (_, metrics) = self.admin("/metrics").await;
        let rescues = metrics.lines().find_map(|line| line.strip_prefix("job_router_sweep_rescues_total "));
        assert_eq!(rescues.unwrap_or("0"), "0", "a wake was lost");
        self.stop().await;
    }

    /// How it ended by itself.
    pub async fn ended(self) -> anyhow::Result<()> {
        tokio::time::timeout(LIMIT, self.task).await.expect("ends in time").expect("no panic")
    }

    /// As SIGTERM does; waits until it has drained.
    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.task).await.expect("drains in time").expect("no panic").expect("no error");
    }

    /// As SIGKILL does, as far as that goes within a process.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

impl TestRunner {
    pub async fn stop(self) -> Summary {
        self.shutdown.stop.cancel();
        let ended = tokio::time::timeout(LIMIT, self.task).await.expect("stops in time").expect("no panic");
        ended.expect("no error")
    }

    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

pub fn token(id: u64) -> String {
    format!("token-{id}")
}

/// A message as the fields of an inbox entry.
pub fn entry(kind: &str, data: &Value) -> Vec<(String, Vec<u8>)> {
    let fields = [("v", "1".to_owned()), ("type", kind.to_owned()), ("data", data.to_string())];
    fields.map(|(name, value)| (name.to_owned(), value.into_bytes())).into()
}

/// A job of the first tenant.
pub fn pending(id: u64) -> Value {
    json!({"id": id, "project_id": 1, "namespace_ids": [1], "payload": {"steps": []}})
}

/// Runs nothing, for `duration`, and notes which jobs it was given.
#[derive(Clone, Default)]
pub struct Noting {
    pub duration: Duration,
    pub ran: Arc<Mutex<Vec<u64>>>,
}

impl Executor for Noting {
    async fn run(&self, job: JobContext) -> Outcome {
        self.ran.lock().expect("no panic").push(job.assignment.lease.job_id.0);
        tokio::select! {
            () = tokio::time::sleep(self.duration) => Outcome::success(),
            () = job.cancel.cancelled() => Outcome::canceled(),
            () = job.kill.cancelled() => Outcome::canceled(),
        }
    }
}

/// Runs each job until told otherwise, and notes which jobs it was given.
#[derive(Clone, Default)]
pub struct Gate {
    /// Cancelled: all jobs succeed.
    pub open: CancellationToken,
    pub started: Arc<Mutex<Vec<u64>>>,
    /// Whether `cancel` is heard.
    pub deaf: bool,
}

impl Gate {
    pub fn started(&self) -> Vec<u64> {
        self.started.lock().expect("no panic").clone()
    }
}

impl Executor for Gate {
    async fn run(&self, job: JobContext) -> Outcome {
        self.started.lock().expect("no panic").push(job.assignment.lease.job_id.0);
        tokio::select! {
            () = self.open.cancelled() => Outcome::success(),
            () = job.cancel.cancelled(), if !self.deaf => Outcome::canceled(),
            () = job.kill.cancelled() => Outcome::canceled(),
        }
    }
}
