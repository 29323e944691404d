//! running: keeps leases alive while their runners beat.
//!
//! In: beats. Out: `BeatAck` once the renewal is recorded (the runner counts its lease from when it sent the beat that was
//! acknowledged), with the jobs that are not its any more; `Cancel` for those it should stop.

use tokio::sync::mpsc;

use super::{BATCH, Pod, Undone, by_partition, cancel, wire};
use crate::grpc::{Beat, SessionId, Spoken};
use crate::job::Lease;
use crate::proto::{self, router_message::Kind};
use crate::redis::Renewed;

/// A beat and what was found out about its jobs.
struct Answering {
    session: SessionId,
    sequence: u64,
    gone: Vec<Lease>,
}

/// Renews until the pod has stopped.
pub async fn run(pod: Pod, mut beats: mpsc::Receiver<Spoken<Beat>>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            () = pod.stopped.cancelled() => return,
            read = beats.recv_many(&mut batch, BATCH) => if read == 0 { return },
        }
        if let Err(Undone::Stopped) = renew(&pod, batch.drain(..)).await {
            return;
        }
    }
}

async fn renew(pod: &Pod, beats: impl Iterator<Item = Spoken<Beat>>) -> Result<(), Undone> {
    let mut answering = Vec::new();
    let mut leases = Vec::new();
    for Spoken { session, said } in beats {
        leases.extend(said.running.into_iter().map(|lease| (answering.len(), lease)));
        answering.push(Answering { session, sequence: said.sequence, gone: Vec::new() });
    }
    let (groups, nowhere) = by_partition(pod, leases, |(_, lease)| *lease);
    for (beat, lease) in nowhere {
        answering[beat].gone.push(lease);
    }
    for (partition, leases) in groups {
        let partition = &pod.partitions[usize::from(partition)];
        for leases in leases.chunks(BATCH) {
            let only: Vec<Lease> = leases.iter().map(|(_, lease)| *lease).collect();
            // Looked up before the call: a start that is recorded after the renewal may be known here before its answer is.
            let starting: Vec<bool> = only.iter().map(|lease| pod.held.is_starting(lease.lease_id)).collect();
            let renewed = pod.until_done("renew", || partition.renew(&pod.name, pod.config.lease, &only)).await?;
            for (((beat, lease), renewed), starting) in leases.iter().zip(renewed).zip(starting) {
                match renewed {
                    Renewed::Running => {}
                    Renewed::Canceling { grace, reason } => cancel(pod, *lease, grace, reason),
                    // Accepted and not yet recorded as started is not gone: the start stage will say.
                    Renewed::NotYours if starting => {}
                    Renewed::NotYours => {
                        pod.held.remove(lease.lease_id);
                        answering[*beat].gone.push(*lease);
                    }
                }
            }
        }
    }
    for Answering { session, sequence, gone } in answering {
        if let Some(outbox) = pod.sessions.get(session) {
            let gone = gone.into_iter().map(wire).collect();
            outbox.send(Kind::BeatAck(proto::BeatAck { sequence, gone }));
        }
    }
    Ok(())
}
