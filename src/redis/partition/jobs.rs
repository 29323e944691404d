//! Jobs that are queued, handed over and taken: what scripts are told of them, and what they answer.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Arg, Outcome, RedisError, Reply, lanes_of, ms, parse};
use crate::job::{JobId, Lease, Name, OfferId, PendingJob, ProjectId, RunnerId};
use crate::runner::Lane;

/// What fan-out did with a batch.
#[derive(Debug)]
pub struct FannedOut {
    /// Per job: [`Outcome::Ok`] or [`Outcome::Known`].
    pub outcomes: Vec<Outcome>,
    /// Projects whose buckets must be indexed anew.
    pub changed: Vec<ProjectId>,
    /// Lanes in which this pod waited and now has work.
    pub wakes: Vec<Lane>,
    /// Jobs that were handed over to their slots at once.
    pub handed: Vec<Lease>,
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
    /// For which of the slots offered each is, from 0.
    pub slots: Vec<usize>,
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

/// A free slot to take a job for.
#[derive(Debug, Clone)]
pub struct Offer {
    /// This offer; the same again when the call is repeated.
    pub id: OfferId,
    /// Whose slot.
    pub runner_id: RunnerId,
    /// Which manager's slot.
    pub system_id: Name,
    /// How long its runner has to accept, where that is not what the terms say.
    pub accept_timeout: Option<Duration>,
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

// === impl TakenJob ===

impl TakenJob {
    /// A job that was handed over as it was queued, with the id of its inbox entry.
    pub fn handed_over(entry_id: &str, job: &PendingJob, lane: Lane, lease: Lease) -> Self {
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

pub(super) fn push_terms(args: &mut Vec<Arg>, pod: &Name, terms: Terms) {
    let Terms { accept_timeout, affinity_memory, affinity_wait } = terms;
    args.extend([pod.as_str().into(), ms(accept_timeout), ms(affinity_memory), ms(affinity_wait)]);
}

pub(super) fn push_offer(args: &mut Vec<Arg>, offer: &Offer) {
    let accept = offer.accept_timeout.map_or_else(|| "".into(), ms);
    args.extend([offer.id.to_string().into(), offer.runner_id.0.into(), offer.system_id.as_str().into(), accept]);
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

pub(super) fn push_job(args: &mut Vec<Arg>, entry_id: &str, job: &PendingJob) {
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

pub(super) fn taken_of(reply: Reply) -> Result<Taken, RedisError> {
    let [jobs, again, held] = reply.into_tuple()?;
    let jobs: Vec<_> = jobs.into_array()?.into_iter().map(taken_job_of).collect::<Result<_, _>>()?;
    let (jobs, slots) = jobs.into_iter().unzip();
    let held = held.into_array()?.into_iter().map(held_of).collect::<Result<_, _>>()?;
    Ok(Taken { jobs, slots, again: lanes_of(again)?, held })
}

/// A job, and the slot that it is for.
fn taken_job_of(reply: Reply) -> Result<(TakenJob, usize), RedisError> {
    let [nth, lease_id, job_id, lane, attempt, order] = reply.into_tuple()?;
    let mut order = order.into_bytes()?;
    let unexpected = RedisError::Unexpected { wanted: "an order", got: "a string" };
    let line = order.iter().position(|byte| *byte == b'\n').ok_or(unexpected.clone())?;
    let payload = order.split_off(line + 1);
    let head: OrderHead<'_> = serde_json::from_slice(&order[..line]).map_err(|_| unexpected)?;
    let lease = Lease { job_id: parse(&job_id)?, lease_id: parse(&lease_id)? };
    let job = TakenJob::new(lease, parse(&lane)?, attempt.as_u64()? as u32, head, payload);
    Ok((job, nth.as_u64()? as usize - 1))
}

pub(super) fn handed_of(reply: Reply) -> Result<Lease, RedisError> {
    let [job_id, lease_id] = reply.into_tuple()?;
    Ok(Lease { job_id: parse(&job_id)?, lease_id: parse(&lease_id)? })
}

fn held_of(reply: Reply) -> Result<PassedOver, RedisError> {
    let [lane, wait_ms, runner_id, system_id] = reply.into_tuple()?;
    Ok(PassedOver {
        lane: parse(&lane)?,
        likes: (parse(&runner_id)?, parse(&system_id)?),
        at_most: Duration::from_millis(wait_ms.as_u64()?),
    })
}
