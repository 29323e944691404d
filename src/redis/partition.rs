//! One partition: the typed face of its scripts.
//!
//! Every method is one script call and may be repeated with the same arguments (invariant 6): after a timeout or a
//! lost connection the caller sends it again. `lua/<name>.lua` says what each does.

mod acknowledge;
mod jobs;
mod leases;
mod mail;
mod online;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::pauses::{Over, over_of};
use super::scripts::{self, Outcome};
use super::{Arg, Entry, Reader, Redis, RedisError, Reply, Script};
use crate::contract::EventType;
use crate::job::{JobId, Lease, Name, PendingJob, ProjectId, Tenant};
use crate::runner::{Lane, Scope};
use crate::tags::{Capability, Fingerprint};
pub use jobs::{FannedOut, HandOver, Manager, Offer, PassedOver, Taken, TakenJob, Terms};
use jobs::{handed_of, push_job, push_offer, push_terms, taken_of};
pub use leases::{Due, Empty, Expired, Heartbeat, Look, Record, Remembered, Renewed, Report, Return, Started};
use leases::{due_of, lease_arg, renew_args, renewed_of_all, started_of};
pub use mail::Mail;

/// The keys of one set of tenants, in one slot of a Redis Cluster.
#[derive(Clone)]
pub struct Partition {
    pub(super) redis: Redis,
    prefix: Arc<str>,
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
        let mut args = Vec::with_capacity(5 + slots.len() * 7 + jobs.len() * 10);
        push_terms(&mut args, pod, terms.into());
        args.push((slots.len() as u64).into());
        for HandOver { job_id, lane, rank, offer } in slots {
            args.extend([job_id.0.into(), lane.scope.to_string().into(), (*rank).into()]);
            push_offer(&mut args, offer);
        }
        for (entry_id, job) in jobs {
            push_job(&mut args, entry_id, job);
        }
        let [outcomes, changed, wakes, handed] = self.call_durably(&scripts::FAN_OUT, args).await?.into_tuple()?;
        Ok(FannedOut {
            outcomes: outcomes_of(outcomes)?,
            changed: changed.into_array()?.iter().map(parse).collect::<Result<_, _>>()?,
            wakes: lanes_of(wakes)?,
            handed: handed.into_array()?.into_iter().map(handed_of).collect::<Result<_, _>>()?,
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
        let mut args = Vec::with_capacity(6 + lanes.len() + offers.len() * 4);
        push_terms(&mut args, pod, terms.into());
        args.extend([rank.into(), (lanes.len() as u64).into()]);
        args.extend(lanes.iter().map(|lane| Arg::from(lane.to_string())));
        for offer in offers {
            push_offer(&mut args, offer);
        }
        taken_of(self.call_durably(&scripts::TAKE, args).await?)
    }

    /// `start`: records accepted jobs as running; answers the record of each that does.
    pub async fn start(&self, lease_time: Duration, jobs: &[Lease]) -> Result<Vec<Started>, RedisError> {
        let mut args = vec![ms(lease_time)];
        for Lease { job_id, lease_id } in jobs {
            args.extend([job_id.0.into(), lease_id.to_string().into()]);
        }
        self.call_durably(&scripts::START, args).await?.into_array()?.into_iter().map(started_of).collect()
    }

    /// `renew`: keeps held jobs alive, on this pod from now on. A beat that is lost is one beat: no replica needs to have it.
    pub async fn renew(&self, pod: &Name, lease_time: Duration, leases: &[Lease]) -> Result<Vec<Renewed>, RedisError> {
        let renewed = renewed_of_all(self.call(&scripts::RENEW, renew_args(pod, lease_time, false, leases)).await?)?;
        Ok(renewed.into_iter().map(|(renewed, _)| renewed).collect())
    }

    /// `renew` for jobs that their runner goes on with by this answer, as it would by `Start`: replicas must have the start. Also
    /// answers their records.
    pub async fn resume_running(
        &self,
        pod: &Name,
        lease_time: Duration,
        leases: &[Lease],
    ) -> Result<Vec<(Renewed, Record)>, RedisError> {
        renewed_of_all(self.call_durably(&scripts::RENEW, renew_args(pod, lease_time, true, leases)).await?)
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
        outcomes_of(self.call_durably(&scripts::FINISH, args).await?)
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
        Outcome::try_from(&self.call_durably(&scripts::CANCEL, args).await?)
    }

    /// `due`: live leases whose deadline is past, nearer than `ahead` or further than `longest`, which is more than any is set ahead;
    /// at most `limit` of them, read `page` a call.
    pub async fn due(&self, ahead: Duration, longest: Duration, page: u32, limit: usize) -> Result<Look, RedisError> {
        let mut look = Look { due: Vec::new(), live: 0, primary: String::new() };
        let (mut from, mut skip) = ("-inf".to_owned(), 0);
        while !from.is_empty() && look.due.len() < limit {
            let args = vec![ms(ahead), ms(longest), from.into(), skip.into(), page.into()];
            let [due, next, seen, live, primary] = self.call(&scripts::DUE, args).await?.into_tuple()?;
            for due in due.into_array()? {
                look.due.push(due_of(due)?);
            }
            (from, skip, look.live) = (next.as_str()?.to_owned(), seen.as_u64()?, live.as_u64()?);
            let primary = primary.as_str()?;
            if look.primary != primary {
                // Of two in one look neither is the one of the look before.
                look.primary.push_str(primary);
            }
        }
        Ok(look)
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

    /// `heartbeat`: this pod lives. A Redis without a name is empty: it gets the name of `empty`.
    pub async fn heartbeat(
        &self,
        pod: &Name,
        mail_read: &str,
        mail_ttl: Duration,
        empty: &Empty,
    ) -> Result<Heartbeat, RedisError> {
        let Empty { name, hold } = empty;
        let args = vec![pod.as_str().into(), mail_read.into(), ms(mail_ttl), name.into(), ms(*hold)];
        let [new, pods, instance] = self.call(&scripts::HEARTBEAT, args).await?.into_tuple()?;
        let pods = pods.into_array()?;
        let pods = pods.chunks_exact(2).map(|pair| Ok((parse(&pair[0])?, pair[1].as_str()?.to_owned())));
        Ok(Heartbeat {
            is_new: new.as_i64()? == 1,
            pods: pods.collect::<Result<_, RedisError>>()?,
            instance: instance.as_str()?.to_owned(),
        })
    }

    /// `reassert`: what runs on this pod's runners, and what ended there lately, for a Redis that has lost its data.
    pub async fn reassert(
        &self,
        pod: &Name,
        lease_time: Duration,
        ended_ttl: Duration,
        jobs: &[Remembered],
    ) -> Result<Vec<Outcome>, RedisError> {
        let mut args = vec![pod.as_str().into(), ms(lease_time), ms(ended_ttl)];
        for Remembered { job_id, record, end } in jobs {
            let (status, exit_code, failure_reason) =
                end.as_ref().map_or(("", 0, ""), |end| (end.status, end.exit_code, &*end.failure_reason));
            let record = record.0.clone();
            args.extend([
                job_id.0.into(),
                record.into(),
                status.into(),
                i64::from(exit_code).into(),
                failure_reason.into(),
            ]);
        }
        outcomes_of(self.call(&scripts::REASSERT, args).await?)
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
        Outcome::try_from(&self.call_durably(&scripts::TENANT, args).await?)
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
        Outcome::try_from(&self.call_durably(&scripts::PROJECT, args).await?)
    }

    /// Runs any partition script.
    pub(super) async fn call(&self, script: &'static Script, args: Vec<Arg>) -> Result<Reply, RedisError> {
        self.redis.call(script, self.script_keys(), args).await
    }

    /// Runs one whose answer is acted on where nobody could take it back: replicas must have what it wrote.
    async fn call_durably(&self, script: &'static Script, args: Vec<Arg>) -> Result<Reply, RedisError> {
        self.redis.call_durably(script, self.script_keys(), args, self.key("barrier").into()).await
    }

    /// The partition and its pods (`lua/lib/base.lua` says why).
    fn script_keys(&self) -> Vec<Arg> {
        vec![Arg::from(&*self.prefix), self.key("pods").into()]
    }

    /// A command that needs nothing but one of this partition's keys.
    pub(super) async fn command(&self, command: &'static str, key: &str) -> Result<Reply, RedisError> {
        self.redis.command(command, [self.key(key).into()]).await
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

fn optional(number: Option<u32>) -> Arg {
    number.map(|number| number.to_string()).unwrap_or_default().into()
}
