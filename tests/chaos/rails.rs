//! A Rails: publishes jobs, cancels some, and applies events. It dies now and then, between any two steps.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use job_router::contract::Event;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redis::streams::{StreamReadOptions, StreamReadReply};
use redis::{Commands, Connection, RedisResult};
use serde_json::json;

use super::history::{Notes, Told, What, pause};
use super::servers::Directory;

/// Waits for a replica no longer than this; then it tries again.
const WAIT_MS: u32 = 1_000;
const GROUP: &str = "rails";

/// The kinds of tags that jobs have.
pub const TAGS: [&str; 3] = ["", "red", "blue"];

/// What it is told.
#[derive(Clone)]
pub struct Orders {
    pub directory: Directory,
    pub inbox: String,
    pub events: String,
    /// A write counts once so many replicas have it.
    pub replicas: u8,
    pub jobs_per_second: u64,
    pub seed: u64,
    pub notes: Notes,
}

/// Its two threads.
pub struct Rails {
    orders: Orders,
    publishing: Arc<AtomicBool>,
    reading: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
    ended: Arc<AtomicU64>,
    publisher: Option<JoinHandle<()>>,
    reader: Option<JoinHandle<()>>,
}

// === impl Rails ===

impl Rails {
    pub fn start(orders: Orders) -> Self {
        let (publishing, reading) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let (published, ended) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let publisher = {
            let (orders, go_on, published) = (orders.clone(), publishing.clone(), published.clone());
            std::thread::spawn(move || publish_all(&orders, &go_on, &published))
        };
        let reader = {
            let (orders, go_on, ended) = (orders.clone(), reading.clone(), ended.clone());
            std::thread::spawn(move || read_all(&orders, &go_on, &ended))
        };
        Self { orders, publishing, reading, published, ended, publisher: Some(publisher), reader: Some(reader) }
    }

    /// Registers runners with their tags, before anything else.
    pub fn register(orders: &Orders, runners: &[(u64, String, Vec<String>)]) {
        for (id, token_sha256, tags) in runners {
            let record = json!({
                "id": id, "token_sha256": token_sha256, "type": "instance", "tags": tags, "run_untagged": true,
            });
            until_acknowledged(orders, &mut None, "runner.upserted", &record.to_string());
        }
    }

    /// No more jobs. Waits until all that were begun are acknowledged.
    pub fn stop_publishing(&mut self) {
        self.publishing.store(false, Ordering::Relaxed);
        if let Some(publisher) = self.publisher.take() {
            publisher.join().expect("the publisher does not panic");
        }
    }

    /// How many jobs were published, and how many of these have ended as far as it was told.
    pub fn counts(&self) -> (u64, u64) {
        (self.published.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed))
    }

    /// Applies what there is, and then notes all that is in the stream.
    pub fn end(mut self) {
        self.stop_publishing();
        self.reading.store(false, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
        let mut connection = self.orders.directory.connect(&self.orders.events).expect("connects");
        let mut after = "-".to_owned();
        loop {
            let page: redis::streams::StreamRangeReply =
                connection.xrange_count(&self.orders.events, &after, "+", 1_000).expect("a page");
            for entry in &page.ids {
                if let Some(told) = told(&entry.map) {
                    self.orders.notes.add(What::Written(told));
                }
            }
            match page.ids.last() {
                Some(last) => after = format!("({}", last.id),
                None => return,
            }
        }
    }
}

fn publish_all(orders: &Orders, go_on: &AtomicBool, published: &AtomicU64) {
    let mut random = StdRng::seed_from_u64(orders.seed);
    let mut connection = None;
    let mut cancels: VecDeque<(Instant, u64, u64)> = VecDeque::new();
    let between = Duration::from_secs(1) / orders.jobs_per_second as u32;
    for job in 1.. {
        let next = Instant::now() + between;
        if !go_on.load(Ordering::Relaxed) {
            break;
        }
        let tenant = random.random_range(1..=5);
        let tag = TAGS[random.random_range(0..TAGS.len())];
        let tags: Vec<String> = [tag.to_owned()].into_iter().filter(|tag| !tag.is_empty()).collect();
        let runs_ms =
            if random.random_ratio(1, 20) { random.random_range(500..3_000) } else { random.random_range(1..200) };
        let data = json!({
            "id": job, "project_id": tenant * 10 + random.random_range(0..3), "namespace_ids": [tenant], "tags": tags,
            "priority": random.random_range(-2..=2), "max_attempts": random.random_range(1..=3), "timeout_s": 600,
            "payload": {"runs_ms": runs_ms},
        });
        orders.notes.add(What::Tried { job, tags });
        until_acknowledged(orders, &mut connection, "job.pending", &data.to_string());
        orders.notes.add(What::Published { job });
        published.fetch_add(1, Ordering::Relaxed);
        if random.random_ratio(1, 50) {
            until_acknowledged(orders, &mut connection, "job.pending", &data.to_string()); // once more
        }
        if random.random_ratio(1, 15) {
            cancels.push_back((Instant::now() + Duration::from_millis(random.random_range(0..1_000)), job, tenant));
        }
        while cancels.front().is_some_and(|(at, ..)| *at <= Instant::now()) {
            let (_, job, tenant) = cancels.pop_front().expect("just seen");
            let data = json!({"id": job, "tenant": format!("ns:{tenant}"), "reason": "user"});
            until_acknowledged(orders, &mut connection, "job.canceled", &data.to_string());
        }
        pause(next.saturating_duration_since(Instant::now()));
    }
}

/// Appends a message, again and again, until it is acknowledged: it may be there more than once.
fn until_acknowledged(orders: &Orders, connection: &mut Option<Connection>, kind: &str, data: &str) {
    loop {
        match append(orders, connection, kind, data) {
            Ok(true) => return,
            Ok(false) | Err(_) => *connection = None,
        }
        pause(Duration::from_millis(50));
    }
}

fn append(orders: &Orders, connection: &mut Option<Connection>, kind: &str, data: &str) -> RedisResult<bool> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(orders.directory.connect(&orders.inbox)?),
    };
    let fields = [("v", "1"), ("type", kind), ("data", data)];
    let _: String = connection.xadd(&orders.inbox, "*", &fields)?;
    is_replicated(orders, connection)
}

/// Whether what this connection wrote, or read, is on enough replicas.
fn is_replicated(orders: &Orders, connection: &mut Connection) -> RedisResult<bool> {
    if orders.replicas == 0 {
        return Ok(true);
    }
    let have: u8 = redis::cmd("WAIT").arg(orders.replicas).arg(WAIT_MS).query(connection)?;
    Ok(have >= orders.replicas)
}

fn read_all(orders: &Orders, go_on: &AtomicBool, ended: &AtomicU64) {
    let mut random = StdRng::seed_from_u64(orders.seed ^ 1);
    let mut seen = std::collections::HashSet::new();
    let mut connection: Option<Connection> = None;
    let mut from = "0".to_owned(); // what it had read before it died comes first
    loop {
        let last_look = !go_on.load(Ordering::Relaxed);
        match read(orders, &mut connection, &mut random, &mut seen, &from, ended) {
            Ok(0) if from == ">" && last_look => return,
            Ok(0) => ">".clone_into(&mut from),
            Ok(_) => {}
            Err(_) => {
                (connection, from) = (None, "0".to_owned());
                pause(Duration::from_millis(50));
            }
        }
    }
}

/// Reads, applies and acknowledges one page. Answers how many entries it had.
fn read(
    orders: &Orders,
    connection: &mut Option<Connection>,
    random: &mut StdRng,
    seen: &mut std::collections::HashSet<String>,
    from: &str,
    ended: &AtomicU64,
) -> RedisResult<usize> {
    let dies = || redis::RedisError::from(std::io::Error::other("it died"));
    let connection = match connection {
        Some(connection) => connection,
        None => {
            let connection = connection.insert(orders.directory.connect(&orders.events)?);
            match connection.xgroup_create_mkstream::<_, _, _, ()>(&orders.events, GROUP, "0") {
                Err(error) if error.code() != Some("BUSYGROUP") => return Err(error),
                _ => connection,
            }
        }
    };
    let options = StreamReadOptions::default().group(GROUP, "one").count(100).block(100);
    let reply: Option<StreamReadReply> = connection.xread_options(&[&orders.events], &[from], &options)?;
    let entries = reply.and_then(|mut reply| reply.keys.pop()).map(|key| key.ids).unwrap_or_default();
    if entries.is_empty() {
        return Ok(0);
    }
    if random.random_ratio(1, 100) {
        return Err(dies());
    }
    if !is_replicated(orders, connection)? {
        return Err(dies());
    }
    for entry in &entries {
        if let Some(told) = told(&entry.map)
            && seen.insert(told.id.clone())
        {
            if ["job.finished", "job.failed", "job.canceled"].contains(&&*told.kind) {
                ended.fetch_add(1, Ordering::Relaxed);
            }
            orders.notes.add(What::Applied(told));
        }
    }
    if random.random_ratio(1, 100) {
        return Err(dies());
    }
    let ids: Vec<&str> = entries.iter().map(|entry| &*entry.id).collect();
    let _: u64 = connection.xack(&orders.events, GROUP, &ids)?;
    Ok(entries.len())
}

fn told(fields: &std::collections::HashMap<String, redis::Value>) -> Option<Told> {
    let text = |value: &redis::Value| redis::from_redis_value::<Vec<u8>>(value.clone()).expect("bytes");
    let fields: Vec<(&String, Vec<u8>)> = fields.iter().map(|(name, value)| (name, text(value))).collect();
    let event = Event::parse(&fields).expect("an event of our contract");
    Some(Told {
        id: event.event_id,
        kind: event.event_type.to_string(),
        job: event.id?.0,
        lease: event.lease_id.map(|id| id.to_string()).unwrap_or_default(),
    })
}
