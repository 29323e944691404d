//! One partition: the typed face of its scripts.
//!
//! Every method is one script call and may be repeated with the same arguments (invariant 6): after a timeout or a
//! lost connection the caller sends it again. `lua/<name>.lua` says what each does.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::pauses::{Over, over_of};
use super::scripts::{self, Outcome};
use super::{Arg, Entry, Reader, Redis, RedisError, Reply, Script};
use crate::contract::EventType;
use crate::job::{JobId, Lease, LeaseId, Name, PendingJob, ProjectId, RunnerId, Tenant};
use crate::runner::{Lane, Scope};
use crate::tags::{Capability, Fingerprint};

/// The keys of one set of tenants, in one slot of a Redis Cluster.
#[derive(Clone)]
pub struct Partition {
    pub(super) redis: Redis,
    prefix: Arc<str>,
}

/// What fan-out did with a batch.
#[derive(Debug)]
pub struct FannedOut {
    /// Per job: [`Outcome::Ok`] or [`Outcome::Known`].
    pub outcomes: Vec<Outcome>,
    /// Projects whose buckets must be indexed anew.
    pub changed: Vec<ProjectId>,
    /// Lanes in which this pod waited and now has work.
    pub wakes: Vec<Lane>,
    /// Leases of the slots whose jobs were handed over at once.
    pub handed: Vec<LeaseId>,
}

/// On what terms jobs are assigned.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// How long a runner has to accept.
    pub accept_timeout: Duration,
    /// How long it is remembered which manager ran jobs with an affinity key; zero: not at all.
    pub affinity_memory: Duration,
    /// How long a job waits for that manager, from when it was queued.
    pub affinity_wait: Duration,
}

/// Without affinity.
impl From<Duration> for Terms {
    fn from(accept_timeout: Duration) -> Self {
        Self { accept_timeout, affinity_memory: Duration::ZERO, affinity_wait: Duration::ZERO }
    }
}

/// What a take answers.
#[derive(Debug)]
pub struct Taken {
    /// The jobs, in the order of the slots.
    pub jobs: Vec<TakenJob>,
    /// Lanes to ask again.
    pub again: Vec<Lane>,
    /// Jobs that were passed over.
    pub held: Vec<PassedOver>,
}

/// A job that was passed over, as it waits for the manager that had its affinity key last.
#[derive(Debug)]
pub struct PassedOver {
    /// Where it stands.
    pub lane: Lane,
    /// For whom.
    pub likes: Manager,
    /// For how long at most.
    pub at_most: Duration,
}

/// One process of a runner: which runner, and its system id.
pub type Manager = (RunnerId, Name);

/// A free slot that comes along with a job that is to be queued.
#[derive(Debug, Clone)]
pub struct HandOver {
    /// The job.
    pub job_id: JobId,
    /// One of its lanes, in which the slot's runner may take it.
    pub lane: Lane,
    /// The rank of the slot's class; see [`Partition::take`].
    pub rank: i64,
    /// The slot.
    pub offer: Offer,
}

/// A free slot to take a job for, under a lease id made for it.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The new lease.
    pub lease_id: LeaseId,
    /// Whose slot.
    pub runner_id: RunnerId,
    /// Which manager's slot.
    pub system_id: Name,
}

/// A job that was moved to a runner of this pod.
#[derive(Debug, Clone)]
pub struct TakenJob {
    /// The job under its new lease.
    pub lease: Lease,
    /// The lane it was taken from.
    pub lane: Lane,
    /// Which take this is, from 1.
    pub attempt: u32,
    /// The longest it may run.
    pub timeout: Duration,
    /// When Rails queued it, in Unix ms.
    pub queued_at_ms: u64,
    /// When Rails published it, in Unix ms of Redis' clock.
    pub published_at_ms: u64,
    /// Jobs with the same key like the same runner.
    pub affinity: String,
    /// W3C trace context; empty if none.
    pub traceparent: String,
    /// What the runner gets.
    pub payload: Bytes,
}

/// A lease's state after [`Partition::renew`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewed {
    /// Still the runner's.
    Running,
    /// Still the runner's, which should stop it.
    Canceling {
        /// How long it still has.
        grace: Duration,
        /// Why, for people.
        reason: String,
    },
    /// Not the runner's any more.
    NotYours,
}

/// How a runner's job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The job.
    pub job_id: JobId,
    /// Its lease; none when Rails says so.
    pub lease_id: Option<LeaseId>,
    /// `success`, `failed` or `canceled`.
    pub status: &'static str,
    /// Exit code of the failing step.
    pub exit_code: i32,
    /// A reason word, or empty.
    pub failure_reason: String,
}

/// A job to give back, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Return {
    /// The job under the lease that ends.
    pub lease: Lease,
    /// A reason word.
    pub reason: &'static str,
    /// Whether it counts towards `undeliverable`.
    pub failed_delivery: bool,
}

/// A live lease whose deadline is near, as seen now.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Due {
    /// The job under its lease.
    pub lease: Lease,
    /// `assigned`, `running` or `canceling`.
    pub state: String,
    /// Its beat; empty before the first.
    pub beat: String,
    /// Milliseconds past its deadline; negative: still to go.
    pub overdue_ms: i64,
}

/// What became of a lease that was to expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// Queued again, at its old place.
    Requeued,
    /// Failed with `runner_lost`.
    Failed,
    /// It was being canceled, and is now.
    Canceled,
    /// Nothing: it ended or moved on before.
    Not,
}

/// The first line of an order: what the pod that hands the job out needs to know. The payload follows.
#[derive(Serialize, Deserialize)]
struct OrderHead<'a> {
    timeout_s: u32,
    queued_at_ms: u64,
    published_at_ms: u64,
    #[serde(borrow)]
    affinity: Cow<'a, str>,
    #[serde(borrow)]
    traceparent: Cow<'a, str>,
}

/// A letter from a script to one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mail {
    /// The pod waited in this lane, and now there is work; for this manager above all.
    Wake(Lane, Option<Manager>),
    /// There is a new lane.
    LaneOpened(Lane, Capability),
    /// There may be work in any lane.
    Resync,
    /// A running job of this pod is to stop.
    Cancel {
        /// The job.
        lease: Lease,
        /// How long its runner has.
        grace: Duration,
        /// Why, for people.
        reason: String,
    },
    /// A lease of this pod has ended.
    Revoke {
        /// The job and its former lease.
        lease: Lease,
        /// A reason word.
        reason: String,
    },
}

// === impl TakenJob ===

impl TakenJob {
    /// A job that was handed over as it was queued, with the id of its inbox entry.
    pub fn handed_over(entry_id: &str, job: &PendingJob, lane: Lane, lease_id: LeaseId) -> Self {
        let lease = Lease { job_id: job.id, lease_id };
        let payload = Bytes::copy_from_slice(job.payload.get().as_bytes());
        Self::new(lease, lane, 1, head_of(entry_id, job), payload)
    }

    fn new(lease: Lease, lane: Lane, attempt: u32, head: OrderHead<'_>, payload: Bytes) -> Self {
        Self {
            lease,
            lane,
            attempt,
            timeout: Duration::from_secs(head.timeout_s.into()),
            queued_at_ms: head.queued_at_ms,
            published_at_ms: head.published_at_ms,
            affinity: head.affinity.into_owned(),
            traceparent: head.traceparent.into_owned(),
            payload,
        }
    }
}

// === impl Mail ===

impl Mail {
    fn of(entry: &Entry) -> Option<Self> {
        let text = |name: &str| std::str::from_utf8(entry.field(name)?).ok();
        let lease = || Some(Lease { job_id: text("job")?.parse().ok()?, lease_id: text("lease")?.parse().ok()? });
        match text("type")? {
            "wake" => {
                let manager = |text: &str| {
                    let (runner_id, system_id) = text.split_once(' ')?;
                    Some((runner_id.parse().ok()?, system_id.parse().ok()?))
                };
                Some(Self::Wake(text("lane")?.parse().ok()?, text("likes").and_then(manager)))
            }
            "lane" => {
                let capability = serde_json::from_str(text("capability")?).ok()?;
                Some(Self::LaneOpened(text("lane")?.parse().ok()?, capability))
            }
            "resync" => Some(Self::Resync),
            "cancel" => Some(Self::Cancel {
                lease: lease()?,
                grace: Duration::from_millis(text("grace_ms")?.parse().ok()?),
                reason: serde_json::from_str(text("reason")?).ok()?,
            }),
            "revoke" => Some(Self::Revoke { lease: lease()?, reason: text("reason")?.to_owned() }),
            _ => None,
        }
    }
}

// === impl Partition ===

impl Partition {
    /// The partition whose keys begin with `prefix` (`{jr:<p>}:`).
    pub fn new(redis: Redis, prefix: &str) -> Self {
        Self { redis, prefix: prefix.into() }
    }

    /// A key of this partition.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// `fan_out`: queues jobs, each with the id of its inbox entry; or hands them to the slots that come along, where nobody
    /// stands before them.
    pub async fn fan_out(
        &self,
        pod: &Name,
        jobs: &[(String, PendingJob)],
        terms: impl Into<Terms>,
        slots: &[HandOver],
    ) -> Result<FannedOut, RedisError> {
        let mut args = Vec::with_capacity(5 + slots.len() * 6 + jobs.len() * 10);
        push_terms(&mut args, pod, terms.into());
        args.push((slots.len() as u64).into());
        for HandOver { job_id, lane, rank, offer } in slots {
            args.extend([job_id.0.into(), lane.scope.to_string().into(), (*rank).into()]);
            push_offer(&mut args, offer);
        }
        for (entry_id, job) in jobs {
            push_job(&mut args, entry_id, job);
        }
        let [outcomes, changed, wakes, handed] = self.call(&scripts::FAN_OUT, args).await?.into_tuple()?;
        Ok(FannedOut {
            outcomes: outcomes_of(outcomes)?,
            changed: changed.into_array()?.iter().map(parse).collect::<Result<_, _>>()?,
            wakes: lanes_of(wakes)?,
            handed: handed.into_array()?.iter().map(parse).collect::<Result<_, _>>()?,
        })
    }

    /// `take`: takes jobs of these lanes for these slots; with no slots, passes a wake on. A lane in which a pod of a
    /// lower `rank` waits is left to that one.
    pub async fn take(
        &self,
        pod: &Name,
        terms: impl Into<Terms>,
        rank: i64,
        lanes: &[Lane],
        offers: &[Offer],
    ) -> Result<Taken, RedisError> {
        let mut args = Vec::with_capacity(6 + lanes.len() + offers.len() * 3);
        push_terms(&mut args, pod, terms.into());
        args.extend([rank.into(), (lanes.len() as u64).into()]);
        args.extend(lanes.iter().map(|lane| Arg::from(lane.to_string())));
        for offer in offers {
            push_offer(&mut args, offer);
        }
        let [jobs, again, held] = self.call(&scripts::TAKE, args).await?.into_tuple()?;
        Ok(Taken {
            jobs: jobs.into_array()?.into_iter().map(taken_of).collect::<Result<_, _>>()?,
            again: lanes_of(again)?,
            held: held.into_array()?.into_iter().map(held_of).collect::<Result<_, _>>()?,
        })
    }

    /// `start`: records accepted jobs as running.
    pub async fn start(
        &self,
        lease_time: Duration,
        jobs: &[(JobId, Option<LeaseId>)],
    ) -> Result<Vec<Outcome>, RedisError> {
        let mut args = vec![ms(lease_time)];
        for (job_id, lease_id) in jobs {
            args.extend([job_id.0.into(), lease_arg(*lease_id)]);
        }
        outcomes_of(self.call(&scripts::START, args).await?)
    }

    /// `renew`: keeps held jobs alive, on this pod from now on.
    pub async fn renew(&self, pod: &Name, lease_time: Duration, leases: &[Lease]) -> Result<Vec<Renewed>, RedisError> {
        let mut args = vec![pod.as_str().into(), ms(lease_time)];
        for lease in leases {
            args.extend([lease.job_id.0.into(), lease.lease_id.to_string().into()]);
        }
        self.call(&scripts::RENEW, args).await?.into_array()?.into_iter().map(renewed_of).collect()
    }

    /// `give_back`: returns assigned jobs to their places. Also answers the lanes in which this pod waited.
    pub async fn give_back(
        &self,
        pod: &Name,
        limit: u32,
        ended_ttl: Duration,
        jobs: &[Return],
    ) -> Result<(Vec<Outcome>, Vec<Lane>), RedisError> {
        let mut args = vec![pod.as_str().into(), limit.into(), ms(ended_ttl)];
        for job in jobs {
            args.extend([
                job.lease.job_id.0.into(),
                job.lease.lease_id.to_string().into(),
                job.reason.into(),
                u64::from(job.failed_delivery).into(),
            ]);
        }
        let [outcomes, wakes] = self.call(&scripts::GIVE_BACK, args).await?.into_tuple()?;
        Ok((outcomes_of(outcomes)?, lanes_of(wakes)?))
    }

    /// `finish`: records ends.
    pub async fn finish(&self, ended_ttl: Duration, reports: &[Report]) -> Result<Vec<Outcome>, RedisError> {
        let mut args = vec![ms(ended_ttl)];
        for report in reports {
            args.extend([
                report.job_id.0.into(),
                lease_arg(report.lease_id),
                report.status.into(),
                i64::from(report.exit_code).into(),
                report.failure_reason.as_str().into(),
            ]);
        }
        outcomes_of(self.call(&scripts::FINISH, args).await?)
    }

    /// `cancel`: cancels a job; [`Outcome::Gone`] when it had ended.
    pub async fn cancel(
        &self,
        job_id: JobId,
        reason: &str,
        grace: Duration,
        ended_ttl: Duration,
    ) -> Result<Outcome, RedisError> {
        let reason = serde_json::to_string(reason).expect("a string is JSON");
        let args = vec![job_id.0.into(), reason.into(), ms(grace), ms(ended_ttl)];
        Outcome::try_from(&self.call(&scripts::CANCEL, args).await?)
    }

    /// `due`: live leases whose deadline is past or nearer than `ahead`, at most `limit` of them, read `page` a call.
    pub async fn due(&self, ahead: Duration, page: u32, limit: usize) -> Result<Vec<Due>, RedisError> {
        let mut all = Vec::new();
        let (mut from, mut skip) = ("-inf".to_owned(), 0);
        while !from.is_empty() && all.len() < limit {
            let args = vec![ms(ahead), from.into(), skip.into(), page.into()];
            let [due, next, seen] = self.call(&scripts::DUE, args).await?.into_tuple()?;
            for due in due.into_array()? {
                all.push(due_of(due)?);
            }
            (from, skip) = (next.as_str()?.to_owned(), seen.as_u64()?);
        }
        Ok(all)
    }

    /// `expire`: ends leases whose beat this pod has seen unchanged for a whole lease. Also answers the lanes in which
    /// this pod waited.
    pub async fn expire(
        &self,
        pod: &Name,
        ended_ttl: Duration,
        leases: &[(Lease, String)],
    ) -> Result<(Vec<Expired>, Vec<Lane>), RedisError> {
        let mut args = vec![pod.as_str().into(), ms(ended_ttl)];
        for (lease, beat) in leases {
            args.extend([lease.job_id.0.into(), lease.lease_id.to_string().into(), beat.into()]);
        }
        let [outcomes, wakes] = self.call(&scripts::EXPIRE, args).await?.into_tuple()?;
        let outcomes = outcomes.into_array()?;
        let expired = outcomes.iter().map(|outcome| {
            Ok(match outcome.as_str()? {
                "requeued" => Expired::Requeued,
                "failed" => Expired::Failed,
                "canceled" => Expired::Canceled,
                _ => Expired::Not,
            })
        });
        Ok((expired.collect::<Result<_, RedisError>>()?, lanes_of(wakes)?))
    }

    /// `heartbeat`: this pod lives. Answers whether it was not known, and all pods with their last heartbeats.
    pub async fn heartbeat(
        &self,
        pod: &Name,
        mail_read: &str,
        mail_ttl: Duration,
    ) -> Result<(bool, Vec<(Name, String)>), RedisError> {
        let args = vec![pod.as_str().into(), mail_read.into(), ms(mail_ttl)];
        let [new, pods] = self.call(&scripts::HEARTBEAT, args).await?.into_tuple()?;
        let pods = pods.into_array()?;
        let pods = pods.chunks_exact(2).map(|pair| Ok((parse(&pair[0])?, pair[1].as_str()?.to_owned())));
        Ok((new.as_i64()? == 1, pods.collect::<Result<_, RedisError>>()?))
    }

    /// `bury`: cleans up after a dead pod, or, with no heartbeat, after this one as it leaves. Answers how many jobs
    /// were given back, or `None` if the pod turned out to live.
    pub async fn bury(&self, pod: &Name, heartbeat: Option<&str>) -> Result<Option<u64>, RedisError> {
        let (mut cursor, mut given_back) = ("0".to_owned(), 0);
        loop {
            let args = vec![pod.as_str().into(), heartbeat.unwrap_or_default().into(), cursor.into()];
            let answer = self.call(&scripts::BURY, args).await?.into_array()?;
            let [next, count] = &answer[..] else { return Ok(None) };
            given_back += count.as_u64()?;
            cursor = next.as_str()?.to_owned();
            if cursor == "0" {
                return Ok(Some(given_back));
            }
        }
    }

    /// `scope`: a runner of this scope is connected. Answers whether it is open; if not, call
    /// [`index`](Self::index) and then this again with `indexed`.
    pub async fn scope(&self, scope: Scope, indexed: bool) -> Result<bool, RedisError> {
        let args = vec![scope.to_string().into(), u64::from(indexed).into()];
        Ok(self.call(&scripts::SCOPE, args).await?.as_i64()? == 1)
    }

    /// `index`: indexes all queued buckets anew, or one project's, page by page. Answers the lanes in which this pod
    /// waited.
    pub async fn index(&self, pod: &Name, project: Option<ProjectId>) -> Result<Vec<Lane>, RedisError> {
        self.index_buckets(pod.as_str(), project, None).await
    }

    /// The same for no pod, where that is '', which is woken by nothing but mail; and for one tenant's buckets.
    pub(super) async fn index_buckets(
        &self,
        pod: &str,
        project: Option<ProjectId>,
        tenant: Option<&Tenant>,
    ) -> Result<Vec<Lane>, RedisError> {
        let tenant = tenant.map(Tenant::key).unwrap_or_default();
        let (mut after, before, changed) = match project {
            None => ("-".to_owned(), "+".to_owned(), String::new()),
            Some(id) => (format!("[{id}:"), format!("({id};"), id.to_string()),
        };
        let mut wakes = Vec::new();
        loop {
            let args = vec![pod.into(), after.into(), (&before).into(), (&changed).into(), (&tenant).into()];
            let [next, lanes] = self.call(&scripts::INDEX, args).await?.into_tuple()?;
            wakes.append(&mut lanes_of(lanes)?);
            after = next.as_str()?.to_owned();
            if after.is_empty() {
                return Ok(wakes);
            }
        }
    }

    /// `sweep`: one page of lanes. Answers the next cursor (`0`: done), the lanes with work that are not paused, each with what is
    /// at its head, and on the first page the pauses whose time is over.
    pub async fn sweep(
        &self,
        cursor: &str,
        lane_idle: Duration,
        events_max: u64,
        scope_ttl: Duration,
    ) -> Result<(String, Vec<(Lane, String)>, Vec<Over>), RedisError> {
        let args = vec![cursor.into(), ms(lane_idle), events_max.into(), ms(scope_ttl)];
        let [next, lanes, heads, over] = self.call(&scripts::SWEEP, args).await?.into_tuple()?;
        let heads = heads.into_array()?;
        let heads = heads.iter().map(|head| Ok::<_, RedisError>(head.as_str()?.to_owned()));
        let stuck = lanes_of(lanes)?.into_iter().zip(heads).map(|(lane, head)| Ok((lane, head?)));
        Ok((next.as_str()?.to_owned(), stuck.collect::<Result<_, RedisError>>()?, over_of(over)?))
    }

    /// All lanes there are, each with what its jobs need.
    pub async fn lanes(&self) -> Result<Vec<(Lane, Capability)>, RedisError> {
        let lanes = self.redis.command("HKEYS", [self.key("lanes").into()]).await?.into_array()?;
        let needs = self.redis.command("HGETALL", [self.key("capabilities").into()]).await?.into_array()?;
        let needs = needs.chunks_exact(2).map(|pair| Ok((parse(&pair[0])?, capability_of(&pair[1])?)));
        let needs: HashMap<Fingerprint, Capability> = needs.collect::<Result<_, RedisError>>()?;
        let lanes = lanes.iter().map(parse::<Lane>);
        let known = lanes.filter_map(|lane| match lane {
            Ok(lane) => needs.get(&lane.fingerprint).map(|capability| Ok((lane, capability.clone()))),
            Err(error) => Some(Err(error)),
        });
        known.collect()
    }

    /// Reads this pod's mail after an entry; also answers the entry to go on from. Unknown mail, of a newer version, is
    /// passed over.
    pub async fn mail(&self, reader: &mut Reader, pod: &Name, after: &str) -> Result<(Vec<Mail>, String), RedisError> {
        let mailbox = self.key(&format!("mail:{pod}"));
        let entries = reader.read(&mailbox, after, 256, Some(super::BLOCK_MAX)).await?;
        let next = entries.last().map_or_else(|| after.to_owned(), |entry| entry.id.clone());
        Ok((entries.iter().filter_map(Mail::of).collect(), next))
    }

    /// Appends an event that no script writes, such as `message.rejected`.
    pub async fn event(&self, event_type: EventType, data: String) -> Result<(), RedisError> {
        let args = [self.key("events").into(), Arg::from("*"), "v".into(), "1".into(), "type".into()];
        let args = args.into_iter().chain([event_type.as_str().into(), "data".into(), data.into()]);
        self.redis.command("XADD", args).await.map(drop)
    }

    /// `tenant`: stores a tenant's weight and cap.
    pub async fn tenant(
        &self,
        tenant: &Tenant,
        version: &str,
        weight: u32,
        max_running: Option<u32>,
    ) -> Result<Outcome, RedisError> {
        let args = vec![tenant.key().into(), version.into(), weight.into(), optional(max_running)];
        Outcome::try_from(&self.call(&scripts::TENANT, args).await?)
    }

    /// `project`: stores a project's switches and cap. After [`Outcome::Ok`], call [`index`](Self::index) for it.
    pub async fn project(
        &self,
        id: ProjectId,
        version: &str,
        tenant: &Tenant,
        instance_runners: Option<bool>,
        group_runners: Option<bool>,
        max_running: Option<u32>,
    ) -> Result<Outcome, RedisError> {
        let args = vec![
            id.0.into(),
            version.into(),
            tenant.key().into(),
            optional(instance_runners.map(u32::from)),
            optional(group_runners.map(u32::from)),
            optional(max_running),
        ];
        Outcome::try_from(&self.call(&scripts::PROJECT, args).await?)
    }

    /// Runs any partition script: KEYS are the partition and its pods (`lua/lib/base.lua` says why).
    pub(super) async fn call(&self, script: &'static Script, args: Vec<Arg>) -> Result<Reply, RedisError> {
        let keys = vec![Arg::from(&*self.prefix), self.key("pods").into()];
        self.redis.call(script, keys, args).await
    }

    /// A command that needs nothing but one of this partition's keys.
    pub(super) async fn command(&self, command: &'static str, key: &str) -> Result<Reply, RedisError> {
        self.redis.command(command, [self.key(key).into()]).await
    }
}

fn push_terms(args: &mut Vec<Arg>, pod: &Name, terms: Terms) {
    let Terms { accept_timeout, affinity_memory, affinity_wait } = terms;
    args.extend([pod.as_str().into(), ms(accept_timeout), ms(affinity_memory), ms(affinity_wait)]);
}

fn push_offer(args: &mut Vec<Arg>, offer: &Offer) {
    args.extend([offer.lease_id.to_string().into(), offer.runner_id.0.into(), offer.system_id.as_str().into()]);
}

fn head_of<'a>(entry_id: &str, job: &'a PendingJob) -> OrderHead<'a> {
    let published_at_ms = entry_id.split('-').next().and_then(|ms| ms.parse().ok()).expect("Redis makes entry ids");
    OrderHead {
        timeout_s: job.timeout_s,
        queued_at_ms: job.queued_at_ms.unwrap_or(published_at_ms),
        published_at_ms,
        affinity: (&*job.affinity).into(),
        traceparent: (&*job.traceparent).into(),
    }
}

fn push_job(args: &mut Vec<Arg>, entry_id: &str, job: &PendingJob) {
    let namespaces: Vec<String> = job.project.namespace_ids.iter().map(u64::to_string).collect();
    let head = head_of(entry_id, job);
    let mut order = Vec::with_capacity(256 + job.payload.get().len());
    serde_json::to_writer(&mut order, &head).expect("a vector takes all");
    order.push(b'\n');
    order.extend_from_slice(job.payload.get().as_bytes());
    let (instance, group) = (u8::from(job.project.instance_runners), u8::from(job.project.group_runners));
    let facts = format!("{} {instance} {group} {}", job.tenant.key(), namespaces.join(","));
    args.extend([
        job.id.0.into(),
        entry_id.into(),
        job.project.id.0.into(),
        facts.into(),
        job.capability.fingerprint().to_string().into(),
        serde_json::to_string(&*job.capability).expect("a capability is JSON").into(),
        i64::from(job.priority.rank()).into(),
        head.queued_at_ms.into(),
        job.max_attempts.into(),
        order.into(),
    ]);
}

fn taken_of(reply: Reply) -> Result<TakenJob, RedisError> {
    let [lease_id, job_id, lane, attempt, order] = reply.into_tuple()?;
    let mut order = order.into_bytes()?;
    let unexpected = RedisError::Unexpected { wanted: "an order", got: "a string" };
    let line = order.iter().position(|byte| *byte == b'\n').ok_or(unexpected.clone())?;
    let payload = order.split_off(line + 1);
    let head: OrderHead<'_> = serde_json::from_slice(&order[..line]).map_err(|_| unexpected)?;
    let lease = Lease { job_id: parse(&job_id)?, lease_id: parse(&lease_id)? };
    Ok(TakenJob::new(lease, parse(&lane)?, attempt.as_u64()? as u32, head, payload))
}

fn held_of(reply: Reply) -> Result<PassedOver, RedisError> {
    let [lane, wait_ms, runner_id, system_id] = reply.into_tuple()?;
    Ok(PassedOver {
        lane: parse(&lane)?,
        likes: (parse(&runner_id)?, parse(&system_id)?),
        at_most: Duration::from_millis(wait_ms.as_u64()?),
    })
}

fn due_of(reply: Reply) -> Result<Due, RedisError> {
    let [job_id, lease_id, state, beat, overdue_ms] = reply.into_tuple()?;
    Ok(Due {
        lease: Lease { job_id: parse(&job_id)?, lease_id: parse(&lease_id)? },
        state: state.as_str()?.to_owned(),
        beat: beat.as_str()?.to_owned(),
        overdue_ms: overdue_ms.as_i64()?,
    })
}

fn renewed_of(reply: Reply) -> Result<Renewed, RedisError> {
    let fields = reply.into_array()?;
    let outcome = fields.first().ok_or(RedisError::Unexpected { wanted: "an outcome", got: "an empty list" })?;
    match (Outcome::try_from(outcome)?, &fields[1..]) {
        (Outcome::Ok, [state, ..]) if state.as_str()? == "running" => Ok(Renewed::Running),
        (Outcome::Ok, [_, grace_ms, reason]) => Ok(Renewed::Canceling {
            grace: Duration::from_millis(grace_ms.as_u64()?),
            reason: serde_json::from_str(reason.as_str()?).unwrap_or_default(),
        }),
        _ => Ok(Renewed::NotYours),
    }
}

pub(super) fn capability_of(reply: &Reply) -> Result<Capability, RedisError> {
    let unexpected = RedisError::Unexpected { wanted: "a capability", got: "other JSON" };
    serde_json::from_str(reply.as_str()?).map_err(|_| unexpected)
}

fn outcomes_of(reply: Reply) -> Result<Vec<Outcome>, RedisError> {
    reply.into_array()?.iter().map(Outcome::try_from).collect()
}

fn lanes_of(reply: Reply) -> Result<Vec<Lane>, RedisError> {
    reply.into_array()?.iter().map(parse).collect()
}

pub(super) fn parse<T: std::str::FromStr>(reply: &Reply) -> Result<T, RedisError> {
    // Numbers come as numbers where a script made them, as text where it passed them on.
    if let Reply::Int(number) = reply {
        return number.to_string().parse().map_err(|_| RedisError::Unexpected { wanted: "an id", got: "a number" });
    }
    reply.as_str()?.parse().map_err(|_| RedisError::Unexpected { wanted: "an id or a name", got: "other text" })
}

pub(super) fn ms(duration: Duration) -> Arg {
    Arg::from(duration.as_millis() as u64)
}

fn lease_arg(lease_id: Option<LeaseId>) -> Arg {
    lease_id.map(|id| id.to_string()).unwrap_or_default().into()
}

fn optional(number: Option<u32>) -> Arg {
    number.map(|number| number.to_string()).unwrap_or_default().into()
}
