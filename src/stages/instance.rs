//! instance: whether Redis still holds what it held.
//!
//! Each partition has a name of its own while it holds data. Another name says that all was lost, and that a job that is not known
//! there may well be running here: so whoever finds one not known looks at the name before a runner is told to stop.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tracing::{info, warn};

use super::{BATCH, Pod, Undone, revoked};
use crate::config::{GroupLaneOrder, PriorityReach};
use crate::job::Lease;
use crate::redis::scripts::Outcome;
use crate::redis::{Empty, Heartbeat, LaneOrder, NO_CHANGE, RedisError, Remembered};
use crate::stages::MAIL_TTL;
use crate::telemetry::metrics;

/// The names of the partitions as this pod knows them; '' before it has joined.
pub struct Instances {
    partitions: Box<[Instance]>,
    /// When one was seen last to have lost its data.
    lost: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Instance {
    seen: Mutex<Seen>,
    reasserting: tokio::sync::Mutex<()>,
}

/// What was known of a partition before a call.
#[derive(Clone, Default)]
pub struct Seen {
    /// Its name.
    known: Arc<str>,
    /// The same, once it has heard of all that was noted before.
    told: Arc<str>,
}

// === impl Instances ===

impl Instances {
    /// Of so many partitions.
    pub fn new(partitions: u16) -> Self {
        Self { partitions: (0..partitions).map(|_| Instance::default()).collect(), lost: Mutex::default() }
    }

    fn of(&self, number: u16) -> &Instance {
        &self.partitions[usize::from(number)]
    }
}

// === impl Instance ===

impl Instance {
    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panics with it")
    }
}

// === impl Pod ===

impl Pod {
    /// What is known of a partition: to be kept from before a call, for the two questions after it.
    pub fn seen(&self, number: u16) -> Seen {
        self.instances.of(number).lock().clone()
    }

    /// Of a job that is not known there: whether the partition has lost its data since. If so, it has heard again by now what runs
    /// here: make the call again.
    pub async fn was_lost(&self, number: u16, before: &Seen) -> Result<bool, Undone> {
        let Heartbeat { instance, .. } = self.until_done("heartbeat", || self.heartbeat(number, "0-0")).await?;
        self.follow_instance(number, &instance).await?;
        Ok(self.seen(number).told != before.told)
    }

    /// Of what was noted here after the call: if the partition has lost its data since, it may not have heard of it, and does now.
    pub async fn tell_if_lost(&self, number: u16, before: &Seen) -> Result<(), Undone> {
        if self.seen(number).known == before.known { Ok(()) } else { self.reassert(number).await }
    }

    /// Whether a token that no runner has may be one that Redis has lost: no runner was ever told of, or Redis was seen to have lost
    /// its data so lately that Rails may still be telling of them.
    pub async fn may_lack_runners(&self) -> Result<bool, RedisError> {
        let lost = *self.instances.lost.lock().expect("nobody panics with it");
        let is_told_again = lost.is_some_and(|at| at.elapsed() < self.config.rebuild_hold());
        Ok(is_told_again || self.runners.last_change().await? == NO_CHANGE)
    }

    /// Says that this pod lives.
    pub async fn heartbeat(&self, number: u16, mail_read: &str) -> Result<Heartbeat, RedisError> {
        let partition = &self.partitions[usize::from(number)];
        let name = format!("{:032x}", rand::random::<u128>());
        let empty = Empty { name, hold: self.config.rebuild_hold() };
        partition.heartbeat(&self.name, mail_read, MAIL_TTL, &empty).await
    }

    /// A partition has this name now. If it had another one, it has lost its data, and hears from here what it should know.
    pub async fn follow_instance(&self, number: u16, instance: &str) -> Result<(), Undone> {
        let slot = self.instances.of(number);
        let _one_at_a_time = slot.reasserting.lock().await;
        let Seen { known, told } = self.seen(number);
        if *told == *instance {
            return Ok(());
        }
        slot.lock().known = instance.into(); // first: what is noted from here on is told by who notes it
        if known.is_empty() {
            info!(partition = number, instance, "redis known");
        } else {
            metrics().redis_data_losses_total.increment(1);
            *self.instances.lost.lock().expect("nobody panics with it") = Some(Instant::now());
            warn!(
                partition = number,
                instance,
                hold = ?self.config.rebuild_hold(),
                "redis has lost its data: Rails must publish all that has not ended; nothing is assigned meanwhile"
            );
            self.until_done("policy", || self.set_policy(number)).await?;
            self.reassert(number).await?;
            self.redis.has_forgotten();
            self.redis.doubt(); // whatever was waited for there is forgotten
        }
        slot.lock().told = instance.into();
        Ok(())
    }

    /// Makes the policy of a partition that of this pod's configuration. Pods are configured alike; if not, all do as the last one
    /// says.
    pub async fn set_policy(&self, number: u16) -> Result<(), RedisError> {
        let config = &self.config;
        let group = match config.group_lane_order {
            GroupLaneOrder::Fifo => LaneOrder::Fifo,
            GroupLaneOrder::Fair => LaneOrder::Fair,
        };
        let ageing = (config.priority == PriorityReach::Global).then_some(config.priority_ageing);
        if self.partitions[usize::from(number)].configure(group, ageing).await? {
            info!(partition = number, group_lane_order = group.as_str(), ?ageing, "policy changed");
        }
        Ok(())
    }

    async fn reassert(&self, number: u16) -> Result<(), Undone> {
        let (partition, config) = (&self.partitions[usize::from(number)], &self.config);
        let jobs = self.held.remembered(number, config.lease);
        let mut known_again = 0;
        for batch in jobs.chunks(BATCH) {
            let told: Vec<Remembered> = batch.iter().map(|(_, job)| job.clone()).collect();
            let call = || partition.reassert(&self.name, config.lease, config.ended_ttl, &told);
            let outcomes = self.until_done("reassert", call).await?;
            for ((lease_id, job), outcome) in batch.iter().zip(outcomes) {
                if outcome == Outcome::Ok {
                    known_again += 1;
                    continue;
                }
                let lease = Lease { job_id: job.job_id, lease_id: *lease_id };
                if let Some(outbox) = self.held.remove(lease) {
                    outbox.send(revoked(lease, "gone")); // canceled meanwhile, or another runner's by now
                }
            }
        }
        info!(partition = number, jobs = jobs.len(), known_again, "what runs and what ended here told again");
        Ok(())
    }
}
