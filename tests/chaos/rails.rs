//! A Rails: publishes jobs, cancels some, and applies events. It dies now and then, between any two steps.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use job_router::contract::Event;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redis::streams::{StreamReadOptions, StreamReadReply};
use redis::{Commands, Connection, RedisResult};
use serde_json::{Value, json};

use super::history::{Notes, Told, What, pause};
use super::servers::Directory;

/// Waits for a replica no longer than this; then it tries again.
const WAIT_MS: u32 = 1_000;
const GROUP: &str = "rails";
/// What has not ended so long after it was published is published again, where it may have been lost.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The kinds of tags that jobs have.
const TAGS: [&str; 3] = ["", "red", "blue"];
/// So many tenants have runners of their own.
pub const GROUPS_WITH_RUNNERS: u64 = 2;

/// What it is told.
#[derive(Clone)]
pub struct Orders {
    pub directory: Directory,
    pub inbox: String,
    pub events: String,
    /// A write counts once so many replicas have it.
    pub replicas: u8,
    /// Whether what was acknowledged may be lost.
    pub publishes_again: bool,
    pub jobs_per_second: u64,
    pub seed: u64,
    pub notes: Notes,
}

/// Its records of jobs whose end it was not told: when each was published last, and its message.
type Unended = Arc<Mutex<BTreeMap<u64, (Instant, String)>>>;

/// Its threads.
pub struct Rails {
    orders: Orders,
    publishing: Arc<AtomicBool>,
    reading: Arc<AtomicBool>,
    unended: Unended,
    publisher: Option<JoinHandle<()>>,
    readers: Vec<JoinHandle<()>>,
}

// === impl Rails ===

impl Rails {
    pub fn start(orders: Orders) -> Self {
        let (publishing, reading) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let unended = Unended::default();
        let start = |go_on: &Arc<AtomicBool>, does: fn(&Orders, &AtomicBool, &Unended)| {
            let (orders, go_on, unended) = (orders.clone(), go_on.clone(), unended.clone());
            std::thread::spawn(move || does(&orders, &go_on, &unended))
        };
        let publisher = start(&publishing, publish_all);
        let mut readers = vec![start(&reading, read_all)];
        if orders.publishes_again {
            readers.push(start(&reading, publish_again));
        }
        Self { publishing, reading, publisher: Some(publisher), readers, unended, orders }
    }

    /// Registers runners, before anything else.
    pub fn register(orders: &Orders, runners: &[Value]) {
        for runner in runners {
            until_acknowledged(orders, &mut None, "runner.upserted", &runner.to_string());
        }
    }

    /// No more jobs. Waits until all that were begun are acknowledged.
    pub fn stop_publishing(&mut self) {
        self.publishing.store(false, Ordering::Relaxed);
        if let Some(publisher) = self.publisher.take() {
            publisher.join().expect("the publisher does not panic");
        }
    }

    /// Whether it was told the end of every job.
    pub fn knows_all_ends(&self) -> bool {
        self.unended.lock().expect("no panic").is_empty()
    }

    /// Applies what there is, and then notes all that is in the stream.
    pub fn end(mut self) {
        self.stop_publishing();
        self.reading.store(false, Ordering::Relaxed);
        for reader in self.readers.drain(..) {
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

fn publish_all(orders: &Orders, go_on: &AtomicBool, unended: &Unended) {
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
        let project = random.random_range(0..3);
        // Of a project: one in three leaves all to its group's runners, where its group has some; one in three has none of these.
        let (instance, group) = (project != 2 || tenant > GROUPS_WITH_RUNNERS, project != 1);
        let data = json!({
            "id": job, "project_id": tenant * 10 + project, "namespace_ids": [tenant], "tags": tags,
            "instance_runners": instance, "group_runners": group, "protected": random.random_bool(0.5), "requires": [],
            "priority": random.random_range(-2..=2), "max_attempts": random.random_range(1..=3), "timeout_s": 600,
            "payload": {"runs_ms": runs_ms},
        });
        orders.notes.add(What::Tried { job, data: data.clone() });
        unended.lock().expect("no panic").insert(job, (Instant::now(), data.to_string()));
        until_acknowledged(orders, &mut connection, "job.pending", &data.to_string());
        orders.notes.add(What::Published { job });
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

/// Publishes again what may be lost: that changes nothing of a job that is known.
fn publish_again(orders: &Orders, go_on: &AtomicBool, unended: &Unended) {
    let mut connection = None;
    while go_on.load(Ordering::Relaxed) {
        pause(Duration::from_millis(500));
        let mut old = Vec::new();
        for (at, data) in unended.lock().expect("no panic").values_mut() {
            if at.elapsed() >= AGAIN_AFTER {
                *at = Instant::now();
                old.push(data.clone());
            }
        }
        for data in old {
            until_acknowledged(orders, &mut connection, "job.pending", &data);
        }
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

fn read_all(orders: &Orders, go_on: &AtomicBool, unended: &Unended) {
    let mut random = StdRng::seed_from_u64(orders.seed ^ 1);
    let mut seen = std::collections::HashSet::new();
    let mut connection: Option<Connection> = None;
    let mut from = "0".to_owned(); // what it had read before it died comes first
    loop {
        let last_look = !go_on.load(Ordering::Relaxed);
        match read(orders, &mut connection, &mut random, &mut seen, &from, unended) {
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
    unended: &Unended,
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
                unended.lock().expect("no panic").remove(&told.job);
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
        runner: event.runner_id.map(|id| id.0).unwrap_or_default(),
    })
}
