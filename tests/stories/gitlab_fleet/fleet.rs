//! What the stories of GitLab Runners share: pods, processes and a Rails, and the judgement of what they did.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::emulator::{Config, Entry, Notes, Process, Rails};
use crate::support::pods::{Installation, TestPod, token};

/// The name that the discovery tells; it stands for all pods.
pub const ROUTER: &str = "router.example.com:80";

/// How long the first of what is waited for may take to come, and each thing after another.
const STILL_MAX: Duration = Duration::from_secs(30);

pub struct Fleet {
    pub installation: Installation,
    pub rails: Arc<Rails>,
    pub notes: Arc<Notes>,
    names: BTreeMap<String, Vec<SocketAddr>>,
    admin: String,
}

/// How a story may differ from: every job ran once, at the first try, and no runner left the router.
#[derive(Default)]
pub struct Allowed {
    /// Jobs that were canceled.
    pub canceled: usize,
}

/// An installation whose pods tell runners where they are, and hold calls for 2 s.
pub fn set(mut installation: Installation) -> Installation {
    installation.config.gitlab_server_url = Some(format!("grpc://{ROUTER}"));
    installation.config.gitlab_hold = Duration::from_secs(2);
    installation
}

/// An entry of runner `id`, registered or not.
pub fn entry(id: u64) -> Entry {
    Entry { runner_id: id, token: token(id), limit: 0, request_concurrency: 1 }
}

// === impl Fleet ===

impl Fleet {
    /// A Rails beside these pods, of which the first answers the discovery.
    pub fn new(installation: Installation, pods: &[&TestPod]) -> Self {
        let address = |pod: &&TestPod| pod.url.trim_start_matches("http://").parse().expect("an address");
        let names = BTreeMap::from([(ROUTER.to_owned(), pods.iter().map(address).collect())]);
        let (rails, admin) = (Rails::start(&installation), pods[0].admin.clone());
        Self { installation, rails, notes: Arc::default(), names, admin }
    }

    /// One more pod, for processes that start from now on.
    pub fn add_pod(&mut self, address: &str) {
        let pods = self.names.get_mut(ROUTER).expect("it has its pods");
        pods.push(address.parse().expect("an address"));
    }

    pub fn start(&self, config: Config) -> Process {
        Process::start(config, &self.admin, &self.names, self.rails.clone(), self.notes.clone())
    }

    /// So many processes with an entry of runner 1 each, which is registered.
    pub async fn managers(&self, count: usize, concurrent: usize) -> Vec<Process> {
        self.installation.register(1, json!({})).await;
        let manager = |number: usize| Config { concurrent, ..Config::new(&format!("s_{number}"), vec![entry(1)]) };
        (0..count).map(|number| self.start(manager(number))).collect()
    }

    /// Publishes jobs without tags in this rhythm.
    pub async fn publish(&self, ids: std::ops::RangeInclusive<u64>, every: Duration, runs: Duration) {
        let mut ticks = tokio::time::interval(every);
        for id in ids {
            ticks.tick().await;
            self.rails.publish(id, &[], runs);
        }
    }

    /// Waits until Rails knows the end of so many jobs, for as long as some end.
    pub async fn until_ended(&self, jobs: usize) {
        let (mut ended, mut since) = (self.rails.ended(), Instant::now());
        while ended < jobs {
            assert!(since.elapsed() < STILL_MAX, "no job ends any more; {ended} of {jobs} have");
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = self.rails.ended();
            if now > ended {
                (ended, since) = (now, Instant::now());
            }
        }
    }

    /// Judges a story whose jobs have ended: each ran once, and ended once, by the records of the runners, of Rails and of the router;
    /// no runner left the router; no promise was broken. Prints its figures.
    pub async fn judge(&self, story: &str, allowed: Allowed) {
        let records = self.rails.records();
        self.installation.until_events("job.finished", records.len() - allowed.canceled).await;
        self.installation.until_events("job.canceled", allowed.canceled).await;
        self.print(story);
        let mut ends: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        for event in self.installation.events().await {
            let (Some(id), kind) = (event.id, event.event_type.to_string()) else { continue };
            let (begun, ended) = ends.entry(id.0).or_default();
            *begun += usize::from(kind == "job.running");
            *ended += usize::from(["job.finished", "job.failed", "job.canceled"].contains(&&*kind));
        }
        let noted = self.notes.read().clone();
        let runs = noted.runs.iter().fold(BTreeMap::<u64, usize>::new(), |mut runs, run| {
            *runs.entry(run.job).or_default() += usize::from(run.ended.is_some());
            runs
        });
        // Of several pods each reads a part of the inbox: what Rails says last of a job may be applied first.
        let in_order = self.names[ROUTER].len() == 1;
        for (id, job) in &records {
            let (begun, ended) = ends.get(id).copied().unwrap_or_default();
            assert_eq!((runs.get(id), ended), (Some(&1), 1), "job {id}: {job:?}");
            assert!(begun == 1 || begun == 0 && !in_order, "job {id} began {begun} times: {job:?}");
        }
        assert_eq!((runs.len(), ends.len()), (records.len(), records.len()), "nothing but these jobs");
        let left = (noted.breaker_openings, noted.unhealthy, noted.rest_polls);
        assert_eq!(
            left,
            (0, 0, 0),
            "breakers opened, entries stopped, polls of Rails; calls failed: {:?}",
            noted.failed
        );
        assert_eq!(noted.broken_promises, [""; 0]);
    }

    fn print(&self, story: &str) {
        let (records, noted) = (self.rails.records(), self.notes.read().clone());
        let mut waits: Vec<Duration> = noted.received.iter().map(|(id, at)| *at - records[id].published).collect();
        waits.sort_unstable();
        let part = |part: f64| waits.get((waits.len() as f64 * part) as usize).copied().unwrap_or_default();
        println!(
            "{story}: {} jobs, {} answered, {} refused by Rails; publish to response p50 {:.1?}, p99 {:.1?}, max {:.1?}; {} calls, {} empty, failed {:?}; \
             breaker openings {}, unhealthy {}, REST polls {}",
            records.len(),
            waits.len(),
            records.values().map(|job| job.refused).sum::<u32>(),
            part(0.5),
            part(0.99),
            waits.last().copied().unwrap_or_default(),
            noted.calls,
            noted.empty,
            noted.failed,
            noted.breaker_openings,
            noted.unhealthy,
            noted.rest_polls,
        );
    }
}
