//! A process: the feed loop, `concurrent` workers, and the limits of its entries.
//!
//! The loop offers each entry a worker once per `check_interval`, and waits until one is free. A worker is busy from then on until
//! the request is answered empty, or its job has ended: also while its call is held. An entry may have `limit` workers, and
//! `request_concurrency` of them asking; one asks until Rails has its acknowledgement.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client::{Client, Identity, Job, Reach};
use super::health::Health;
use super::notes::Notes;
use super::rails::{Caller, Rails};

/// How often a runner sends what its job has printed, and hears whether it shall go on.
const TRACE_EVERY: Duration = Duration::from_secs(3);

/// As in `config.toml`.
pub struct Config {
    /// The name of the manager; all entries have it.
    pub system_id: String,
    pub concurrent: usize,
    pub check_interval: Duration,
    pub entries: Vec<Entry>,
    /// It is killed when it is given a job, before it tells anybody.
    pub dies_with_a_job: bool,
}

/// A `[[runners]]`.
#[derive(Clone)]
pub struct Entry {
    pub runner_id: u64,
    pub token: String,
    /// 0: none.
    pub limit: usize,
    pub request_concurrency: usize,
}

/// A process that runs. Dropped, it is killed.
pub struct Process {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    entries: Vec<Arc<EntryState>>,
    client: Client,
    workers: Arc<Semaphore>,
    working: TaskTracker,
    stop: CancellationToken,
    killed: CancellationToken,
    rails: Arc<Rails>,
    notes: Arc<Notes>,
}

struct EntryState {
    runner_id: u64,
    identity: Identity,
    builds: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    health: Mutex<Health>,
}

// === impl Config ===

impl Config {
    /// One entry with one worker that asks five times a second.
    pub fn new(system_id: &str, entries: Vec<Entry>) -> Self {
        let check_interval = Duration::from_millis(200);
        Self { system_id: system_id.to_owned(), concurrent: 1, check_interval, entries, dies_with_a_job: false }
    }
}

// === impl Process ===

impl Process {
    /// Starts one. `admin` answers the discovery; names in the URL that it tells stand for these addresses.
    pub fn start(
        config: Config,
        admin: &str,
        names: &BTreeMap<String, Vec<SocketAddr>>,
        rails: Arc<Rails>,
        notes: Arc<Notes>,
    ) -> Self {
        let killed = CancellationToken::new();
        let reach = Reach::network(admin.to_owned(), names.clone(), killed.clone());
        Self::start_with(config, reach, killed, rails, notes)
    }

    pub(super) fn start_with(
        config: Config,
        reach: Reach,
        killed: CancellationToken,
        rails: Arc<Rails>,
        notes: Arc<Notes>,
    ) -> Self {
        let inner = Arc::new(Inner {
            entries: config.entries.iter().map(|entry| Arc::new(EntryState::new(entry))).collect(),
            client: Client::new(reach, rails.clone(), notes.clone(), &config.system_id),
            workers: Arc::new(Semaphore::new(config.concurrent)),
            working: TaskTracker::new(),
            stop: CancellationToken::new(),
            killed,
            rails,
            notes,
            config,
        });
        let feeding = inner.clone();
        inner.spawn(async move {
            let stop = feeding.stop.clone();
            stop.run_until_cancelled(feeding.feed()).await;
        });
        Self { inner }
    }

    /// As SIGQUIT does: cancels its calls, asks no more, and waits for its jobs.
    pub async fn stop(self) {
        self.inner.stop.cancel();
        self.inner.working.close();
        self.inner.working.wait().await;
    }

    pub fn is_dead(&self) -> bool {
        self.inner.killed.is_cancelled()
    }
}

/// As SIGKILL does: whatever it does ends without a word, and its sockets are closed.
impl Drop for Process {
    fn drop(&mut self) {
        self.inner.killed.cancel();
    }
}

// === impl Inner ===

impl Inner {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.working.spawn(self.killed.clone().run_until_cancelled_owned(task));
    }

    async fn feed(self: Arc<Self>) {
        let pause = self.config.check_interval / self.entries.len() as u32;
        loop {
            for entry in &self.entries {
                if entry.health().is_good(Instant::now()) {
                    let worker = self.workers.clone().acquire_owned().await.expect("it is never closed");
                    self.work(entry, worker);
                }
                sleep(pause).await;
            }
        }
    }

    /// Asks again at once, if a worker is free.
    fn requeue(self: &Arc<Self>, entry: &Arc<EntryState>) {
        if let Ok(worker) = self.workers.clone().try_acquire_owned() {
            self.work(entry, worker);
        }
    }

    fn work(self: &Arc<Self>, entry: &Arc<EntryState>, worker: OwnedSemaphorePermit) {
        let (inner, entry) = (self.clone(), entry.clone());
        self.spawn(async move {
            let stop = inner.stop.clone();
            inner.process(&entry, &stop).await;
            drop(worker);
        });
    }

    async fn process(self: &Arc<Self>, entry: &Arc<EntryState>, stop: &CancellationToken) {
        let Ok(_build) = entry.builds.try_acquire() else { return };
        let Ok(request) = entry.requests.try_acquire() else { return };
        // A stop drops the call, which resets its stream.
        let Some(asked) = stop.run_until_cancelled(self.client.request_job(&entry.identity)).await else { return };
        let Some(job) = self.heard(entry, asked) else { return };
        if self.config.dies_with_a_job {
            self.killed.cancel();
            std::future::pending::<()>().await;
        }
        if self.rails.acknowledge(job.id, &self.caller(entry, &job)).aborts() {
            return;
        }
        drop(request);
        if !stop.is_cancelled() {
            self.requeue(entry);
        }
        self.run(entry, &job).await;
    }

    fn heard(&self, entry: &EntryState, (job, healthy): (Option<Job>, bool)) -> Option<Job> {
        let stops = entry.health().mark(healthy, Instant::now());
        let mut noted = self.notes.read();
        noted.unhealthy += u64::from(stops);
        noted.received.extend(job.iter().map(|job| (job.id, Instant::now())));
        job
    }

    async fn run(&self, entry: &EntryState, job: &Job) {
        let run = self.notes.began(job.id, entry.runner_id, &self.config.system_id);
        let caller = self.caller(entry, job);
        let aborted = tokio::select! {
            () = sleep(job.runs_for()) => false,
            () = self.until_aborted(job.id, &caller) => true,
        };
        self.notes.ended(run, aborted);
        if !aborted {
            self.rails.succeed(job.id, &caller);
        }
    }

    /// Sends the trace, until Rails says that the job shall stop.
    async fn until_aborted(&self, id: u64, caller: &Caller<'_>) {
        let mut ticks = interval(TRACE_EVERY);
        ticks.tick().await; // the first is at once
        loop {
            ticks.tick().await;
            if self.rails.patch_trace(id, caller).aborts() {
                return;
            }
        }
    }

    fn caller<'a>(&'a self, entry: &EntryState, job: &'a Job) -> Caller<'a> {
        Caller { job_token: &job.token, runner_id: entry.runner_id, system_id: &self.config.system_id }
    }
}

// === impl EntryState ===

impl EntryState {
    fn new(entry: &Entry) -> Self {
        let limit = if entry.limit == 0 { Semaphore::MAX_PERMITS } else { entry.limit };
        Self {
            runner_id: entry.runner_id,
            identity: Identity { token: entry.token.clone(), last_update: Mutex::default() },
            builds: Arc::new(Semaphore::new(limit)),
            requests: Arc::new(Semaphore::new(entry.request_concurrency)),
            health: Mutex::new(Health::new(Instant::now())),
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().expect("nobody panics with it")
    }
}
