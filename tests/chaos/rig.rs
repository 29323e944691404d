//! Everything that takes part: servers, pods, runners, a Rails, and the ways between them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::check::Verdict;
use super::clocks::{Clock, Clocks};
use super::history::{Notes, Record, What, now, pause, read_notes};
use super::proxy::Proxy;
use super::rails::{GROUPS_WITH_RUNNERS, Orders, Rails};
use super::runner::ManagerProcess;
use super::runner::SLOTS;
use super::servers::{Servers, Topology};
use crate::support::processes::PodProcess;
use crate::support::{POD_PASSWORD, POD_USER};

const PODS: usize = 3;
const MANAGERS: usize = 6;
/// After the last fault leases may have to run out, and runners and pods to find each other.
const SETTLES_IN: Duration = Duration::from_secs(10);
/// For so long jobs come while nothing goes wrong.
const CALM: Duration = Duration::from_secs(5);
/// After the last fault, all must have ended by then: a few leases, and what is queued.
const ENDS_IN: Duration = Duration::from_secs(60);
/// Keys that belong to a job, a lease or what is queued. None may be there when all has ended.
const OF_JOBS: [&str; 6] = ["job:", "order:", "bucket:", "running:", "pod:", "lane:"];
const OF_JOBS_WHOLE: [&str; 4] = ["deadlines", "buckets", "returned", "paused"];

/// A place for a process that may be down for a while. Whoever does something to it has it locked.
pub type Slot<T> = Arc<Mutex<Option<T>>>;

/// The rig of one run.
pub struct Rig {
    pub servers: Arc<Mutex<Servers>>,
    pub pods: Vec<Slot<PodProcess>>,
    pub managers: Vec<Slot<ManagerProcess>>,
    /// From the runners to the pods, and from each pod to the one server.
    pub front: Arc<Proxy>,
    pub back: Vec<Arc<Proxy>>,
    pub notes: Notes,
    pub dir: TempDir,
    pub topology: Topology,
    /// Of each pod and each manager; they outlive the processes, as hosts do.
    pub pod_clocks: Vec<Clock>,
    pub manager_clocks: Vec<Clock>,
    rails: Rails,
    orders: Orders,
    generation: Mutex<usize>,
}

// === impl Rig ===

impl Rig {
    pub async fn start(topology: Topology, seed: u64, jobs_per_second: u64) -> Arc<Self> {
        let dir = tempfile::Builder::new().prefix("jr-chaos-").tempdir().expect("a directory");
        let clocks = Clocks::new(dir.path());
        let pod_clocks = (0..PODS).map(|at| clocks.of(&format!("pod-{at}"))).collect();
        let manager_clocks = (0..MANAGERS).map(|at| clocks.of(&format!("manager-{at}"))).collect();
        let servers = spawn_blocking(move || Servers::start(topology, &clocks)).await.expect("no panic");
        let front = Arc::new(Proxy::new().await);
        let mut back = Vec::new();
        for _ in 0..PODS {
            let proxy = Proxy::new().await;
            proxy.point_to(vec![servers.address()]);
            back.push(Arc::new(proxy));
        }
        let notes = Notes::default();
        let orders = Orders {
            directory: servers.directory(),
            inbox: "jr:inbox".to_owned(),
            events: "{jr:0}:events".to_owned(),
            replicas: topology.replicas(),
            publishes_again: topology == Topology::Cluster,
            jobs_per_second,
            seed,
            notes: notes.clone(),
        };
        let runners: Vec<Value> = (0..MANAGERS).map(runner).collect();
        let rails = {
            let orders = orders.clone();
            let started = spawn_blocking(move || {
                Rails::register(&orders, &runners);
                Rails::start(orders)
            });
            started.await.expect("no panic")
        };
        let rig = Arc::new(Self {
            servers: Arc::new(Mutex::new(servers)),
            pods: (0..PODS).map(|_| Slot::default()).collect(),
            managers: (0..MANAGERS).map(|_| Slot::default()).collect(),
            front,
            back,
            notes,
            dir,
            topology,
            pod_clocks,
            manager_clocks,
            rails,
            orders,
            generation: Mutex::new(0),
        });
        let all = rig.clone();
        let started = spawn_blocking(move || {
            (0..PODS).for_each(|at| all.start_pod(at, &mut all.pods[at].lock().expect("no panic")));
            (0..MANAGERS).for_each(|at| all.start_manager(at, &mut all.managers[at].lock().expect("no panic")));
        });
        started.await.expect("no panic");
        rig
    }

    pub fn fault(&self, kind: &str) {
        self.notes.add(What::Fault { kind: kind.to_owned() });
    }

    /// Starts a pod under a new name, as a deployment would.
    pub fn start_pod(&self, at: usize, slot: &mut Option<PodProcess>) {
        self.start_pod_with(at, slot, Vec::new());
    }

    /// The same with more variables in its environment.
    pub fn start_pod_with(&self, at: usize, slot: &mut Option<PodProcess>, more: Vec<(String, String)>) {
        let generation = {
            let mut generation = self.generation.lock().expect("no panic");
            *generation += 1;
            *generation
        };
        let url = self.servers.lock().expect("no panic").url(&self.back[at].address);
        let flags = [
            format!("--redis-url={url}"),
            format!("--redis-username={POD_USER}"),
            format!("--redis-password={POD_PASSWORD}"),
            format!("--pod-id=pod-{at}-{generation}"),
            format!("--require-replicas={}", self.topology.replicas()),
            "--redis-command-timeout=1s".to_owned(),
            "--lease=5s".to_owned(),
            "--lease-margin=1s".to_owned(),
            "--beat-interval=1s".to_owned(),
            "--accept-timeout=1s".to_owned(),
            "--cancel-grace=2s".to_owned(),
            "--pod-heartbeat=300ms".to_owned(),
            "--pod-dead-after=1500ms".to_owned(),
            "--drain-timeout=3s".to_owned(),
            "--keepalive-interval=1s".to_owned(),
            "--keepalive-timeout=1s".to_owned(),
            // By Redis' clock: longer than it ever jumps ahead, as Rails may publish twice.
            "--ended-ttl=5h".to_owned(),
        ];
        let environment = self.pod_clocks[at].environment().into_iter().chain(more).collect();
        *slot = Some(PodProcess::start_with(&flags, "pod listening", environment));
        self.point_front(at, slot.as_ref());
    }

    /// Runners find the pods that are up.
    fn point_front(&self, at: usize, pod: Option<&PodProcess>) {
        let others = self.pods.iter().enumerate().filter(|(other, _)| *other != at);
        // One that somebody does something to right now is left out until that is over.
        let others = others.filter_map(|(_, slot)| Some(slot.try_lock().ok()?.as_ref()?.address.clone()));
        self.front.point_to(others.chain(pod.map(|pod| pod.address.clone())).collect());
    }

    pub fn stop_pod(&self, at: usize, slot: &mut Option<PodProcess>, signal: Signal) {
        self.point_front(at, None);
        if let Some(mut pod) = slot.take() {
            if !pod.is_dead() {
                pod.signal(signal);
            }
            pod.gone(Duration::from_secs(5));
        }
    }

    pub fn start_manager(&self, at: usize, slot: &mut Option<ManagerProcess>) {
        let manager = format!("manager-{at}");
        self.notes.add(What::Manager { manager: manager.clone(), runner: runner(at) });
        let url = format!("http://{}", self.front.address);
        let (notes, clock) = (self.notes_of(at), &self.manager_clocks[at]);
        *slot = Some(ManagerProcess::start(&url, &token(at), &manager, SLOTS, &notes, clock));
    }

    pub fn kill_manager(&self, slot: &mut Option<ManagerProcess>) {
        if let Some(manager) = slot.take() {
            let name = manager.manager.clone();
            manager.kill();
            self.notes.add(What::Killed { manager: name });
        }
    }

    fn notes_of(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("notes-{at}"))
    }

    /// All faults are over: waits until every job has ended, ends everything, and tells what happened.
    pub async fn end(self: Arc<Self>) -> (Verdict, Vec<Record>) {
        let rig = Arc::into_inner(self).expect("the faults are over");
        spawn_blocking(move || rig.end_all()).await.expect("no panic")
    }

    fn end_all(mut self) -> (Verdict, Vec<Record>) {
        self.servers.lock().expect("no panic").until_sound();
        pause(SETTLES_IN);
        self.notes.add(What::Calm);
        pause(CALM);
        self.rails.stop_publishing();
        let limit = Instant::now() + ENDS_IN;
        while Instant::now() < limit {
            if self.rails.knows_all_ends() && self.is_idle() {
                break;
            }
            pause(Duration::from_millis(100));
        }
        let left = self.left_behind();
        self.note_levels(true);
        for slot in &self.managers {
            self.kill_manager(&mut slot.lock().expect("no panic"));
        }
        self.rails.end();
        for key in left {
            self.notes.add(What::Left { key });
        }
        let mut history = self.notes.all();
        let written_at = now(); // in the stream's order, after all else
        for record in history.iter_mut().filter(|record| matches!(record.what, What::Written(_))) {
            record.at = written_at;
        }
        let files = (0..MANAGERS).map(|at| self.dir.path().join(format!("notes-{at}")));
        history.extend(files.flat_map(|file| read_notes(&file)));
        (Verdict::of(&history), history)
    }

    /// Notes what the pods take.
    pub fn note_levels(&self, at_end: bool) {
        for slot in &self.pods {
            let mut slot = slot.lock().expect("no panic");
            let (memory, descriptors) = slot.as_mut().expect("it is up").takes();
            self.notes.add(What::Level { at_end, memory, descriptors });
        }
    }

    fn is_idle(&self) -> bool {
        self.left_behind().is_empty()
    }

    /// Keys that nobody needs any more once all has ended, and what is left in the inbox.
    fn left_behind(&self) -> Vec<String> {
        let look = || -> redis::RedisResult<Vec<String>> {
            let directory = &self.orders.directory;
            let mut connection = directory.connect(&self.orders.events)?;
            let keys: Vec<String> = redis::cmd("KEYS").arg("{jr:0}:*").query(&mut connection)?;
            let inbox = redis::cmd("XLEN").arg(&self.orders.inbox).query(&mut directory.connect(&self.orders.inbox)?);
            let inbox: u64 = inbox?;
            let of_jobs = |key: &String| {
                let name = key.trim_start_matches("{jr:0}:");
                OF_JOBS.iter().any(|prefix| name.starts_with(prefix)) || OF_JOBS_WHOLE.contains(&name)
            };
            let inbox = (inbox > 0).then(|| format!("{inbox} entries of the inbox"));
            Ok(keys.into_iter().filter(of_jobs).chain(inbox).collect())
        };
        look().unwrap_or_else(|error| vec![format!("nobody knows: {error}")])
    }
}

fn token(at: usize) -> String {
    format!("token-{at}")
}

/// Six kinds of runners; each kind of job has one at least that may run it.
fn runner(at: usize) -> Value {
    let groups: Vec<u64> = (1..=GROUPS_WITH_RUNNERS).collect();
    let (scope, tags, run_untagged, protected_only) = match at {
        0 => (json!({"type": "instance"}), json!([]), true, false),
        1 => (json!({"type": "instance"}), json!(["red"]), true, false),
        2 => (json!({"type": "instance"}), json!(["red", "blue"]), false, false),
        3 => (json!({"type": "group", "group_ids": groups}), json!(["red", "blue"]), true, false),
        4 => (json!({"type": "instance"}), json!(["red", "blue"]), true, true),
        _ => (json!({"type": "project", "project_ids": [10, 21, 32]}), json!([]), true, false),
    };
    let mut runner = json!({
        "id": at + 1, "token_sha256": hex::encode(Sha256::digest(token(at))), "tags": tags, "run_untagged": run_untagged,
        "protected_only": protected_only, "paused": false,
    });
    runner.as_object_mut().expect("an object").extend(scope.as_object().expect("an object").clone());
    runner
}
