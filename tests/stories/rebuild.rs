//! Redis loses all its data under load. Rails publishes again what has not ended; what runs stays where it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use job_router::client::{Executor, JobContext, Outcome};
use job_router::contract::{Event, EventType};
use job_router::redis::Arg;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::net::Balancer;
use crate::support::pods::Installation;

const LEASE: Duration = Duration::from_secs(4);
/// Jobs from here on run until they are told to end.
const LONG: u64 = 1_000_000;

type Stay = (u64, Instant, Option<Instant>);

/// Runs jobs, and notes when each began and ended.
#[derive(Clone, Default)]
struct Diary {
    stays: Arc<Mutex<Vec<Stay>>>,
    /// Cancelled: long jobs succeed.
    open: CancellationToken,
}

impl Diary {
    /// Jobs that ran more than once, and whether any did so at one time.
    fn twice(&self) -> (BTreeSet<u64>, bool) {
        let mut by_job: BTreeMap<u64, Vec<(Instant, Instant)>> = BTreeMap::new();
        for (id, began, ended) in self.stays.lock().expect("no panic").iter() {
            by_job.entry(*id).or_default().push((*began, ended.unwrap_or_else(Instant::now)));
        }
        by_job.retain(|_, stays| stays.len() > 1);
        let overlaps = by_job.values_mut().any(|stays| {
            stays.sort();
            stays.windows(2).any(|pair| pair[1].0 < pair[0].1)
        });
        (by_job.into_keys().collect(), overlaps)
    }

    fn running(&self) -> usize {
        self.stays.lock().expect("no panic").iter().filter(|stay| stay.2.is_none()).count()
    }
}

impl Executor for Diary {
    async fn run(&self, job: JobContext) -> Outcome {
        let id = job.assignment.lease.job_id.0;
        let nth = {
            let mut stays = self.stays.lock().expect("no panic");
            stays.push((id, Instant::now(), None));
            stays.len() - 1
        };
        let open = self.open.clone();
        let over = async move {
            if id >= LONG { open.cancelled().await } else { tokio::time::sleep(Duration::from_millis(20)).await }
        };
        let outcome = tokio::select! {
            () = over => Outcome::success(),
            () = job.cancel.cancelled() => Outcome::canceled(),
            () = job.kill.cancelled() => Outcome::canceled(),
        };
        self.stays.lock().expect("no panic")[nth].2 = Some(Instant::now());
        outcome
    }
}

/// Publishes, follows the events, and publishes again what has not ended when Redis is found empty.
struct Rails<'a> {
    installation: &'a Installation,
    published: Vec<u64>,
    /// The last event read.
    last: String,
    /// By job, the leases under which it ended, or a word.
    ends: BTreeMap<u64, BTreeSet<String>>,
    seen: Vec<(Instant, Event)>,
}

impl<'a> Rails<'a> {
    fn new(installation: &'a Installation) -> Self {
        Self { installation, published: Vec::new(), last: "0".to_owned(), ends: BTreeMap::new(), seen: Vec::new() }
    }

    async fn publish(&mut self, id: u64) {
        self.installation.job(id, json!({})).await;
        self.published.push(id);
    }

    async fn read(&mut self) {
        let key = format!("{{{}:0}}:events", self.installation.config.key_prefix);
        let args = [Arg::from(key), format!("({}", self.last).into(), "+".into()];
        let entries = self.installation.redis.command("XRANGE", args).await.expect("a reply");
        for entry in entries.into_entries().expect("entries") {
            let event = Event::parse(&entry.fields).expect("an event");
            let ended = [EventType::JobFinished, EventType::JobFailed, EventType::JobCanceled];
            if ended.contains(&event.event_type) {
                let by = event.lease_id.map_or_else(|| "nobody".to_owned(), |lease_id| lease_id.to_string());
                self.ends.entry(event.id.expect("a job's").0).or_default().insert(by);
            }
            self.seen.push((Instant::now(), event));
            self.last = entry.id;
        }
    }

    /// All that it has not heard the end of, the runners first.
    async fn publish_again(&mut self) -> usize {
        self.installation.register(1, json!({})).await;
        let open: Vec<u64> = self.published.iter().filter(|id| !self.ends.contains_key(id)).copied().collect();
        for id in &open {
            self.installation.job(*id, json!({})).await;
        }
        open.len()
    }

    /// Reads until something is so.
    async fn until(&mut self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let since = Instant::now();
        while !so(self) {
            if since.elapsed() > Duration::from_secs(30) {
                let mut told = Vec::new();
                for id in self.unended().into_iter().take(8) {
                    told.push((id, self.installation.story_of(id).await));
                }
                panic!("not in time: {what}; without an end: {told:?} of {}", self.unended().len());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.read().await;
        }
    }

    fn unended(&self) -> Vec<u64> {
        self.published.iter().filter(|id| !self.ends.contains_key(id)).copied().collect()
    }

    fn first(&self, kind: EventType, after: Instant) -> Option<Duration> {
        let found = self.seen.iter().find(|(at, event)| *at > after && event.event_type == kind);
        found.map(|(at, _)| at.duration_since(after))
    }
}

async fn lossy() -> (Installation, job_router::redis::PrivateRedis) {
    let (mut installation, server) = Installation::alone().await;
    installation.config.lease = LEASE;
    installation.config.lease_margin = Duration::from_secs(1);
    installation.config.beat_interval = Duration::from_millis(500);
    installation.config.sweep_interval = Duration::from_millis(200);
    installation.config.rebuild_hold = None; // a lease
    (installation, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_redis_that_loses_all_nothing_is_lost_and_nothing_runs_twice() {
    let (installation, _server) = lossy().await;
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    let diary = Diary::default();
    installation.register(1, json!({})).await;
    let one = installation.runner(&a.url, 1, "s_1", 8, diary.clone());
    let other = installation.runner(&b.url, 1, "s_2", 8, diary.clone());
    let mut rails = Rails::new(&installation);
    for id in LONG..LONG + 6 {
        rails.publish(id).await;
    }
    rails.until("long jobs run, once the new Redis is trusted", |_| diary.running() == 6).await;
    for id in 1..=600 {
        rails.publish(id).await;
        if id == 300 {
            installation.command("FLUSHALL", &[]).await;
            let lost = Instant::now();
            let again = rails.publish_again().await;
            let published = lost.elapsed();
            rails.until("Rails is told", |rails| rails.first(EventType::RedisEmpty, lost).is_some()).await;
            println!(
                "published again: {again} jobs in {published:?}; told after {:?}",
                rails.first(EventType::RedisEmpty, lost)
            );
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
        rails.read().await;
    }
    rails.until("all but the long jobs end", |rails| rails.unended().len() <= 6).await;
    assert_eq!(diary.running(), 6, "they run on");
    diary.open.cancel();
    rails.until("all end", |rails| rails.unended().is_empty()).await;
    let several: Vec<_> = rails.ends.iter().filter(|(_, ends)| ends.len() > 1).collect();
    assert!(several.is_empty(), "ended under two leases: {several:?}");
    assert_eq!(diary.twice(), (BTreeSet::new(), false));
    let failed = rails.seen.iter().filter(|(_, event)| event.event_type == EventType::JobFailed).count();
    assert_eq!(failed, 0, "no runner was lost");
    one.stop().await;
    other.stop().await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_redis_a_pod_is_lost_too_and_its_jobs_run_again_only_once_they_have_stopped() {
    let (installation, _server) = lossy().await;
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    let balancer = Balancer::new(&[&b.url, &a.url]).await;
    let diary = Diary::default();
    installation.register(1, json!({})).await;
    let runner = installation.runner(&balancer.url, 1, "s_1", 8, diary.clone());
    let mut rails = Rails::new(&installation);
    for id in LONG..LONG + 4 {
        rails.publish(id).await;
    }
    rails.until("long jobs run", |_| diary.running() == 4).await;
    b.kill().await;
    installation.command("FLUSHALL", &[]).await;
    balancer.cut();
    rails.publish_again().await;
    // Nobody says again what ran there: it stops, and runs again.
    rails.until("they have begun anew", |_| diary.stays.lock().expect("no panic").len() >= 8).await;
    diary.open.cancel();
    rails.until("all end", |rails| rails.unended().is_empty()).await;
    let (twice, overlap) = diary.twice();
    assert_eq!((twice.len(), overlap), (4, false), "one after the other");
    runner.stop().await;
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_canceled_before_its_pod_says_again_that_it_runs_is_stopped_at_once() {
    let (mut installation, _server) = lossy().await;
    installation.config.pod_heartbeat = Duration::from_secs(5); // it learns of it late
    installation.config.beat_interval = Duration::from_secs(5);
    installation.config.lease = Duration::from_secs(20);
    installation.config.rebuild_hold = Some(Duration::ZERO);
    let pod = installation.pod("a").await;
    let diary = Diary::default();
    installation.register(1, json!({})).await;
    let runner = installation.runner(&pod.url, 1, "s_1", 2, diary.clone());
    let mut rails = Rails::new(&installation);
    rails.publish(LONG).await;
    rails.until("it runs", |_| diary.running() == 1).await;
    installation.command("FLUSHALL", &[]).await;
    installation.publish("job.canceled", json!({"id": LONG, "tenant": "ns:1", "reason": "why not"})).await;
    rails.until("Rails is told that it is canceled", |rails| rails.unended().is_empty()).await;
    let canceled = Instant::now();
    rails.until("it is stopped", |_| diary.running() == 0).await;
    println!("stopped {:?} after Rails was told", canceled.elapsed());
    let (_, metrics) = pod.admin("/metrics").await;
    assert!(metrics.contains("job_router_redis_data_losses_total 1"), "{metrics}");
    runner.stop().await;
    pod.stop().await;
}
