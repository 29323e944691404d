//! Reads what an explanation is made from: the job in its partition, the runners, what was started lately. Writes nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use serde::Deserialize;

use super::partition::{capability_of, parse};
use super::{Entry, Keys, Partition, Presence, Redis, RedisError, Reply, Runners, scripts};
use crate::explain::facts::{
    Count, Held, InboxLag, LaneLook, Likes, Live, Look, Pause, Pauses, Roster, Running, Start,
};
use crate::explain::{Explanation, explain};
use crate::flow::State;
use crate::job::{JobId, ProjectFacts, RunnerId, Tenant};
use crate::runner::{Lane, Scope};
use crate::tags::Capability;

/// How many events are looked at for what was started lately: a few hundred jobs.
const EVENTS_MAX: u64 = 2_000;

/// Explains jobs.
#[derive(Clone)]
pub struct Explainer {
    redis: Redis,
    keys: ExplainerKeys,
    partitions: Vec<Partition>,
    runners: Runners,
    presence: Presence,
}

/// The names and times that an explanation needs of the configuration.
#[derive(Debug, Clone)]
pub struct ExplainerKeys {
    /// The installation's keys.
    pub keys: Keys,
    /// The stream that Rails appends to.
    pub inbox_stream: String,
    /// How long a lease lasts at the pods.
    pub lease: Duration,
    /// How long a job waits for the manager that it likes.
    pub affinity_wait: Duration,
}

/// How many connected runners that the registry does not list are looked up one by one.
const UNLISTED_MAX: usize = 1_000;

/// The names and values that `explain.lua` told.
struct Told(HashMap<String, Reply>);

/// The JSON members of a job's `holder`.
#[derive(Deserialize)]
struct Holder {
    runner_id: u64,
    system_id: String,
}

// === impl Explainer ===

impl Explainer {
    /// One that reads from this Redis.
    pub fn new(redis: &Redis, keys: ExplainerKeys) -> Self {
        let prefixes = (0..keys.keys.partitions()).map(|partition| keys.keys.partition(partition));
        let prefix = keys.keys.runners();
        Self {
            partitions: prefixes.map(|prefix| Partition::new(redis.clone(), &prefix)).collect(),
            presence: Presence::new(redis.clone(), &prefix),
            runners: Runners::new(redis.clone(), prefix),
            redis: redis.clone(),
            keys,
        }
    }

    /// Explains a job. With its tenant one partition is looked at, else all until one knows it.
    ///
    /// # Errors
    ///
    /// Those of Redis; no call is repeated here.
    pub async fn explain(&self, id: JobId, tenant: Option<&Tenant>) -> Result<Explanation, RedisError> {
        let lease_ms = self.keys.lease.as_millis() as u64;
        let only = tenant.map(|tenant| self.keys.keys.partition_of(tenant));
        let asked = (0..).zip(&self.partitions).filter(|(number, _)| only.is_none_or(|only| only == *number));
        let mut now_ms = 0;
        for (_, partition) in asked {
            let (now, look) = partition.explain(id).await?;
            now_ms = now;
            let Some(mut look) = look else { continue };
            if let Look::Live(job) = &mut look
                && let Some(likes) = &mut job.likes
            {
                let until_ms = job.queued_at_ms.min(job.entered_ms) + self.keys.affinity_wait.as_millis() as u64;
                likes.left_ms = until_ms.saturating_sub(now);
            }
            if !matches!(&look, Look::Live(job) if job.state == State::Queued) {
                return Ok(explain(&look, &Roster::default(), &[], lease_ms));
            }
            let (roster, starts) = (self.roster().await?, partition.recent_starts().await?);
            return Ok(explain(&look, &roster, &starts, lease_ms));
        }
        let lag = self.inbox_lag(id, now_ms).await?;
        Ok(explain(&Look::Unknown(lag), &Roster::default(), &[], lease_ms))
    }

    /// All runners, and which of their managers are connected.
    pub async fn roster(&self) -> Result<Roster, RedisError> {
        let first = self.partitions.first().expect("there is at least one partition");
        let pods = self.presence.pods(first.key("pods")).await?;
        let (connected, silent) = self.presence.of(&pods).await?;
        // Read after: a runner is registered before it connects.
        let mut records = self.runners.all().await?;
        let known: HashSet<u64> = records.iter().map(|record| record.id).collect();
        let unlisted: BTreeSet<RunnerId> =
            connected.iter().map(|(id, _)| *id).filter(|id| !known.contains(&id.0)).collect();
        // Registered before there was a list, or deleted a moment ago.
        for id in unlisted.into_iter().take(UNLISTED_MAX) {
            records.extend(self.runners.get(id).await?);
        }
        Ok(Roster { silent_pods: silent, ..Roster::new(records, connected) })
    }

    async fn inbox_lag(&self, id: JobId, now_ms: u64) -> Result<InboxLag, RedisError> {
        let inbox = self.keys.inbox_stream.as_str();
        let entries = self.redis.command("XLEN", [inbox.into()]).await?.as_u64()?;
        let args = [inbox.into(), "-".into(), "+".into(), "COUNT".into(), 1_u32.into()];
        let oldest = self.redis.command("XRANGE", args).await?.into_entries()?.pop();
        let oldest_ms = oldest.map_or(0, |oldest| now_ms.saturating_sub(ms_of(&oldest.id)));
        Ok(InboxLag { id, entries, oldest_ms })
    }
}

// === impl Partition ===

impl Partition {
    /// `explain`: Redis' clock, and what is known of a job here, if anything is.
    pub async fn explain(&self, id: JobId) -> Result<(u64, Option<Look>), RedisError> {
        let flat = self.call(&scripts::EXPLAIN, vec![id.0.into()]).await?.into_array()?;
        let mut told = HashMap::with_capacity(flat.len() / 2);
        let mut flat = flat.into_iter();
        while let (Some(name), Some(value)) = (flat.next(), flat.next()) {
            told.insert(name.as_str()?.to_owned(), value);
        }
        let told = Told(told);
        let now_ms = told.number("now_ms")?;
        if let Some(state) = told.text("state")? {
            return Ok((now_ms, Some(Look::Live(Box::new(told.live(id, state)?)))));
        }
        let Some(ended) = told.text("ended")? else { return Ok((now_ms, None)) };
        let mut words = ended.split(' ');
        let outcome = words.next().unwrap_or_default().to_owned();
        let attempt = words.nth(1).and_then(|attempt| attempt.parse().ok()).unwrap_or(0);
        Ok((now_ms, Some(Look::Ended { id, outcome, attempt })))
    }

    /// Which jobs were taken for which runners, among the last events.
    pub async fn recent_starts(&self) -> Result<Vec<Start>, RedisError> {
        let args = [self.key("events").into(), "+".into(), "-".into(), "COUNT".into(), EVENTS_MAX.into()];
        let entries = self.redis.command("XREVRANGE", args).await?.into_entries()?;
        Ok(entries.iter().filter_map(start_of).collect())
    }
}

fn start_of(entry: &Entry) -> Option<Start> {
    #[derive(Deserialize)]
    struct Assigned {
        at_ms: u64,
        runner_id: u64,
    }
    if entry.field("type")? != "job.assigned" {
        return None;
    }
    let Assigned { at_ms, runner_id } = serde_json::from_slice(entry.field("data")?).ok()?;
    Some(Start { at_ms, runner_id: RunnerId(runner_id) })
}

fn ms_of(entry_id: &str) -> u64 {
    entry_id.split('-').next().and_then(|ms| ms.parse().ok()).unwrap_or(0)
}

/// A project's facts: `<tenant> <instance_runners> <group_runners> <namespaces joined by ','>`.
pub(super) fn project_of(id: u64, facts: &str) -> Option<ProjectFacts> {
    let mut words = facts.split(' ').skip(1);
    let (instance, group) = (words.next()? == "1", words.next()? == "1");
    let namespaces = words.next().unwrap_or_default().split(',').filter_map(|id| id.parse().ok());
    Some(ProjectFacts {
        id: crate::job::ProjectId(id),
        namespace_ids: namespaces.collect(),
        instance_runners: instance,
        group_runners: group,
    })
}

// === impl Told ===

impl Told {
    fn text(&self, name: &str) -> Result<Option<&str>, RedisError> {
        self.0.get(name).map(Reply::as_str).transpose()
    }

    fn maybe(&self, name: &str) -> Result<Option<u64>, RedisError> {
        self.0.get(name).map(Reply::as_u64).transpose()
    }

    fn number(&self, name: &str) -> Result<u64, RedisError> {
        Ok(self.maybe(name)?.unwrap_or(0))
    }

    fn pause(&self, name: &str, now_ms: u64) -> Result<Option<Pause>, RedisError> {
        Ok(self.text(name)?.and_then(|json| Pause::read(json, now_ms)))
    }

    fn live(&self, id: JobId, state: &str) -> Result<Live, RedisError> {
        let states = [State::Queued, State::Assigned, State::Running, State::Canceling];
        let unexpected = |wanted| RedisError::Unexpected { wanted, got: "other text" };
        let state = states.into_iter().find(|one| one.word() == Some(state)).ok_or(unexpected("a job's state"))?;
        let now_ms = self.number("now_ms")?;
        let facts = self.text("facts")?.unwrap_or_default();
        let project = project_of(self.number("project")?, facts).ok_or(unexpected("a project's facts"))?;
        let capability = self.0.get("capability").map_or_else(|| Ok(Capability::default()), capability_of)?;
        let fingerprint = capability.fingerprint();
        let entered_ms = ms_of(self.text("entry")?.unwrap_or_default());
        let lanes = self.0.get("lanes").cloned().map_or_else(|| Ok(Vec::new()), Reply::into_array)?;
        let lane = |reply| lane_of(reply, now_ms, |scope| Lane { scope, fingerprint });
        let tenant = self.text("tenant")?.unwrap_or_default();
        Ok(Live {
            id,
            now_ms,
            state,
            entered_ms,
            queued_at_ms: self.maybe("queued_at_ms")?.unwrap_or(entered_ms),
            since_ms: self.maybe("since_ms")?,
            attempt: self.number("attempt")? as u32,
            starts: self.number("starts")? as u32,
            max_attempts: self.maybe("max_attempts")?.unwrap_or(1) as u32,
            failed_deliveries: self.number("failed_deliveries")? as u32,
            capability,
            project,
            priority: self.0.get("priority").map_or(Ok(0), Reply::as_i64)? as i8,
            project_running: Running {
                running: self.number("project_running")?,
                max_running: self.maybe("project_cap")?,
            },
            tenant: Tenant::from_key(tenant).map_err(|_| unexpected("a tenant"))?,
            weight: self.maybe("weight")?.unwrap_or(1) as u32,
            tenant_running: Running { running: self.number("tenant_running")?, max_running: self.maybe("tenant_cap")? },
            held: self.held(state)?,
            likes: self.likes()?,
            cancel_reason: self.text("cancel_reason")?.and_then(|json| serde_json::from_str(json).ok()),
            ahead: Count { count: self.number("ahead")?, at_least: self.number("ahead_at_least")? == 1 },
            lanes: lanes.into_iter().map(lane).collect::<Result<_, _>>()?,
            pauses: Pauses {
                all: self.pause("paused_all", now_ms)?,
                tenant: self.pause("paused_tenant", now_ms)?,
                project: self.pause("paused_project", now_ms)?,
            },
        })
    }

    fn likes(&self) -> Result<Option<Likes>, RedisError> {
        let words = self.text("likes")?.and_then(|likes| likes.split_once(' '));
        Ok(words.and_then(|(runner_id, system_id)| {
            Some(Likes { runner_id: runner_id.parse().ok()?, system_id: system_id.to_owned(), left_ms: 0 })
        }))
    }

    fn held(&self, state: State) -> Result<Option<Held>, RedisError> {
        // JSON members, each with a comma before it.
        let Some(members) = self.text("holder")?.and_then(|members| members.strip_prefix(',')) else { return Ok(None) };
        if state == State::Queued {
            return Ok(None);
        }
        let unexpected = RedisError::Unexpected { wanted: "who holds a job", got: "other text" };
        let Holder { runner_id, system_id } =
            serde_json::from_str(&format!("{{{members}}}")).map_err(|_| unexpected)?;
        let pod = self.text("pod")?.unwrap_or_default().to_owned();
        Ok(Some(Held { runner_id, system_id, pod, deadline_ms: self.number("deadline_ms")? }))
    }
}

fn lane_of(reply: Reply, now_ms: u64, lane: impl Fn(Scope) -> Lane) -> Result<LaneLook, RedisError> {
    let [scope, tenants_ahead, tenants, buckets_ahead, _buckets, jobs, first_only, pods_waiting, pause] =
        reply.into_tuple()?;
    // '' is: not there.
    let rank = |reply: &Reply| match reply {
        Reply::Bytes(text) if text.is_empty() => Ok(None),
        rank => rank.as_u64().map(Some),
    };
    Ok(LaneLook {
        lane: lane(parse(&scope)?),
        tenants_ahead: rank(&tenants_ahead)?,
        tenants: tenants.as_u64()?,
        buckets_ahead: rank(&buckets_ahead)?,
        ahead: Count { count: jobs.as_u64()?, at_least: first_only.as_i64()? == 1 },
        pods_waiting: pods_waiting.as_u64()?,
        paused: Pause::read_set(pause.as_str()?, now_ms),
    })
}
