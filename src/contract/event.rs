//! The reader's side: one entry of an event stream. Events mirror the inbox: `v 1 type <type> data <json>`.

use serde_json::{Map, Value as Json};

use super::VERSION;
use super::messages::{at_ms, read};
use super::reader::Value;
use super::rejection::{Fault, Rejection};
use crate::job::{JobId, LeaseId, Malformed, Name, RunnerId};

named!(
    /// The types of events.
    EventType,
    "must be an event type of version 1",
    {
        /// The job waits in its bucket.
        JobQueued = "job.queued",
        /// It was taken for a runner and pushed.
        JobAssigned = "job.assigned",
        /// The runner has it and was told to start.
        JobRunning = "job.running",
        /// It went back to the queue, by `reason`.
        JobRequeued = "job.requeued",
        /// Its runner ended it, with `status`.
        JobFinished = "job.finished",
        /// The router gave it up, by `failure_reason`: `runner_lost` or `undeliverable`.
        JobFailed = "job.failed",
        /// It was canceled, by `reason`.
        JobCanceled = "job.canceled",
        /// No online runner could ever take it, by `reason`.
        JobStuck = "job.stuck",
        /// A runner manager has connected.
        RunnerOnline = "runner.online",
        /// A runner manager has gone.
        RunnerOffline = "runner.offline",
        /// An operator holds up `target`, with a `note`, until `until_ms` if that is there.
        QueuePaused = "queue.paused",
        /// It goes on, by `reason`: `asked` or `over`.
        QueueResumed = "queue.resumed",
        /// The router found its Redis empty: it is new, or has lost its data. Publish all that has not ended.
        RedisEmpty = "redis.empty",
        /// An inbox entry was refused: `entry_id`, `field`, `reason`, `data_start`.
        MessageRejected = "message.rejected",
    }
);

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// What happened.
    pub event_type: EventType,
    /// The event's own id, the same each time it is told. Of a job's event: `<id>.<attempt>.<at_ms>.<word>`.
    pub event_id: String,
    /// When it happened, in Unix milliseconds by the clock of Redis.
    pub at_ms: u64,
    /// The job.
    pub id: Option<JobId>,
    /// How often the job was taken so far; 0: never.
    pub attempt: Option<u32>,
    /// The attempt's lease.
    pub lease_id: Option<LeaseId>,
    /// The runner.
    pub runner_id: Option<RunnerId>,
    /// The runner's manager.
    pub system_id: Option<Name>,
    /// The pod that holds the runner's connection.
    pub pod: Option<Name>,
    /// What this type needs beyond these, such as `reason` or `exit_code`, and what a newer router adds.
    pub rest: Map<String, Json>,
}

/// The fields of `data` that every event may have.
const COMMON: &[&str] = &["event_id", "at_ms", "id", "attempt", "lease_id", "runner_id", "system_id", "pod"];

// === impl Event ===

impl Event {
    /// Reads the field-value pairs of one entry of an event stream, in any order.
    ///
    /// Errors: the first field found wrong; a type of a newer version is refused by `type`, and a reader should
    /// pass over it.
    pub fn parse<K: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(K, V)]) -> Result<Self, Rejection> {
        read(fields, usize::MAX, |kind, data, _| {
            let event_type = kind.parse().map_err(|must: Malformed| Fault::new("type", must.0))?;
            let mut rest = Map::new();
            for (name, value) in data.rest(COMMON) {
                let json = serde_json::from_str(value.raw().get());
                let json = json.map_err(|_| data.fault("rest", "must be JSON of less than 128 levels".into()))?;
                rest.insert(name.to_owned(), json);
            }
            Ok(Self {
                event_type,
                event_id: data.required("event_id", |id| id.string(1..=255))?.into_owned(),
                at_ms: data.required("at_ms", at_ms)?,
                id: data.optional("id", Value::id)?.map(JobId),
                attempt: data.optional("attempt", |attempt| attempt.u32(0..=u32::MAX))?,
                lease_id: data.optional("lease_id", |id| id.parsed(str::parse))?,
                runner_id: data.optional("runner_id", Value::id)?.map(RunnerId),
                system_id: data.optional("system_id", |id| id.parsed(Name::new))?,
                pod: data.optional("pod", |pod| pod.parsed(Name::new))?,
                rest,
            })
        })
    }

    /// A string beyond the common fields, such as `reason`, `status` or `failure_reason`.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.rest.get(name)?.as_str()
    }

    /// The event as an entry's fields, for those who stand in for the router in a test.
    pub fn fields(&self) -> [(&'static str, String); 3] {
        let mut data = self.rest.clone();
        let mut put = |name: &str, value: Option<Json>| value.map(|value| data.insert(name.to_owned(), value));
        put("event_id", Some(self.event_id.clone().into()));
        put("at_ms", Some(self.at_ms.into()));
        put("id", self.id.map(|id| id.0.into()));
        put("attempt", self.attempt.map(Into::into));
        put("lease_id", self.lease_id.map(|id| id.to_string().into()));
        put("runner_id", self.runner_id.map(|id| id.0.into()));
        put("system_id", self.system_id.as_ref().map(|id| id.as_str().into()));
        put("pod", self.pod.as_ref().map(|pod| pod.as_str().into()));
        [("v", VERSION.to_owned()), ("type", self.event_type.to_string()), ("data", Json::Object(data).to_string())]
    }
}
