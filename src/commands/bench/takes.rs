//! Takes against a Redis with jobs queued, and what they cost it: what `backlog` and `lanes` share.
//!
//! A world keeps its shape: the jobs that a turn takes are ended, and as many are queued, one in each lane and tenant in turn. A turn of one
//! world follows a turn of the next, so that what the machine does meanwhile meets all alike.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use job_router::contract::{Entry, Limits, Message};
use job_router::job::{JobId, Lease, Name, OfferId, PendingJob, ProjectId, RunnerId, Tenant};
use job_router::redis::{Empty, Offer, Partition, Redis, Report, Taken, scripts};
use job_router::runner::{Lane, Scope};
use job_router::tags::{Capability, TagSet};

use super::scripts as script_calls;
use crate::commands::connection;
use crate::commands::rig::Rig;

/// Jobs of one fan-out call, and of one turn.
pub(super) const BATCH: u64 = 100;
/// Nothing here waits for a deadline.
const TIMEOUT: Duration = Duration::from_secs(600);
/// The most calls of `take` in one turn: far more than mending may need.
const CALLS_MAX: u64 = 100 * BATCH;
/// When the first job was queued, in Unix ms: after the time from which scores count, so that the oldest goes first.
const FIRST_QUEUED_MS: u64 = 1_750_000_000_000;

/// How many jobs, and whose.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Jobs queued.
    pub(super) jobs: u64,
    /// Tenants, each with as many jobs in each lane.
    pub(super) tenants: u64,
    /// Projects of each tenant.
    pub(super) projects: u64,
    /// Fingerprints, each of which is one instance lane.
    pub(super) lanes: u64,
}

/// How a turn takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking {
    /// Lanes that one take asks, at most as many as there are; the next take asks those that follow.
    pub(super) lanes: usize,
    /// Jobs of one take.
    pub(super) slots: u64,
}

/// One Redis with jobs queued.
pub(super) struct World {
    /// Its jobs.
    pub(super) shape: Shape,
    /// It.
    pub(super) rig: Rig,
    /// Its lanes, and what their jobs need.
    pub(super) lanes: Vec<(Lane, Arc<Capability>)>,
    partition: Partition,
    pod: Name,
    /// A job to make others from.
    model: PendingJob,
    next_id: u64,
    next_lane: usize,
}

/// What a turn of [`BATCH`] jobs cost Redis, in script time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    /// Of the takes.
    pub(super) takes: Duration,
    /// Of the takes, the starts, the ends, and of queueing as many.
    pub(super) lives: Duration,
    /// Jobs taken.
    pub(super) jobs: u64,
    /// Calls of `take` that it took: more than jobs over slots where calls ended before they were full.
    pub(super) calls: u64,
}

/// The costs of a job, in µs, of several rounds.
#[derive(Debug, Default)]
pub(super) struct Rounds(Vec<f64>);

/// To three places.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

// === impl World ===

impl World {
    /// An empty Redis.
    pub(super) async fn new(rig: Rig, shape: Shape) -> anyhow::Result<Self> {
        let prefix = connection::keys(&rig.config).partition(0);
        let partition = Partition::new(rig.redis.clone(), &prefix);
        let pod = Name::new("bench").expect("letters");
        rig.redis.load(&scripts::ALL, &prefix).await?;
        let empty = Empty { name: "bench".to_owned(), hold: Duration::ZERO };
        partition.heartbeat(&pod, "0-0", TIMEOUT, &empty).await?;
        partition.scope(Scope::Instance, true).await?;
        let line = r#"{"type":"job.pending","data":{"id":1,"project_id":1,"namespace_ids":[1],"tags":["bench"],"payload":{"n":1}}}"#;
        let entry = Entry::from_line(line).expect("a line in the shape that from_line documents");
        let Ok(Message::JobPending(model)) = entry.check(&Limits::default()) else { unreachable!("it is a sound job") };
        let lanes = (0..shape.lanes).map(|number| {
            let tags = TagSet::new(["bench".to_owned(), format!("lane-{number}")]).expect("two short tags");
            let capability = Capability { tags, ..Capability::clone(&model.capability) };
            (Lane { scope: Scope::Instance, fingerprint: capability.fingerprint() }, Arc::new(capability))
        });
        let lanes = lanes.collect();
        Ok(Self { shape, rig, lanes, partition, pod, model: *model, next_id: 0, next_lane: 0 })
    }

    /// Queues all jobs.
    pub(super) async fn fill(&mut self, bar: &ProgressBar) -> anyhow::Result<()> {
        while self.next_id < self.shape.jobs {
            self.queue(BATCH.min(self.shape.jobs - self.next_id)).await?;
            bar.set_position(self.next_id);
            // Events are not what is measured; a million would cost more memory than the jobs.
            if self.next_id % 10_000 < BATCH {
                self.forget_events().await?;
            }
        }
        self.forget_events().await?;
        bar.finish_and_clear();
        Ok(())
    }

    async fn queue(&mut self, count: u64) -> anyhow::Result<()> {
        let jobs: Vec<(String, PendingJob)> = (self.next_id..self.next_id + count)
            .map(|nth| {
                let mut job = self.model.clone();
                // Lanes go round first, then tenants, then the projects of each.
                let in_lane = nth / self.shape.lanes;
                let tenant = in_lane % self.shape.tenants + 1;
                job.id = JobId(nth + 1);
                job.capability = Arc::clone(&self.lanes[(nth % self.shape.lanes) as usize].1);
                job.tenant = Tenant::of_namespace(tenant);
                job.project.id = ProjectId(tenant * 10_000 + in_lane / self.shape.tenants % self.shape.projects);
                job.project.namespace_ids = vec![tenant];
                (format!("{}-0", FIRST_QUEUED_MS + nth), job)
            })
            .collect();
        self.next_id += count;
        self.partition.fan_out(&self.pod, &jobs, TIMEOUT, &[]).await?;
        Ok(())
    }

    /// Takes [`BATCH`] jobs, then ends them and queues as many.
    pub(super) async fn turn(&mut self, asking: Asking) -> anyhow::Result<Cost> {
        let before = script_calls(&self.rig.redis).await?;
        let (mut leases, mut calls) = (Vec::new(), 0);
        while (leases.len() as u64) < BATCH {
            let free = asking.slots.min(BATCH - leases.len() as u64);
            let offer = |_| Offer {
                id: OfferId::random(0),
                runner_id: RunnerId(1),
                system_id: self.pod.clone(),
                accept_timeout: None,
            };
            let offers: Vec<Offer> = (0..free).map(offer).collect();
            let asked = asking.lanes.min(self.lanes.len());
            let lanes: Vec<Lane> = self.lanes.iter().cycle().skip(self.next_lane).take(asked).map(|l| l.0).collect();
            let Taken { jobs: taken, again, .. } = self.partition.take(&self.pod, TIMEOUT, 0, &lanes, &offers).await?;
            // As a pod: a take that spent its steps on mending the order names the lanes to ask again, and is sent again.
            ensure!(taken.len() as u64 == free || !again.is_empty(), "a lane ran empty: more --jobs are needed");
            if taken.len() as u64 == free {
                self.next_lane = (self.next_lane + asked) % self.lanes.len();
            }
            leases.extend(taken.into_iter().map(|job| job.lease));
            calls += 1;
            ensure!(calls < CALLS_MAX, "{CALLS_MAX} takes brought {} jobs of {BATCH}", leases.len());
        }
        let takes = script_calls(&self.rig.redis).await?.time - before.time;

        self.partition.start(TIMEOUT, &leases).await?;
        let reports: Vec<_> = leases
            .into_iter()
            .map(|Lease { job_id, lease_id }| Report {
                job_id,
                lease_id: Some(lease_id),
                status: "success",
                exit_code: 0,
                failure_reason: String::new(),
            })
            .collect();
        self.partition.finish(Duration::from_millis(1), &reports).await?;
        self.queue(BATCH).await?;
        let lives = script_calls(&self.rig.redis).await?.time - before.time;
        self.forget_events().await?;
        Ok(Cost { takes, lives, jobs: BATCH, calls })
    }

    /// Bytes that Redis uses.
    pub(super) async fn used_memory(&self) -> anyhow::Result<i64> {
        let info = self.rig.redis.command_at("bench", "INFO", ["memory".into()]).await?;
        let used = info.as_str()?.lines().find_map(|line| line.strip_prefix("used_memory:"));
        used.and_then(|used| used.trim().parse().ok()).context("INFO memory is of another version")
    }

    async fn forget_events(&self) -> anyhow::Result<()> {
        let redis: &Redis = &self.rig.redis;
        redis.command("DEL", [self.rig.events().into()]).await?;
        Ok(())
    }
}

// === impl Cost ===

impl Cost {
    /// Adds another turn's.
    pub(super) fn add(&mut self, other: Self) {
        self.takes += other.takes;
        self.lives += other.lives;
        self.jobs += other.jobs;
        self.calls += other.calls;
    }

    /// µs of the takes, for each job.
    pub(super) fn take_us(&self) -> f64 {
        self.takes.as_secs_f64() * 1e6 / self.jobs as f64
    }

    /// µs of the whole lives, for each job.
    pub(super) fn life_us(&self) -> f64 {
        self.lives.as_secs_f64() * 1e6 / self.jobs as f64
    }
}

// === impl Rounds ===

impl Rounds {
    /// Adds a round's mean.
    pub(super) fn push(&mut self, us: f64) {
        self.0.push(us);
        self.0.sort_by(f64::total_cmp);
    }

    /// The median.
    pub(super) fn median(&self) -> f64 {
        rounded(self.0[self.0.len() / 2])
    }

    /// The least and the greatest.
    pub(super) fn spread(&self) -> [f64; 2] {
        [rounded(self.0[0]), rounded(self.0[self.0.len() - 1])]
    }
}
