//! What an explanation is made from: one look at a job, the pauses, the runners that are registered, those that are connected,
//! and what has been started lately. All of it is read elsewhere; nothing here does I/O.

use serde::{Deserialize, Serialize};

use crate::flow::State;
use crate::job::{JobId, Name, ProjectFacts, RunnerId, Tenant};
use crate::runner::{Lane, RunnerClass, RunnerRecord};
use crate::tags::{Capability, TagSet};

/// What Redis knows of a job.
#[derive(Debug, Clone)]
pub enum Look {
    /// No partition knows it.
    Unknown(InboxLag),
    /// It ended lately.
    Ended {
        /// The job.
        id: JobId,
        /// `success`, `failed` or `canceled`.
        outcome: String,
        /// How often it was taken.
        attempt: u32,
    },
    /// It is queued, or a runner has it.
    Live(Box<Live>),
}

/// What of the inbox no pod has applied yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InboxLag {
    /// The job that is asked for.
    pub id: JobId,
    /// Entries.
    pub entries: u64,
    /// How long the oldest has been there.
    pub oldest_ms: u64,
}

/// A job that has not ended.
#[derive(Debug, Clone)]
pub struct Live {
    /// The job.
    pub id: JobId,
    /// Redis' clock at the look, in Unix ms, as all stamps here.
    pub now_ms: u64,
    /// Any but [`State::Ended`].
    pub state: State,
    /// When it entered its bucket.
    pub entered_ms: u64,
    /// When Rails queued it.
    pub queued_at_ms: u64,
    /// Since when it is in its state; of a job that was never taken unknown.
    pub since_ms: Option<u64>,
    /// How often it was taken.
    pub attempt: u32,
    /// How often it was started, and how often it may be.
    pub starts: u32,
    /// How often it may be started.
    pub max_attempts: u32,
    /// Deliveries that failed.
    pub failed_deliveries: u32,
    /// What it needs of a runner.
    pub capability: Capability,
    /// Its project.
    pub project: ProjectFacts,
    /// Its rank within its tenant.
    pub priority: i8,
    /// Its project's jobs on instance runners.
    pub project_running: Running,
    /// Who pays.
    pub tenant: Tenant,
    /// Its tenant's share.
    pub weight: u32,
    /// Its tenant's jobs on instance runners.
    pub tenant_running: Running,
    /// Who has it, unless it is queued.
    pub held: Option<Held>,
    /// The manager that had its affinity key last, unless its pod is gone.
    pub likes: Option<Likes>,
    /// Why it was canceled.
    pub cancel_reason: Option<String>,
    /// Queued jobs before it in its bucket.
    pub ahead: Count,
    /// Its lanes: those of its scopes that a runner was connected for lately.
    pub lanes: Vec<LaneLook>,
    /// Pauses that it is under, lanes apart.
    pub pauses: Pauses,
}

/// A manager that a job likes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Likes {
    /// Its runner.
    pub runner_id: u64,
    /// Which of that runner's.
    pub system_id: String,
    /// How long the job still waits for it, in ms.
    pub left_ms: u64,
}

/// Jobs that run, and how many may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Jobs that run.
    pub running: u64,
    /// The most that may at once.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_running: Option<u64>,
}

/// A number that may be a lower bound, where counting on would cost too much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The number.
    pub count: u64,
    /// There may be more.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub at_least: bool,
}

/// Who has a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The runner.
    pub runner_id: u64,
    /// Its manager.
    pub system_id: String,
    /// The pod that holds its connection.
    pub pod: String,
    /// When somebody looks whether it is still so: the time to accept, the lease, or the grace of a cancel is over.
    pub deadline_ms: u64,
}

/// One lane of a queued job.
#[derive(Debug, Clone)]
pub struct LaneLook {
    /// The lane.
    pub lane: Lane,
    /// Tenants that go first; none: its tenant does not stand there, or the lane has no tenants.
    pub tenants_ahead: Option<u64>,
    /// Tenants in the lane.
    pub tenants: u64,
    /// Buckets that go first: of its tenant, or in a group or project lane of anybody; none: its bucket does not stand there.
    pub buckets_ahead: Option<u64>,
    /// Queued jobs in these.
    pub ahead: Count,
    /// Pods that wait there with a free slot.
    pub pods_waiting: u64,
    /// It is paused.
    pub paused: Option<Pause>,
}

/// Somebody stopped work on purpose.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Why, for people.
    #[serde(default)]
    pub note: String,
    /// Who wants it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// Since when.
    #[serde(default)]
    pub since_ms: Option<u64>,
    /// Until when, if it ends by itself.
    #[serde(default)]
    pub until_ms: Option<u64>,
}

/// The pauses that a job is under.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pauses {
    /// Everything is paused.
    pub all: Option<Pause>,
    /// Its tenant.
    pub tenant: Option<Pause>,
    /// Its project.
    pub project: Option<Pause>,
}

/// All runners that are registered, by id.
#[derive(Debug, Clone, Default)]
pub struct Roster {
    /// By id.
    pub runners: Vec<KnownRunner>,
    /// Pods that do not say which runners they have: these look offline.
    pub silent_pods: Vec<Name>,
}

/// A registered runner.
#[derive(Debug, Clone)]
pub struct KnownRunner {
    /// What Rails said of it.
    pub record: RunnerRecord,
    /// Its managers that are connected; none: it is offline.
    pub managers: Vec<Manager>,
    /// What class it would be of, were it not paused: of each manager; of an offline runner one, of unknown features.
    pub(super) classes: Vec<RunnerClass>,
}

/// A connected manager, as its pod said within the last seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its features.
    #[serde(default, skip_serializing_if = "TagSet::is_empty")]
    pub features: TagSet,
    /// Its free slots.
    #[serde(default)]
    pub free: u32,
    /// It declined a job, did not accept it in time, or went away with it, and is left alone for a moment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backing_off: bool,
}

/// A connected manager of a runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manager {
    /// Its name.
    pub system_id: Name,
    /// The pod it is connected to.
    pub pod: Name,
    /// What that pod says of it.
    pub seen: Seen,
}

/// A job that was taken for a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// When.
    pub at_ms: u64,
    /// For which.
    pub runner_id: RunnerId,
}

// === impl Roster ===

impl Roster {
    /// These runners, each with those of the managers that are its own.
    pub fn new(records: Vec<RunnerRecord>, connected: impl IntoIterator<Item = (RunnerId, Manager)>) -> Self {
        let known = |record| KnownRunner { record, managers: Vec::new(), classes: Vec::new() };
        let mut runners: Vec<KnownRunner> = records.into_iter().map(known).collect();
        runners.sort_by_key(|runner| runner.record.id);
        for (id, manager) in connected {
            // One that was deleted a moment ago is on its way out.
            if let Ok(at) = runners.binary_search_by_key(&id.0, |runner| runner.record.id) {
                runners[at].managers.push(manager);
            }
        }
        runners.iter_mut().for_each(KnownRunner::classify);
        Self { runners, silent_pods: Vec::new() }
    }

    /// Whether any is connected.
    pub fn any_online(&self) -> bool {
        self.runners.iter().any(KnownRunner::is_online)
    }
}

// === impl KnownRunner ===

impl KnownRunner {
    /// Whether a manager of it is connected.
    pub fn is_online(&self) -> bool {
        !self.managers.is_empty()
    }

    fn classify(&mut self) {
        let record = RunnerRecord { paused: false, ..self.record.clone() };
        self.classes = self.managers.iter().map(|manager| record.class(&manager.seen.features)).collect();
        if self.classes.is_empty() {
            self.classes.push(record.class(&TagSet::default()));
        }
    }
}

// === impl Pause ===

impl Pause {
    /// The same of a field that is empty where nothing is paused.
    pub fn read_set(json: &str, now_ms: u64) -> Option<Self> {
        if json.is_empty() { None } else { Self::read(json, now_ms) }
    }

    /// A field of `paused`, unless it is over. One that cannot be read still is a pause.
    pub fn read(json: &str, now_ms: u64) -> Option<Self> {
        let pause: Self = serde_json::from_str(json).unwrap_or_default();
        pause.until_ms.is_none_or(|until| until > now_ms).then_some(pause)
    }
}
