//! Why a job is where it is: one answer, and the details behind it.
//!
//! Arrives: one look at the job in Redis, all registered runners with those of their managers that are connected, and what
//! was started lately. Leaves: an [`Explanation`], as a sentence, as lines for people, or as JSON. No I/O.
//!
//! What must stay true:
//!
//! - Runners are judged with the rule that pods match by ([`RunnerClass::missing`](crate::runner::RunnerClass::missing)).
//! - An estimate is told only where something was measured, and always as an estimate.
//! - Runners are counted and a few are named; never are all of a fleet told one by one.
//! - Nothing of a payload, a token or a token's hash is told.

mod estimate;
pub mod facts;
mod reason;
mod runners;
mod text;
mod why;

use serde::{Serialize, Serializer};

pub use estimate::Estimate;
use facts::{Count, Held, Live, Look, Pause, Roster, Running, Start};
pub use reason::{Gap, Reason, RunnerReason};
pub use runners::Group;
pub use why::{Why, why_stuck};

use crate::flow::State;
use crate::job::JobId;
use crate::runner::Scope;
use runners::Judged;

/// The answer, with what it rests on. As JSON its fields may become more, never other.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// The version of this shape.
    pub v: u8,
    /// The job.
    pub id: u64,
    /// `queued`, `assigned`, `running`, `canceling`, `ended` or `unknown`.
    pub state: &'static str,
    /// The answer.
    #[serde(flatten)]
    pub why: Why,
    /// No online runner could ever take it: somebody has to act.
    pub stuck: bool,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// How often it was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// What is known of a live job.
    #[serde(flatten)]
    pub job: Option<JobPart>,
    /// Its place in the queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// When it may go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
    /// Who may take it, by scope.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<ScopePart>,
    /// Runners of none of its scopes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<Group>,
    /// Pods that do not say which runners they have, of an older version perhaps: their runners look offline.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub silent_pods: Vec<String>,
}

/// What is known of a live job.
#[derive(Debug, Clone, Serialize)]
pub struct JobPart {
    /// How long ago Rails queued it.
    pub waited_ms: u64,
    /// How long it has been in its state.
    pub in_state_ms: u64,
    /// Who pays.
    pub tenant: String,
    /// Its tenant's share.
    pub weight: u32,
    /// Its tenant's jobs on instance runners.
    pub tenant_running: Running,
    /// Its project.
    pub project_id: u64,
    /// Its project's jobs on instance runners.
    pub project_running: Running,
    /// Its rank within its tenant.
    pub priority: i8,
    /// What it needs of a runner: tags.
    pub tags: Vec<String>,
    /// It is on a protected ref.
    pub protected: bool,
    /// What it needs of a runner: features.
    pub requires: Vec<String>,
    /// How often it was started.
    pub starts: u32,
    /// How often it may be.
    pub max_attempts: u32,
    /// Deliveries that failed.
    pub failed_deliveries: u32,
    /// Who has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<Held>,
    /// How long until its time to accept, its lease or its grace is over; negative: it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_in_ms: Option<i64>,
    /// How long ago its runner was heard of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beat_age_ms: Option<u64>,
    /// Why it was canceled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancel_reason: Option<String>,
}

/// A job's place in one of its lanes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The lane's scope.
    #[serde(serialize_with = "as_text")]
    pub scope: Scope,
    /// Tenants that go first; in a group or project lane none do.
    pub tenants_ahead: u64,
    /// Jobs that go first: of its own tenant; in a group or project lane of anybody.
    pub jobs_ahead: Count,
}

/// Who may take a job in one scope.
#[derive(Debug, Clone, Serialize)]
pub struct ScopePart {
    /// The scope.
    #[serde(serialize_with = "as_text")]
    pub scope: Scope,
    /// What holds up all of it: a pause, or a cap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked: Option<Reason>,
    /// The pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
    /// The job's place, where it stands in the scope's lane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// Tenants with queued jobs in the lane.
    pub tenants: u64,
    /// Pods that wait there with a free slot.
    pub pods_waiting: u64,
    /// Registered runners of this scope.
    pub runners: u64,
    /// The same, by how they stand to the job.
    pub groups: Vec<Group>,
}

/// How long a lease lasts: to tell from its end when it was renewed.
pub type LeaseMs = u64;

/// Explains a job. `starts` are of the last while, in any order.
pub fn explain(look: &Look, roster: &Roster, starts: &[Start], lease_ms: LeaseMs) -> Explanation {
    match look {
        Look::Unknown(lag) => bare(lag.id, "unknown", why::unknown(*lag)),
        Look::Ended { id, outcome, attempt } => Explanation {
            outcome: Some(outcome.clone()),
            attempt: Some(*attempt),
            ..bare(*id, "ended", why::ended(outcome))
        },
        Look::Live(job) if job.state == State::Queued => queued(job, roster, starts),
        Look::Live(job) => {
            let part = JobPart::of(job, lease_ms);
            let (state, why) = (job.state.word().unwrap_or("ended"), why::held(job, &part));
            Explanation { attempt: Some(job.attempt), job: Some(part), ..bare(job.id, state, why) }
        }
    }
}

fn as_text<S: Serializer>(scope: &Scope, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(scope)
}

fn bare(id: JobId, state: &'static str, why: Why) -> Explanation {
    Explanation {
        v: 1,
        id: id.0,
        state,
        why,
        stuck: false,
        outcome: None,
        attempt: None,
        job: None,
        place: None,
        estimate: None,
        scopes: Vec::new(),
        elsewhere: Vec::new(),
        silent_pods: Vec::new(),
    }
}

fn queued(job: &Live, roster: &Roster, starts: &[Start]) -> Explanation {
    let judged = runners::judge(&job.project, &job.capability, roster);
    let scopes: Vec<ScopePart> =
        Scope::of_project(&job.project).filter_map(|scope| ScopePart::of(job, scope, &judged)).collect();
    let stuck = why::stuck(&job.project, &judged, roster);
    let able = |one: &&Judged<'_>| one.gaps.is_empty() && one.runner.is_online();
    // In scopes that nothing blocks.
    let open = |one: &&Judged<'_>| scopes.iter().any(|part| part.blocked.is_none() && part.is_of(one));
    let usable: Vec<&Judged<'_>> = judged.iter().filter(able).filter(open).collect();
    let first = |part: &&ScopePart| usable.iter().any(|one| part.is_of(one));
    let place = scopes.iter().find(first).or(scopes.first()).and_then(|part| part.place.clone());
    let is_stuck = stuck.is_some();
    let why = stuck.unwrap_or_else(|| {
        let able: Vec<&Judged<'_>> = judged.iter().filter(able).collect();
        why::waiting(job, &scopes, &able, &usable, place.as_ref())
    });
    let tenants = scopes.iter().filter(|part| place.as_ref().is_some_and(|place| place.scope == part.scope));
    let tenants = tenants.map(|part| part.tenants).max().unwrap_or(0);
    let estimate = place.as_ref().and_then(|place| estimate::estimate(job.now_ms, place, tenants, &usable, starts));
    Explanation {
        stuck: is_stuck,
        attempt: Some(job.attempt),
        job: Some(JobPart::of(job, 0)),
        place,
        estimate,
        elsewhere: runners::groups(judged.iter().filter(|one| one.scopes.is_empty())),
        scopes,
        silent_pods: roster.silent_pods.iter().map(ToString::to_string).collect(),
        ..bare(job.id, "queued", why)
    }
}

// === impl Explanation ===

impl Explanation {
    /// As one line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("text and numbers are JSON")
    }

    /// For people: the answer in the first line, then what it rests on.
    pub fn to_text(&self) -> String {
        text::lines(self)
    }
}

// === impl JobPart ===

impl JobPart {
    fn of(job: &Live, lease_ms: LeaseMs) -> Self {
        let texts = |set: &crate::tags::TagSet| set.iter().map(str::to_owned).collect();
        let deadline_ms = job.held.as_ref().map(|held| held.deadline_ms);
        // A running job's deadline is a lease after its last beat.
        let renewed_ms = deadline_ms.filter(|_| job.state == State::Running).map(|due| due.saturating_sub(lease_ms));
        Self {
            waited_ms: job.now_ms.saturating_sub(job.queued_at_ms),
            in_state_ms: job.now_ms.saturating_sub(job.since_ms.unwrap_or(job.entered_ms)),
            tenant: job.tenant.name().to_owned(),
            weight: job.weight,
            tenant_running: job.tenant_running,
            project_id: job.project.id.0,
            project_running: job.project_running,
            priority: job.priority,
            tags: texts(&job.capability.tags),
            protected: job.capability.protected,
            requires: texts(&job.capability.requires),
            starts: job.starts,
            max_attempts: job.max_attempts,
            failed_deliveries: job.failed_deliveries,
            holder: job.held.clone(),
            deadline_in_ms: deadline_ms.map(|due| due as i64 - job.now_ms as i64),
            beat_age_ms: renewed_ms.map(|renewed| job.now_ms.saturating_sub(renewed)),
            cancel_reason: job.cancel_reason.clone(),
        }
    }
}

// === impl ScopePart ===

impl ScopePart {
    /// One of the job's scopes; none if no runner of it is registered and the job has no lane there.
    fn of(job: &Live, scope: Scope, judged: &[Judged<'_>]) -> Option<Self> {
        let lane = job.lanes.iter().find(|lane| lane.lane.scope == scope);
        let own: Vec<&Judged<'_>> = judged.iter().filter(|one| one.scopes.contains(&scope)).collect();
        if own.is_empty() && lane.is_none() {
            return None;
        }
        let place = lane.and_then(|lane| {
            let before = lane.buckets_ahead.map(|_| lane.ahead)?;
            Some(Place {
                scope,
                tenants_ahead: lane.tenants_ahead.unwrap_or(0),
                jobs_ahead: Count {
                    count: before.count + job.ahead.count,
                    at_least: before.at_least || job.ahead.at_least,
                },
            })
        });
        let blocked = why::block(job, scope, lane.and_then(|lane| lane.paused.as_ref()));
        let (blocked, pause) = blocked.map_or((None, None), |(reason, pause)| (Some(reason), pause.cloned()));
        Some(Self {
            scope,
            blocked,
            pause,
            place,
            tenants: lane.map_or(0, |lane| lane.tenants),
            pods_waiting: lane.map_or(0, |lane| lane.pods_waiting),
            runners: own.len() as u64,
            groups: runners::groups(own.into_iter()),
        })
    }

    fn is_of(&self, one: &Judged<'_>) -> bool {
        one.scopes.contains(&self.scope)
    }
}
