//! Calls of every script that writes, as values: each can be made again from the same state.

use std::time::Duration;

use job_router::job::{JobId, Lease, OfferId, PendingJob, ProjectId, RunnerId, Tenant};
use job_router::pause::{Note, Target};
use job_router::redis::{
    Empty, HandOver, LaneOrder, Manager, Offer, RedisError, Remembered, Report, Return, Runners, StuckReason, TakenJob,
    Terms, Verdict,
};
use job_router::runner::{Lane, RunnerRecord, Scope};

use crate::support::{World, name};

pub const LONG: Duration = Duration::from_secs(3600);
/// What was told within it is not told again.
const YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A call of the typed face; some make several calls of scripts, one after the other.
#[derive(Debug, Clone)]
pub enum Call {
    FanOut(Terms, Vec<(String, PendingJob)>, Vec<HandOver>),
    Take(Terms, Vec<Lane>, Vec<Offer>),
    Start(Vec<Lease>),
    Acknowledge(u64, OfferId, Option<Manager>),
    Renew(&'static str, Vec<Lease>),
    GiveBack(u32, Vec<Return>),
    Finish(Vec<Report>),
    Cancel(u64),
    Expire(Vec<(Lease, String)>),
    Bury(&'static str, Option<String>),
    Heartbeat(&'static str, String),
    Reassert(Vec<Remembered>),
    Scope(Scope),
    Opened(Scope),
    Index(Option<ProjectId>),
    Sweep(Duration, u64, Duration),
    Tenant(Tenant, u32, Option<u32>),
    Project(ProjectId, Tenant, Option<bool>, Option<u32>),
    Pause(Target, Option<u64>),
    Resume(Target),
    Configure(LaneOrder, Option<Duration>),
    LaneOrder(Option<Lane>, LaneOrder),
    Runner(RunnerRecord),
    NoRunner(u64),
    Stuck(Duration, Vec<Finding>),
    Online(&'static [(u64, &'static str)]),
    Offline(Duration),
}

/// A bucket, and why it is stuck, if it is.
pub type Finding = (String, Option<&'static str>);

/// What a call answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Each is promised to be that of the call, or that of the call again.
    pub parts: Vec<String>,
    /// Lanes in which there is work for who called.
    pub wakes: Vec<Lane>,
}

// === impl Call ===

impl Call {
    pub async fn make(&self, world: &World) -> Result<Answer, RedisError> {
        let (partition, pod) = (&world.partition, &name("pod"));
        // Newer than all that came before.
        let version = "1790000000000-0";
        let runners = Runners::new(world.redis.clone(), "{interrupted:runners}:".to_owned());
        let note = Note::default();
        let answer = match self {
            Self::FanOut(terms, jobs, slots) => {
                let answer = partition.fan_out(pod, jobs, *terms, slots).await?;
                let changed = answer.changed.iter().map(|id| format!("index {id}"));
                let handed = format!("handed {:?}", answer.handed);
                let parts = each(answer.outcomes).chain(changed).chain([handed]).collect();
                return Ok(Answer { parts, wakes: answer.wakes });
            }
            Self::Take(terms, lanes, offers) => {
                let answer = partition.take(pod, *terms, 0, lanes, offers).await?;
                let told = |job: TakenJob| format!("{:?} {} {} {:?}", job.lease, job.lane, job.attempt, job.payload);
                let parts = (0..offers.len()).map(|slot| {
                    let at = answer.slots.iter().position(|of_job| *of_job == slot);
                    at.map_or_else(|| "none".to_owned(), |at| told(answer.jobs[at].clone()))
                });
                return Ok(Answer { parts: parts.collect(), wakes: answer.again });
            }
            Self::Start(jobs) => each(partition.start(LONG, jobs).await?).collect(),
            Self::Acknowledge(id, offer, runner) => {
                one(partition.acknowledge(pod, LONG, JobId(*id), *offer, runner.as_ref()).await?)
            }
            Self::Renew(pod, leases) => each(partition.renew(&name(pod), LONG, leases).await?).collect(),
            Self::GiveBack(limit, backs) => {
                let (outcomes, wakes) = partition.give_back(pod, *limit, LONG, backs).await?;
                return Ok(Answer { parts: each(outcomes).collect(), wakes });
            }
            Self::Finish(reports) => each(partition.finish(LONG, reports).await?).collect(),
            Self::Cancel(id) => one(partition.cancel(JobId(*id), "why not", LONG, LONG).await?),
            Self::Expire(leases) => {
                let (outcomes, wakes) = partition.expire(pod, LONG, leases).await?;
                return Ok(Answer { parts: each(outcomes).collect(), wakes });
            }
            Self::Bury(pod, heartbeat) => one(partition.bury(&name(pod), heartbeat.as_deref()).await?.is_some()),
            Self::Heartbeat(pod, mail_read) => {
                let empty = Empty { name: "another".to_owned(), hold: LONG };
                let heartbeat = partition.heartbeat(&name(pod), mail_read, LONG, &empty).await?;
                vec![format!("{} pods of {}", heartbeat.pods.len(), heartbeat.instance)]
            }
            Self::Reassert(jobs) => each(partition.reassert(pod, LONG, LONG, jobs).await?).collect(),
            Self::Scope(scope) => {
                if partition.scope(*scope, false).await? {
                    return Ok(Answer { parts: one("was open"), wakes: Vec::new() });
                }
                let wakes = partition.index(pod, None).await?;
                let open = partition.scope(*scope, true).await?;
                return Ok(Answer { parts: one(open), wakes });
            }
            Self::Opened(scope) => one(partition.scope(*scope, true).await?),
            Self::Index(project) => {
                return Ok(Answer { parts: Vec::new(), wakes: partition.index(pod, *project).await? });
            }
            Self::Sweep(idle, events_max, scope_ttl) => {
                let (next, lanes, over) = partition.sweep("0", *idle, *events_max, *scope_ttl).await?;
                one(next).into_iter().chain(each(lanes)).chain(each(over)).collect()
            }
            Self::Tenant(tenant, weight, cap) => one(partition.tenant(tenant, version, *weight, *cap).await?),
            Self::Project(id, tenant, instance, cap) => {
                one(partition.project(*id, version, tenant, *instance, None, *cap).await?)
            }
            Self::Pause(target, until_ms) => one(partition.pause(target, *until_ms, &note, &note).await?),
            Self::Resume(target) => one(partition.resume(target, &note, None).await?),
            Self::Configure(group, ageing) => one(partition.configure(*group, *ageing).await.map(drop)?),
            Self::LaneOrder(lane, order) => one(partition.set_lane_order(*lane, *order).await.map(drop)?),
            Self::Runner(record) => one(runners.upsert(version, record).await?),
            Self::NoRunner(id) => one(runners.delete(version, RunnerId(*id)).await?),
            Self::Stuck(after, verdicts) => {
                let verdicts: Vec<Verdict> = verdicts.iter().map(verdict).collect();
                partition.stuck(*after, LONG, &verdicts).await?;
                Vec::new()
            }
            Self::Online(managers) => {
                let manager = |(id, system_id): &(u64, &str)| ((RunnerId(*id), name(system_id)), "{}".into());
                let managers: Vec<_> = managers.iter().map(manager).collect();
                partition.online(pod, YEARS, &managers).await?;
                Vec::new()
            }
            Self::Offline(silent) => {
                partition.offline(pod, *silent, 100).await?;
                Vec::new()
            }
        };
        Ok(Answer { parts: answer, wakes: Vec::new() })
    }

    /// The script that this is about.
    pub fn script(&self) -> &'static str {
        match self {
            Self::FanOut(..) => "fan_out",
            Self::Take(..) => "take",
            Self::Start(..) => "start",
            Self::Acknowledge(..) => "acknowledge",
            Self::Renew(..) => "renew",
            Self::GiveBack(..) => "give_back",
            Self::Finish(..) => "finish",
            Self::Cancel(..) => "cancel",
            Self::Expire(..) => "expire",
            Self::Bury(..) => "bury",
            Self::Heartbeat(..) => "heartbeat",
            Self::Reassert(..) => "reassert",
            Self::Scope(..) | Self::Opened(..) => "scope",
            Self::Index(..) => "index",
            Self::Sweep(..) => "sweep",
            Self::Tenant(..) => "tenant",
            Self::Project(..) => "project",
            Self::Pause(..) => "pause",
            Self::Resume(..) => "resume",
            Self::Configure(..) | Self::LaneOrder(..) => "policy",
            Self::Runner(..) | Self::NoRunner(..) => "runner_upsert",
            Self::Stuck(..) => "stuck",
            Self::Online(_) => "online",
            Self::Offline(_) => "offline",
        }
    }
}

fn verdict((bucket, reason): &Finding) -> Verdict {
    let stuck = |hash: &str| StuckReason { hash: hash.to_owned(), members: r#","reason":"paused""#.to_owned() };
    Verdict { bucket: bucket.clone(), stuck: reason.map(stuck) }
}

fn each<T: std::fmt::Debug>(all: Vec<T>) -> impl Iterator<Item = String> {
    all.into_iter().map(|one| format!("{one:?}"))
}

fn one(answer: impl std::fmt::Debug) -> Vec<String> {
    vec![format!("{answer:?}")]
}
