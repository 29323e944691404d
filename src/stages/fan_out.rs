//! fan_out: takes messages of Rails out of the inbox and applies each in its partition.
//!
//! In: the inbox, read by a consumer group; also what dead pods left pending. Out: queued jobs (wakes to the take stage), every
//! other change, or a `message.rejected` event; then the entry is acknowledged and deleted.
//!
//! An entry is acknowledged only after all of it is applied, or Rails was told that it never will be; and applying is
//! idempotent: a pod that dies between is one that reads again. Nothing a message holds may stop the messages around it, and
//! nobody's many messages those of others: the inbox is read ahead, and tenants take turns.

mod backlog;
mod inbox;
mod reject;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tracing::{debug, info};

use super::{Pod, Queueing, Slot, ToTake, Undone, between};
use crate::contract::{self, Limits, Message};
use crate::job::{JobId, Lease, OfferId, PendingJob, ProjectId, Tenant};
use crate::redis::scripts::Outcome;
use crate::redis::{Entry, FannedOut, HandOver, Reader, Report, TakenJob};
use crate::runner::{Lane, Scope};
use crate::telemetry::labels::InboxType;
use crate::telemetry::metrics;
use backlog::{Backlog, Batch, Left, Mark, Parsed};
pub use inbox::leave;

/// The most entries that are applied together, and jobs that one call queues: all else that Redis does waits behind it, a
/// quiet tenant's next take for one.
const BATCH: usize = 32;
/// How many such batches are on their way at once: while one is answered, Redis has the next.
const BATCHES_MAX: usize = 2;
/// Of so many jobs of a call each may be handed over to a free slot; of more, all or none.
const FEW: usize = 8;
/// How many reads of what was left out at first are on their way at once.
const READS_MAX: usize = 4;
/// How long until an entry is tried again that could neither be applied nor be told of.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Applies the inbox until the pod drains, and then what it has read of it.
pub async fn run(pod: Pod, reader: Reader, take: mpsc::Sender<ToTake>) {
    let (entries_in, entries) = mpsc::channel(1); // one read ahead of the one that is sorted
    let stage = FanOut { limits: limits(&pod), pod, take };
    tokio::join!(inbox::read_all(&stage.pod, reader, entries_in), stage.apply_all(entries));
}

fn limits(pod: &Pod) -> Limits {
    Limits { payload_max_bytes: pod.config.payload_max_bytes, data_max_bytes: pod.config.data_max_bytes }
}

struct FanOut {
    pod: Pod,
    limits: Limits,
    take: mpsc::Sender<ToTake>,
}

/// Jobs of a batch on their way to one partition.
type Pending = Vec<(String, PendingJob)>;

/// A batch that was applied.
struct Applied {
    mark: Mark,
    ids: Vec<String>,
    not_done: Result<Kept, Undone>,
}

/// Entries that are neither applied nor told to Rails as rejected: they stay pending, and are claimed and tried again.
type Kept = Vec<String>;

// === impl FanOut ===

impl FanOut {
    async fn apply_all(&self, mut entries: mpsc::Receiver<Vec<Entry>>) {
        let mut backlog = Backlog::default();
        let mut applying = FuturesUnordered::new();
        let mut acknowledging = FuturesUnordered::new();
        let mut reading_again = FuturesUnordered::new();
        let mut kept = FuturesUnordered::new();
        let mut reads = true;
        // Few jobs go alone: what is left of them stands in its lanes before the next batch asks for slots.
        let mut is_few = false;
        while reads || backlog.len() > 0 || !applying.is_empty() || !acknowledging.is_empty() {
            while applying.is_empty() || applying.len() < BATCHES_MAX && !is_few {
                let Some(batch) = backlog.next(BATCH) else { break };
                is_few = batch.entries.len() <= FEW;
                applying.push(self.apply(batch));
            }
            while reading_again.len() < READS_MAX
                && let Some(left) = backlog.left()
            {
                reading_again.push(self.read_again(left));
            }
            metrics().inbox_backlog.set(backlog.len() as f64);
            tokio::select! {
                read = entries.recv(), if reads && backlog.has_room() => match read {
                    Some(entries) => self.sort(entries, &mut backlog),
                    None => reads = false,
                },
                Some(applied) = applying.next() => {
                    let Applied { mark, mut ids, not_done } = applied;
                    backlog.applied(&mark);
                    let not_done = match not_done {
                        Ok(not_done) => not_done,
                        Err(Undone::Failed(_)) => ids.clone(),
                        Err(Undone::Stopped) => return,
                    };
                    ids.retain(|id| !not_done.contains(id));
                    acknowledging.push(self.acknowledge(ids));
                    backlog.done(&not_done);
                    kept.extend(not_done.into_iter().map(try_again));
                }
                Some(ids) = acknowledging.next() => match ids {
                    Ok(ids) => backlog.done(&ids),
                    Err(_) => return, // it has stopped
                },
                Some((left, again)) = reading_again.next() => match again {
                    Ok(entries) => backlog.add_left(&left, entries),
                    Err(Undone::Failed(_)) => {
                        backlog.add_left(&left, Vec::new());
                        kept.extend(left.ids.into_iter().map(try_again));
                    }
                    Err(Undone::Stopped) => return,
                },
                Some(id) = kept.next() => backlog.add_again(&id),
            }
        }
    }

    fn sort(&self, entries: Vec<Entry>, backlog: &mut Backlog) {
        for entry in entries {
            let (id, parsed, bytes) = self.parse(entry);
            backlog.add(&id, parsed, bytes);
        }
    }

    /// An entry's id, what it says, and its bytes.
    fn parse(&self, entry: Entry) -> (String, Parsed, usize) {
        let bytes = entry.fields.iter().map(|(name, value)| name.len() + value.len()).sum();
        let parsed = contract::parse(&entry.fields, &self.limits);
        (entry.id, parsed, bytes)
    }

    async fn apply(&self, batch: Batch) -> Applied {
        let Batch { entries, mark } = batch;
        let ids = entries.iter().map(|(id, _)| id.clone()).collect();
        let not_done = Box::pin(self.apply_in_order(entries)).await;
        Applied { mark, ids, not_done }
    }

    /// Applies entries in their order within each partition. Answers those that stay pending.
    async fn apply_in_order(&self, entries: Vec<(String, Parsed)>) -> Result<Kept, Undone> {
        let mut pending: Vec<Pending> = vec![Vec::new(); self.pod.partitions.len()];
        let mut rejected = Vec::new();
        let mut kept = Kept::new();
        for (id, parsed) in entries {
            match parsed {
                Ok(Message::JobPending(job)) => {
                    metrics().inbox_messages_total.of(InboxType::JobPending).increment(1);
                    pending[usize::from(self.pod.keys.partition_of(&job.tenant))].push((id, *job));
                }
                Ok(message) => {
                    // What is queued before it must be there when it is applied: a cancel after its job, for one.
                    kept.extend(self.queue_all(&mut pending).await?);
                    let job_id = job_of(&message);
                    match self.apply_one(&id, message).await {
                        Err(Undone::Failed(_)) => kept.extend(self.reject_not_applied(&id, job_id).await?),
                        done => done?,
                    }
                }
                Err(rejection) => rejected.push((id, rejection)),
            }
        }
        kept.extend(self.queue_all(&mut pending).await?);
        kept.extend(self.reject_all(&rejected).await?);
        Ok(kept)
    }

    /// These entries are done with. Answers their ids.
    async fn acknowledge(&self, ids: Vec<String>) -> Result<Vec<String>, Undone> {
        between("fan_out: before XACK");
        left_out(inbox::acknowledge(&self.pod, &ids).await)?;
        Ok(ids)
    }

    /// Reads entries again; those that are gone are left out.
    async fn read_again(&self, left: Left) -> (Left, Result<Vec<(String, Parsed, usize)>, Undone>) {
        let entries = inbox::fetch(&self.pod, &left.ids).await;
        let again = entries.map(|entries| entries.into_iter().map(|entry| self.parse(entry)).collect());
        (left, again)
    }

    async fn queue_all(&self, pending: &mut [Pending]) -> Result<Kept, Undone> {
        let batches = pending.iter_mut().map(std::mem::take).enumerate().filter(|(_, jobs)| !jobs.is_empty());
        let queued = join_all(batches.map(async |(number, jobs)| self.queue(number as u16, &jobs).await));
        let queued: Vec<Kept> = queued.await.into_iter().collect::<Result<_, _>>()?;
        Ok(queued.concat())
    }

    /// Queues one script call's worth of jobs, or hands them over to free slots of this pod.
    async fn queue(&self, number: u16, jobs: &[(String, PendingJob)]) -> Result<Kept, Undone> {
        let mut slots = self.slots_for(number, jobs).await;
        let queued = self.queue_with(number, jobs, &mut slots).await;
        self.slots_done(number, jobs, &mut slots, &[]).await; // whatever failed
        queued
    }

    /// A call that fails for good is made again job by job, so that what is wrong with one holds up no other. The slots of
    /// what is done are taken out of `slots`.
    async fn queue_with(
        &self,
        number: u16,
        jobs: &[(String, PendingJob)],
        slots: &mut Vec<Slot>,
    ) -> Result<Kept, Undone> {
        let done = match self.fan_out(number, jobs, slots).await {
            Ok(done) => done,
            Err(Undone::Stopped) => return Err(Undone::Stopped),
            Err(Undone::Failed(_)) if jobs.len() > 1 => {
                let mut kept = Kept::new();
                for job in jobs {
                    kept.extend(Box::pin(self.queue_with(number, std::slice::from_ref(job), slots)).await?);
                }
                return Ok(kept);
            }
            Err(Undone::Failed(_)) => {
                let (entry_id, job) = &jobs[0];
                return self.reject_not_applied(entry_id, Some(job.id)).await;
            }
        };
        let queued = done.outcomes.iter().filter(|outcome| **outcome == Outcome::Ok).count();
        metrics().jobs_queued_total.increment(queued as u64);
        debug!(jobs = jobs.len(), queued, handed = done.handed.len(), partition = number, "jobs queued");
        if !done.handed.is_empty() {
            between("fan_out: before Assign");
        }
        // All slots before the wakes, which are for those that stayed unused.
        self.slots_done(number, jobs, slots, &done.handed).await;
        self.wake(number, done.wakes).await;
        for project in done.changed {
            self.reindex(number, project).await?;
        }
        Ok(Kept::new())
    }

    /// The call itself, with the slots that are for these jobs. One that Redis refuses is repeated without them: it may refuse
    /// for long, as when it is full, and what drains it needs slots.
    async fn fan_out(
        &self,
        number: u16,
        jobs: &[(String, PendingJob)],
        slots: &mut Vec<Slot>,
    ) -> Result<FannedOut, Undone> {
        let (pod, partition) = (&self.pod, &self.pod.partitions[usize::from(number)]);
        let of_these = slots.iter().filter(|slot| jobs.iter().any(|(_, job)| job.id == slot.hand_over.job_id));
        let mut hand_overs: Vec<HandOver> = of_these.map(|slot| slot.hand_over.clone()).collect();
        loop {
            // An earlier try may have handed jobs over: only the same call again tells.
            let unsure = AtomicBool::new(false);
            let call = || async {
                match partition.fan_out(&pod.name, jobs, pod.terms(), &hand_overs).await {
                    Err(error) if error.is_retryable() && !hand_overs.is_empty() => {
                        let unsure = unsure.fetch_or(error.may_have_applied(), Ordering::Relaxed);
                        if unsure || error.may_have_applied() { Err(error) } else { Ok(None) }
                    }
                    done => done.map(Some),
                }
            };
            if let Some(done) = pod.until_done("fan_out", call).await? {
                return Ok(done);
            }
            self.slots_done(number, jobs, slots, &[]).await;
            hand_overs.clear();
        }
    }

    /// Tells what became of the slots for these jobs.
    async fn slots_done(&self, number: u16, jobs: &[(String, PendingJob)], slots: &mut Vec<Slot>, handed: &[Lease]) {
        let of_these = slots.extract_if(.., |slot| jobs.iter().any(|(_, job)| job.id == slot.hand_over.job_id));
        let done = of_these.map(|slot| {
            let HandOver { job_id, lane, .. } = slot.hand_over;
            let lease = handed.iter().find(|lease| lease.job_id == job_id);
            let entry = jobs.iter().find(|(_, job)| job.id == job_id);
            let job =
                lease.zip(entry).map(|(lease, (entry_id, job))| TakenJob::handed_over(entry_id, job, lane, *lease));
            (slot, job)
        });
        let done: Vec<_> = done.collect();
        if !done.is_empty() {
            let _ = self.take.send(ToTake::Queued(number, done)).await;
        }
    }

    /// Free slots of this pod: jobs pass through the queue in the call that queues them. Of many at once each tenant is to have
    /// its share, so there must be a slot for each of them; else it is for `take` to see to.
    async fn slots_for(&self, number: u16, jobs: &[(String, PendingJob)]) -> Vec<Slot> {
        let lanes_of = |job: &PendingJob| {
            let fingerprint = job.capability.fingerprint();
            Scope::of_project(&job.project).map(move |scope| Lane { scope, fingerprint }).collect()
        };
        // An id that comes twice is the first job's.
        let mut wanted: Vec<Queueing> = Vec::with_capacity(jobs.len());
        for (_, job) in jobs {
            if wanted.iter().all(|wanted| wanted.job_id != job.id) {
                wanted.push(Queueing { job_id: job.id, lanes: lanes_of(job), affinity: job.affinity.clone() });
            }
        }
        let (answer, slots) = oneshot::channel();
        // In the order of the batches, and so are the answers and the calls.
        let _ = self.take.send(ToTake::Queueing(number, wanted, jobs.len() > FEW, answer)).await;
        slots.await.unwrap_or_default()
    }

    async fn wake(&self, number: u16, lanes: Vec<Lane>) {
        if !lanes.is_empty() {
            let _ = self.take.send(ToTake::Wake(number, lanes)).await;
        }
    }

    async fn reindex(&self, number: u16, project: ProjectId) -> Result<(), Undone> {
        let partition = &self.pod.partitions[usize::from(number)];
        let wakes = self.pod.until_done("index", || partition.index(&self.pod.name, Some(project))).await?;
        self.wake(number, wakes).await;
        Ok(())
    }

    async fn apply_one(&self, entry_id: &str, message: Message) -> Result<(), Undone> {
        let config = &self.pod.config;
        metrics().inbox_messages_total.of(label(&message)).increment(1);
        match message {
            Message::JobPending(_) => unreachable!("queued in batches"),
            Message::JobCanceled { job_id, tenant, reason } => {
                let (_, partition) = self.home(&tenant);
                let call = || partition.cancel(job_id, &reason, config.cancel_grace, config.ended_ttl);
                let outcome = self.pod.until_done("cancel", call).await?;
                between("cancel: before its entry is done with");
                info!(%job_id, outcome = outcome.word(), "job canceled by rails");
            }
            Message::JobRunning { job_id, tenant, runner_id, system_id } => {
                let (number, partition) = self.home(&tenant);
                let (offer, runner) = (OfferId::random(number), runner_id.zip(system_id));
                let (pod, margin) = (&self.pod.name, config.lease);
                let call = || partition.acknowledge(pod, margin, job_id, offer, runner.as_ref());
                let outcome = self.pod.until_done("acknowledge", call).await?;
                debug!(%job_id, outcome = outcome.word(), "rails says that it runs");
            }
            Message::JobFinished { job_id, tenant, status, exit_code, failure_reason } => {
                let (_, partition) = self.home(&tenant);
                let report = [Report {
                    job_id,
                    lease_id: None,
                    status: status.as_str(),
                    exit_code: exit_code.unwrap_or_default(),
                    failure_reason: failure_reason.unwrap_or_default().to_string(),
                }];
                self.pod.until_done("finish", || partition.finish(config.ended_ttl, &report)).await?;
            }
            Message::RunnerUpserted(record) => {
                self.pod.until_done("runner_upsert", || self.pod.runners.upsert(entry_id, &record)).await?;
                info!(runner_id = record.id, "runner stored");
            }
            Message::RunnerDeleted { id } => {
                self.pod.until_done("runner_upsert", || self.pod.runners.delete(entry_id, id)).await?;
                info!(runner_id = %id, "runner deleted");
            }
            Message::TenantUpserted { tenant, weight, max_running } => {
                let (_, partition) = self.home(&tenant);
                self.pod.until_done("tenant", || partition.tenant(&tenant, entry_id, weight, max_running)).await?;
            }
            Message::ProjectUpserted { project_id, tenant, instance_runners, group_runners, max_running } => {
                let (number, partition) = self.home(&tenant);
                let call =
                    || partition.project(project_id, entry_id, &tenant, instance_runners, group_runners, max_running);
                if self.pod.until_done("project", call).await? == Outcome::Ok {
                    self.reindex(number, project_id).await?;
                }
            }
        }
        Ok(())
    }

    fn home(&self, tenant: &Tenant) -> (u16, &crate::redis::Partition) {
        let number = self.pod.keys.partition_of(tenant);
        (number, &self.pod.partitions[usize::from(number)])
    }
}

/// The id of an entry that is neither applied nor told of, once it is to be tried again.
async fn try_again(id: String) -> String {
    sleep(TRY_AGAIN_AFTER).await;
    id
}

/// What failed for good is in the log; what comes after it goes on.
fn left_out(done: Result<(), Undone>) -> Result<(), Undone> {
    match done {
        Err(Undone::Failed(_)) => Ok(()),
        done => done,
    }
}

fn job_of(message: &Message) -> Option<JobId> {
    match message {
        Message::JobPending(job) => Some(job.id),
        Message::JobCanceled { job_id, .. }
        | Message::JobRunning { job_id, .. }
        | Message::JobFinished { job_id, .. } => Some(*job_id),
        _ => None,
    }
}

fn label(message: &Message) -> InboxType {
    match message {
        Message::JobPending(_) => InboxType::JobPending,
        Message::JobCanceled { .. } => InboxType::JobCanceled,
        Message::JobRunning { .. } => InboxType::JobRunning,
        Message::JobFinished { .. } => InboxType::JobFinished,
        Message::RunnerUpserted(_) => InboxType::RunnerUpserted,
        Message::RunnerDeleted { .. } => InboxType::RunnerDeleted,
        Message::TenantUpserted { .. } => InboxType::TenantUpserted,
        Message::ProjectUpserted { .. } => InboxType::ProjectUpserted,
    }
}
