//! admit: lets a runner in, and the jobs it holds from an earlier session with it.
//!
//! In: [`Knock`]s. Out: `Welcome` or a status to the runner, [`Opened`] to the take stage. Refused: unknown token
//! (UNAUTHENTICATED, said the same way for a deleted runner's), Redis away or pod draining (UNAVAILABLE), and to a GitLab Runner also
//! that Redis may have lost its token.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use subtle::ConstantTimeEq;
use tokio::sync::mpsc;
use tonic::Status;
use tracing::{debug, info, warn};

use super::{BATCH, Opened, Pod, ToTake, Undone, at_most_the_grace, between, by_partition};
use crate::grpc::{Closed, Door, Hello, Knock};
use crate::job::Lease;
use crate::proto;
use crate::redis::scripts::Outcome;
use crate::redis::{Record, RedisError, Renewed, Return};
use crate::runner::RunnerRecord;
use crate::telemetry::labels::{GaveBack, Label, SessionClosed};
use crate::telemetry::metrics;

/// How many runners are let in at a time: enough to keep Redis busy when a fleet reconnects, not to flood it.
const AT_ONCE: usize = 64;

/// Lets runners in until the pod has stopped; refuses them while it drains.
pub async fn run(
    pod: Pod,
    mut knocks: mpsc::Receiver<Knock>,
    take: mpsc::Sender<ToTake>,
    closed: mpsc::UnboundedSender<Closed>,
) {
    let mut admitting = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = pod.stopped.cancelled() => return,
            Some(()) = admitting.next() => {}
            Some(knock) = knocks.recv(), if admitting.len() < AT_ONCE => {
                admitting.push(admit(&pod, knock, &take, &closed));
            }
        }
    }
}

async fn admit(pod: &Pod, knock: Knock, take: &mpsc::Sender<ToTake>, closed: &mpsc::UnboundedSender<Closed>) {
    let Knock { session, token_sha256, hello, outbox, answer } = knock;
    if pod.draining.is_cancelled() {
        answer.refuse(Status::unavailable("the pod is draining; reconnect to another"));
        return;
    }
    if answer.is_closed() {
        return; // it left while it waited for its turn
    }
    let before: Vec<_> = (0..pod.keys.partitions()).map(|number| pod.seen(number)).collect();
    let found = find(pod, &token_sha256).await;
    let admitted = match found {
        // Its jobs stay where they are: it may have brought them along on a newer session by now.
        Ok(Some(_)) if answer.is_closed() => return,
        Ok(Some(record)) => resume(pod, &hello.running, take).await.map(|resumed| (record, resumed)),
        // A GitLab Runner that is refused three times asks nobody for an hour: it is not, for what Redis has lost.
        Ok(None) if outbox.door() == Door::GitLab && pod.may_lack_runners().await.unwrap_or(true) => {
            answer.refuse(Status::unavailable("runners are not known yet; retry with back-off"));
            return;
        }
        Ok(None) => {
            debug!(system_id = %hello.system_id, "runner refused");
            answer.unknown_token();
            return;
        }
        Err(error) => Err(error.into()),
    };
    let (record, resumed) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => {
            warn!(system_id = %hello.system_id, %error, "runner could not be let in");
            answer.refuse(Status::unavailable("the job queue cannot be reached; retry with back-off"));
            return;
        }
    };
    info!(runner_id = record.id, system_id = %hello.system_id, version = %hello.version, slots = hello.slots,
        resumed = resumed.len(), session = %session, "runner connected");
    metrics().sessions_opened_total.increment(1);
    let (runner_id, found) = (record.runner_id(), record.clone());
    for job in &resumed {
        pod.held.resume(job.lease, session, outbox.clone(), job.record.clone());
    }
    for (number, before) in (0..).zip(before) {
        if pod.tell_if_lost(number, &before).await.is_err() {
            return; // the pod stops
        }
    }
    let welcome = proto::Welcome {
        pod: pod.name.to_string(),
        session: session.to_string(),
        lease_ms: pod.config.lease.as_millis() as u32,
        beat_interval_ms: pod.config.beat_interval.as_millis() as u32,
        resumed: resumed.iter().map(ResumedJob::to_proto).collect(),
    };
    let Hello { system_id, features, info, slots, .. } = hello;
    let opened = Opened { session, record, system_id, features, info, slots, outbox };
    // Known to all before it is let in: its end, which it tells itself from then on, must find it. Its Welcome still goes
    // first, as the session looks into its outbox only after that.
    pod.sessions.insert(session, opened.outbox.clone());
    if pod.draining.is_cancelled() {
        // The drain began meanwhile and may not have seen it: nobody else would send it away.
        opened.outbox.send(proto::router_message::Kind::Drain(proto::Drain { reconnect_after_ms: 0 }));
    }
    let _ = take.send(ToTake::Opened(Box::new(opened))).await;
    between("admit: before Welcome");
    if !answer.welcome(welcome) {
        let _ = closed.send(Closed { session, why: SessionClosed::Lost }); // it left before, and told so too early
    }
    // A change between the look-up and now found no session to change. One that there was not is not told: each is looked for
    // among all sessions, and a fleet comes back at once.
    if let Ok(now) = pod.runners.get(runner_id).await
        && now.as_ref() != Some(&found)
    {
        let _ = take.send(ToTake::Changed(runner_id, now.map(Box::new))).await;
    }
}

async fn find(pod: &Pod, token_sha256: &str) -> Result<Option<RunnerRecord>, RedisError> {
    let found = pod.runners.find(token_sha256).await?;
    // The key was found by this hash; the comparison that decides takes the same time wherever they differ.
    Ok(found.filter(|record| record.token_sha256.as_bytes().ct_eq(token_sha256.as_bytes()).into()))
}

struct ResumedJob {
    lease: Lease,
    canceling: Option<Duration>,
    record: Record,
}

// === impl ResumedJob ===

impl ResumedJob {
    fn to_proto(&self) -> proto::Resumed {
        proto::Resumed {
            lease: Some(super::wire(self.lease)),
            canceling: self.canceling.is_some(),
            cancel_grace_ms: self.canceling.unwrap_or_default().as_millis() as u32,
        }
    }
}

/// Renews the leases the runner says it holds; answers those that are its own.
///
/// A job that it accepted on a session that is gone, and whose start is still on its way, perhaps on another pod, is given
/// back: the runner drops it now, and a start recorded after that would be of a job that nobody runs.
async fn resume(pod: &Pod, leases: &[Lease], take: &mpsc::Sender<ToTake>) -> Result<Vec<ResumedJob>, Undone> {
    let mut resumed = Vec::new();
    let (groups, _) = by_partition(pod, leases.to_vec(), |lease| *lease);
    for (number, leases) in groups {
        for batch in leases.chunks(BATCH) {
            let before = pod.seen(number);
            let mut not_yours = renew(pod, number, batch, &mut resumed).await?;
            // Not known here: or has Redis lost it?
            if !not_yours.is_empty() && pod.was_lost(number, &before).await? {
                not_yours = renew(pod, number, &not_yours, &mut resumed).await?;
            }
            if not_yours.is_empty() {
                continue;
            }
            let started = give_back(pod, number, &not_yours, take).await?;
            renew(pod, number, &started, &mut resumed).await?;
        }
    }
    Ok(resumed)
}

/// Adds those that are the runner's to `resumed`; answers the others.
async fn renew(
    pod: &Pod,
    number: u16,
    leases: &[Lease],
    resumed: &mut Vec<ResumedJob>,
) -> Result<Vec<Lease>, RedisError> {
    let partition = &pod.partitions[usize::from(number)];
    let renewed = partition.resume_running(&pod.name, pod.config.lease, leases).await?;
    let mut not_yours = Vec::new();
    for (lease, (renewed, record)) in leases.iter().zip(renewed) {
        match renewed {
            Renewed::Running => resumed.push(ResumedJob { lease: *lease, canceling: None, record }),
            Renewed::Canceling { grace, .. } => {
                let canceling = Some(at_most_the_grace(pod, grace));
                resumed.push(ResumedJob { lease: *lease, canceling, record });
            }
            Renewed::NotYours => not_yours.push(*lease),
        }
    }
    Ok(not_yours)
}

/// Answers those that started meanwhile.
async fn give_back(
    pod: &Pod,
    number: u16,
    leases: &[Lease],
    take: &mpsc::Sender<ToTake>,
) -> Result<Vec<Lease>, RedisError> {
    let (partition, config) = (&pod.partitions[usize::from(number)], &pod.config);
    let reason = GaveBack::SessionClosed.as_str();
    let returns: Vec<Return> =
        leases.iter().map(|lease| Return { lease: *lease, reason, failed_delivery: true }).collect();
    let given = partition.give_back(&pod.name, config.give_back_limit, config.ended_ttl, &returns).await?;
    let (outcomes, wakes) = given;
    if !wakes.is_empty() {
        let _ = take.send(ToTake::Wake(number, wakes)).await;
    }
    let started = leases.iter().zip(outcomes).filter(|(_, outcome)| *outcome == Outcome::Refused);
    Ok(started.map(|(lease, _)| *lease).collect())
}
