//! give_back: returns jobs that no runner started to their old places in the queue.
//!
//! In: jobs that were declined, could not be pushed, or whose session ended; and, found here, those whose runner did not
//! answer in time. Out: wakes for this pod.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::info;

use super::{BATCH, GiveBack, Pod, ToTake, Undone, between, by_partition, revoked, runs_for_rails};
use crate::grpc::Spoken;
use crate::job::Lease;
use crate::redis::Return;
use crate::redis::scripts::Outcome;
use crate::telemetry::labels::{GaveBack, Label};
use crate::telemetry::metrics;

/// How often to look for runners that do not answer: a small part of the shortest `accept_timeout`.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Gives back until the pod has stopped.
pub async fn run(
    pod: Pod,
    mut returns: mpsc::Receiver<GiveBack>,
    mut declined: mpsc::Receiver<Spoken<Lease>>,
    take: mpsc::Sender<ToTake>,
) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            () = pod.stopped.cancelled() => return,
            _ = returns.recv_many(&mut batch, BATCH) => {}
            Some(spoken) = declined.recv() => batch.extend(decline(&pod, &spoken)),
            _ = look.tick() => batch.extend(overdue(&pod)),
        }
        let backs = std::mem::take(&mut batch);
        for session in backs.iter().filter_map(|back| back.back_off) {
            let _ = take.send(ToTake::BackOff(session)).await;
        }
        let (groups, _) = by_partition(&pod, backs, |back| back.lease);
        for (partition, backs) in groups {
            for backs in backs.chunks(BATCH) {
                if let Err(Undone::Stopped) = give_back(&pod, partition, backs, &take).await {
                    return;
                }
            }
        }
    }
}

/// A runner that declines what it has already been told to start is not heard: it runs the job or reports its end.
fn decline(pod: &Pod, spoken: &Spoken<Lease>) -> Option<GiveBack> {
    let Spoken { session, said: lease } = spoken;
    if !pod.held.is_mine_to_decline(*lease, *session) {
        return None;
    }
    Some(GiveBack { lease: *lease, why: GaveBack::Declined, back_off: Some(*session) })
}

fn overdue(pod: &Pod) -> impl Iterator<Item = GiveBack> {
    let overdue = pod.held.overdue(|door| pod.accept_timeout(door));
    let why = GaveBack::AcceptTimeout;
    overdue.into_iter().map(move |(lease, session)| GiveBack { lease, why, back_off: Some(session) })
}

/// A pod that drains has not failed to deliver.
fn return_of(back: &GiveBack) -> Return {
    Return { lease: back.lease, reason: back.why.as_str(), failed_delivery: back.why != GaveBack::Drain }
}

async fn give_back(pod: &Pod, number: u16, backs: &[GiveBack], take: &mpsc::Sender<ToTake>) -> Result<(), Undone> {
    let config = &pod.config;
    let partition = &pod.partitions[usize::from(number)];
    let returns: Vec<Return> = backs.iter().map(return_of).collect();
    let call = || partition.give_back(&pod.name, config.give_back_limit, config.ended_ttl, &returns);
    let (outcomes, wakes) = pod.until_done("give_back", call).await?;
    between("give_back: before Revoked");
    for (back, outcome) in backs.iter().zip(outcomes) {
        if outcome == Outcome::Refused {
            runs_for_rails(pod, back.lease);
            continue; // it started meanwhile: it is where it should be
        }
        if let Some(outbox) = pod.held.remove(back.lease) {
            outbox.send(revoked(back.lease, back.why.as_str()));
        }
        if outcome == Outcome::Ok {
            metrics().give_backs_total.of(back.why).increment(1);
            info!(job_id = %back.lease.job_id, lease_id = %back.lease.lease_id, reason = back.why.as_str(),
                "job given back");
        }
    }
    if !wakes.is_empty() {
        let _ = take.send(ToTake::Wake(number, wakes)).await;
    }
    Ok(())
}
