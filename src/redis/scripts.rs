//! The scripts, compiled in from `lua/`, and what they answer.

use super::{Library, RedisError, Reply, Script};

macro_rules! libraries {
    ($($name:literal)*) => {
        &[$(Library { name: $name, source: include_str!(concat!("../../lua/lib/", $name, ".lua")) },)*]
    };
}

/// The libraries in `lua/lib/`, in the order in which they build on each other.
pub(super) const LIBRARIES: &[Library] = libraries!(
    "base" "reply" "event" "score" "pause" "policy" "affinity" "wake" "version" "project" "bucket" "order" "index" "group" "count" "job"
    "assign" "look"
);

/// A script: its flags, and its body. `tests/project/tidy.rs` checks that the flags are those its header names.
macro_rules! script {
    ($name:literal, $flags:literal) => {
        Script::new($name, $flags, LIBRARIES, include_str!(concat!("../../lua/", $name, ".lua")))
    };
}

/// Puts pending jobs into their buckets.
pub static FAN_OUT: Script = script!("fan_out", "");
/// Moves jobs from their buckets to free slots.
pub static TAKE: Script = script!("take", "allow-oom");
/// Records that accepted jobs run.
pub static START: Script = script!("start", "allow-oom");
/// Records that a job runs at a runner that reports to Rails.
pub static ACKNOWLEDGE: Script = script!("acknowledge", "allow-oom");
/// Keeps held jobs alive.
pub static RENEW: Script = script!("renew", "allow-oom");
/// Returns assigned jobs to their places.
pub static GIVE_BACK: Script = script!("give_back", "allow-oom");
/// Records the end of jobs.
pub static FINISH: Script = script!("finish", "allow-oom");
/// Cancels a job.
pub static CANCEL: Script = script!("cancel", "allow-oom");
/// Ends leases that ran out.
pub static EXPIRE: Script = script!("expire", "allow-oom");
/// Lists jobs whose deadline is near.
pub static DUE: Script = script!("due", "allow-oom");
/// Says that a pod is alive.
pub static HEARTBEAT: Script = script!("heartbeat", "allow-oom");
/// Says again what runs, and what ended lately, to a Redis that has lost its data.
pub static REASSERT: Script = script!("reassert", "allow-oom");
/// Cleans up after a pod.
pub static BURY: Script = script!("bury", "allow-oom");
/// Opens a scope.
pub static SCOPE: Script = script!("scope", "");
/// Indexes a page of buckets.
pub static INDEX: Script = script!("index", "allow-oom");
/// Looks for stuck lanes, closes idle ones, trims the events.
pub static SWEEP: Script = script!("sweep", "allow-oom");
/// Stores a tenant's weight and cap.
pub static TENANT: Script = script!("tenant", "");
/// Stores a project's switches and cap.
pub static PROJECT: Script = script!("project", "");
/// Holds up a queue.
pub static PAUSE: Script = script!("pause", "allow-oom");
/// Lets it go on.
pub static RESUME: Script = script!("resume", "allow-oom");
/// Sets how it is chosen who is next.
pub static POLICY: Script = script!("policy", "allow-oom");
/// Stores a runner's record.
pub static RUNNER_UPSERT: Script = script!("runner_upsert", "");
/// Finds a runner by its token's hash.
pub static RUNNER_FIND: Script = script!("runner_find", "no-writes");

/// Reads a page of the registry.
pub static RUNNERS: Script = script!("runners", "no-writes");
/// Looks at all that decides when a job runs.
pub static EXPLAIN: Script = script!("explain", "no-writes");
/// Lists jobs that have not ended.
pub static JOBS: Script = script!("jobs", "no-writes");
/// Lists buckets with queued jobs.
pub static BUCKETS: Script = script!("buckets", "no-writes");
/// Tells of jobs that no online runner could ever take.
pub static STUCK: Script = script!("stuck", "allow-oom");
/// Says which managers of runners are connected, and tells Rails.
pub static ONLINE: Script = script!("online", "");
/// Tells Rails of managers that are not any more.
pub static OFFLINE: Script = script!("offline", "allow-oom");

/// Writes something that means nothing.
pub static BARRIER: Script = script!("barrier", "allow-oom");

/// Every script, for loading at the start and for the tests that keep headers, bodies and this list in step.
pub static ALL: [&Script; 31] = [
    &FAN_OUT,
    &TAKE,
    &START,
    &ACKNOWLEDGE,
    &RENEW,
    &GIVE_BACK,
    &FINISH,
    &CANCEL,
    &EXPIRE,
    &DUE,
    &HEARTBEAT,
    &REASSERT,
    &BURY,
    &SCOPE,
    &INDEX,
    &SWEEP,
    &TENANT,
    &PROJECT,
    &PAUSE,
    &RESUME,
    &POLICY,
    &RUNNER_UPSERT,
    &RUNNER_FIND,
    &RUNNERS,
    &EXPLAIN,
    &JOBS,
    &BUCKETS,
    &STUCK,
    &ONLINE,
    &OFFLINE,
    &BARRIER,
];

/// What a script answers for one job. The words of `lua/lib/reply.lua`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done, now or by an earlier call with the same arguments.
    Ok,
    /// No such job: it ended, or was never here.
    Gone,
    /// Another lease holds it now; nothing changed.
    Stale,
    /// The move is not legal in the job's state; nothing changed.
    Refused,
    /// The job is here already; nothing changed.
    Known,
}

// === impl Outcome ===

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 5] = [Self::Ok, Self::Gone, Self::Stale, Self::Refused, Self::Known];

    /// Its word in Lua.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Gone => "GONE",
            Self::Stale => "STALE",
            Self::Refused => "REFUSED",
            Self::Known => "KNOWN",
        }
    }
}

impl TryFrom<&Reply> for Outcome {
    type Error = RedisError;

    fn try_from(reply: &Reply) -> Result<Self, RedisError> {
        let word = reply.as_str()?;
        let found = Self::ALL.into_iter().find(|outcome| outcome.word() == word);
        found.ok_or(RedisError::Unexpected { wanted: "an outcome", got: "another word" })
    }
}
