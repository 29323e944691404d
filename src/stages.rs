//! The stages: one module for each thing that happens to a job.
//!
//! Stages never import each other; they meet through small values over the bounded channels that
//! [`dispatcher`](crate::dispatcher) creates. In the order of a job's life:
//!
//! | stage | does |
//! | --- | --- |
//! | [`fan_out`] | reads the inbox, queues jobs, applies every other message of Rails |
//! | [`admit`] | lets runners in, and their earlier jobs with them |
//! | [`take`] | knows the fleet's free slots; takes jobs for them and pushes |
//! | [`start`] | records accepted jobs as running, then says go |
//! | [`running`] | renews leases when runners beat |
//! | [`finish`] | records ends, then acknowledges |
//! | [`give_back`] | returns what was not delivered |
//! | [`mail`] | hears from scripts that other pods ran |
//! | [`scopes`] | opens lanes for the scopes this pod's runners have |
//! | [`presence`] | tells who is connected here, for those who explain |
//! | [`registry`] | follows changes of runners |
//! | [`recover`] | beats, expires, buries dead pods, sweeps |
//! | [`explain`] | answers why a job is where it is |
//! | [`stuck`] | tells of jobs that no online runner could ever take |
//! | [`resume`] | ends pauses whose time is over |

pub mod admit;
pub mod explain;
pub mod fan_out;
pub mod finish;
pub mod give_back;
pub mod held;
pub mod instance;
pub mod mail;
pub mod presence;
pub mod recover;
pub mod registry;
pub mod resume;
pub mod running;
pub mod scopes;
pub mod sessions;
pub mod start;
pub mod stuck;
pub mod take;

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::config::Config;
use crate::grpc::{Door, Outbox, SessionId};
use crate::job::{JobId, Lease, LeaseId, Name, OfferId, RunnerId};
use crate::proto::{self, router_message::Kind};
use crate::redis::{HandOver, Keys, Manager, Offer, Partition, Redis, RedisError, Runners, TakenJob, Terms};
use crate::runner::{Lane, RunnerRecord};
use crate::tags::{Capability, TagSet};
use crate::telemetry::labels::GaveBack;
use crate::telemetry::metrics;
use held::Held;
use instance::Instances;
use sessions::Sessions;

/// The most items one script call handles: a script's loops stay short (a busy one cannot be killed).
pub const BATCH: usize = 64;

/// How long mail outlives a pod that nobody buries, all pods being down. By Redis' clock: longer than that is ever wrong by, as mail that
/// goes too early is lost.
const MAIL_TTL: Duration = Duration::from_secs(24 * 3600);

/// What every stage of a pod shares.
#[derive(Clone)]
pub struct Pod {
    /// The pod's name: its consumer, its mailbox, its place in `pods`.
    pub name: Name,
    /// Its configuration.
    pub config: Arc<Config>,
    /// The client for commands and scripts.
    pub redis: Redis,
    /// The installation's key names.
    pub keys: Keys,
    /// The partitions, by number.
    pub partitions: Arc<[Partition]>,
    /// The runner registry.
    pub runners: Runners,
    /// The sessions that are open here.
    pub sessions: Arc<Sessions>,
    /// The jobs they hold.
    pub held: Arc<Held>,
    /// The names of the partitions.
    pub instances: Arc<Instances>,
    /// Cancelled when the pod is to take no more: nothing new is begun, what was begun goes on.
    pub draining: CancellationToken,
    /// Cancelled when the pod has drained: every stage returns.
    pub stopped: CancellationToken,
}

/// What the take stage hears from the others.
pub enum ToTake {
    /// A session was admitted.
    Opened(Box<Opened>),
    /// A runner's record has changed; `None`: it is gone.
    Changed(RunnerId, Option<Box<RunnerRecord>>),
    /// A session had a job it would not or could not run: leave it alone for a while.
    BackOff(SessionId),
    /// This pod waited in these lanes of a partition, and now there is work.
    Wake(u16, Vec<Lane>),
    /// A job for which this lane is about to be woken likes this manager.
    Likes(u16, Lane, Manager),
    /// Jobs are about to be queued, answer free slots to hand them to; if so told, for all of them or none. Every slot answered
    /// comes back as `Queued`.
    Queueing(u16, Vec<Queueing>, bool, oneshot::Sender<Vec<Slot>>),
    /// Slots that were answered to `Queueing`, with the jobs that were handed to them.
    Queued(u16, Vec<(Slot, Option<TakenJob>)>),
    /// These lanes of a partition have had the same work at their head for a while. Normal while no slot is free; if this pod
    /// has one and thinks that it waits, a wake was lost.
    Standing(u16, Vec<Lane>),
    /// A lane of a partition was opened.
    LaneOpened(u16, Lane, Capability),
    /// Redis was away, or took the pod for dead, or all lanes go on after a pause: trust nothing known of waiting and of lanes.
    Resync,
}

/// A job that is about to be queued.
pub struct Queueing {
    /// The job.
    pub job_id: JobId,
    /// Its lanes.
    pub lanes: Vec<Lane>,
    /// Its affinity key.
    pub affinity: Arc<str>,
}

/// A free slot for a job that is about to be queued.
#[derive(Debug, Clone)]
pub struct Slot {
    /// Whose it is.
    pub session: SessionId,
    /// What the script is told of it.
    pub hand_over: HandOver,
}

/// An admitted session.
pub struct Opened {
    /// The session.
    pub session: SessionId,
    /// Its runner, as the registry has it.
    pub record: RunnerRecord,
    /// Which manager of the runner.
    pub system_id: Name,
    /// Its features.
    pub features: TagSet,
    /// What it says of itself, for Rails: a JSON object.
    pub info: Arc<str>,
    /// Its free slots.
    pub slots: u32,
    /// Where to put messages for it.
    pub outbox: Outbox,
}

/// A job to give back.
#[derive(Debug, Clone, Copy)]
pub struct GiveBack {
    /// The job under the lease that ends.
    pub lease: Lease,
    /// Why.
    pub why: GaveBack,
    /// The session it failed at, to be left alone for a while.
    pub back_off: Option<SessionId>,
}

/// A call could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Undone {
    /// The pod stops: leave it.
    #[error("the pod stops")]
    Stopped,
    /// It will never be done as it is: a bug. Logged here; leave it out and go on.
    #[error(transparent)]
    Failed(#[from] RedisError),
}

// === impl Pod ===

impl Pod {
    /// The partition a lease names, if there is such a one.
    pub fn partition_of(&self, lease_id: LeaseId) -> Option<&Partition> {
        self.partitions.get(usize::from(lease_id.partition()))
    }

    /// On what terms jobs are assigned.
    pub fn terms(&self) -> Terms {
        let Config { accept_timeout, affinity_memory, affinity_wait, .. } = *self.config;
        Terms { accept_timeout, affinity_memory, affinity_wait }
    }

    /// How long a runner has to accept a job that was pushed to it, or, by the other door, to tell Rails that it runs.
    pub fn accept_timeout(&self, door: Door) -> Duration {
        match door {
            Door::Native => self.config.accept_timeout,
            Door::GitLab => self.config.gitlab_ack_timeout,
        }
    }

    /// An offer of a session's slot.
    fn offer(&self, partition: u16, session: SessionId, runner_id: RunnerId, system_id: Name) -> Offer {
        let door = self.sessions.get(session).map_or(Door::Native, |outbox| outbox.door());
        let accept_timeout = (door != Door::Native).then(|| self.accept_timeout(door));
        Offer { id: OfferId::random(partition), runner_id, system_id, accept_timeout }
    }

    /// Makes a call until Redis has done it, with growing pauses. Every script may be repeated (invariant 6), so a lost
    /// reply is one more try. The wakes in it are lost for good: after a repeat the take stage trusts nothing it waits for.
    pub async fn until_done<T, F>(&self, what: &'static str, mut call: impl FnMut() -> F) -> Result<T, Undone>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let mut pauses = pauses();
        let mut repeated = false;
        loop {
            let answer = call().await;
            if repeated && answer.is_ok() {
                self.redis.doubt();
            }
            repeated = true;
            match answer {
                Ok(done) => return Ok(done),
                Err(error) if error.is_retryable() => {
                    let pause = pauses.next().unwrap_or(PAUSE_MAX);
                    let pause_ms = pause.as_millis() as u64;
                    if error.wants_rights() {
                        error!(what, %error, pause_ms, "redis call denied; give the user its rights, as docs/redis.md says");
                    } else {
                        warn!(what, %error, pause_ms, "redis call repeated");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.stopped.cancelled() => return Err(Undone::Stopped),
                    }
                }
                Err(error) => {
                    error!(what, %error, "redis call failed for good");
                    return Err(Undone::Failed(error));
                }
            }
        }
    }
}

const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(PAUSE_MIN)
        .with_max_delay(PAUSE_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}

/// A place between what Redis has done and who is told of it, for tests: a pod whose variable `FAILPOINTS` says
/// `<name>=return` dies here, at the fourth time with `3*off->return`. In a build that is not for tests it is nothing.
#[inline]
fn between(name: &'static str) {
    let _ = name;
    fail::fail_point!(name, |_| std::process::abort());
}

/// Groups items by the partition their leases name. Leases of partitions that do not exist are in the second part: they
/// cannot be anybody's.
pub fn by_partition<T>(pod: &Pod, items: Vec<T>, lease: impl Fn(&T) -> Lease) -> (Vec<(u16, Vec<T>)>, Vec<T>) {
    let mut groups: Vec<(u16, Vec<T>)> = Vec::with_capacity(1);
    let mut nowhere = Vec::new();
    for item in items {
        let partition = lease(&item).lease_id.partition();
        if usize::from(partition) >= pod.partitions.len() {
            nowhere.push(item);
            continue;
        }
        match groups.iter_mut().find(|(number, _)| *number == partition) {
            Some((_, group)) => group.push(item),
            None => groups.push((partition, vec![item])),
        }
    }
    (groups, nowhere)
}

/// A lease as it stands in messages.
fn wire(lease: Lease) -> proto::Lease {
    proto::Lease { job_id: lease.job_id.0, lease_id: lease.lease_id.to_string() }
}

/// Tells a runner that a job is not its any more.
fn revoked(lease: Lease, reason: &str) -> Kind {
    Kind::Revoked(proto::Revoked { lease: Some(wire(lease)), reason: reason.to_owned() })
}

/// What is left of a cancel's grace by Redis' clock, which may have been moved back since.
fn at_most_the_grace(pod: &Pod, left: Duration) -> Duration {
    left.min(pod.config.cancel_grace)
}

/// Rails says that a GitLab Runner runs a job that it was handed here.
fn runs_for_rails(pod: &Pod, lease: Lease) {
    if let Some((outbox, waited)) = pod.held.runs_for_rails(lease) {
        metrics().assign_to_accept_seconds.record(waited);
        metrics().jobs_started_total.increment(1);
        outbox.send(Kind::Start(proto::Start { lease: Some(wire(lease)) }));
    }
}

/// Tells the runner of a job to stop it, unless it was told.
fn cancel(pod: &Pod, lease: Lease, grace: Duration, reason: String) {
    if let Some(outbox) = pod.held.cancel(lease.lease_id) {
        let grace_ms = at_most_the_grace(pod, grace).as_millis() as u32;
        outbox.send(Kind::Cancel(proto::Cancel { lease: Some(wire(lease)), grace_ms, reason }));
    }
}
