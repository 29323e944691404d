//! start: records that a runner accepted its job, then tells it to go.
//!
//! In: leases that runners accepted. Out: `Start`, or `Revoked` when the job is not the runner's any more; batches form by
//! themselves while a call is under way.

use tokio::sync::mpsc;
use tracing::debug;

use super::{BATCH, Pod, Undone, between, by_partition, revoked, wire};
use crate::grpc::{Outbox, Spoken};
use crate::job::Lease;
use crate::proto::{self, router_message::Kind};
use crate::redis::Started;
use crate::telemetry::metrics;

/// Starts accepted jobs until the pod has stopped.
pub async fn run(pod: Pod, mut accepted: mpsc::Receiver<Spoken<Lease>>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            () = pod.stopped.cancelled() => return,
            read = accepted.recv_many(&mut batch, BATCH) => if read == 0 { return },
        }
        // A runner that accepts what it was not asked, or twice, is not answered: the lease it names decides nothing.
        let asked = batch.drain(..).filter_map(|Spoken { session, said: lease }| {
            let (outbox, waited) = pod.held.accept(lease, session)?;
            metrics().assign_to_accept_seconds.record(waited);
            Some((lease, outbox))
        });
        let (groups, _) = by_partition(&pod, asked.collect(), |(lease, _)| *lease);
        for (partition, jobs) in groups {
            if let Err(Undone::Stopped) = start(&pod, partition, jobs).await {
                return;
            }
        }
    }
}

async fn start(pod: &Pod, number: u16, jobs: Vec<(Lease, Outbox)>) -> Result<(), Undone> {
    let leases: Vec<Lease> = jobs.iter().map(|(lease, _)| *lease).collect();
    let (partition, before) = (&pod.partitions[usize::from(number)], pod.seen(number));
    let outcomes = pod.until_done("start", || partition.start(pod.config.lease, &leases)).await?;
    between("start: before Start");
    for ((lease, outbox), outcome) in jobs.into_iter().zip(outcomes) {
        match outcome {
            Started::Running(record) => {
                metrics().jobs_started_total.increment(1);
                pod.held.started(lease.lease_id, record);
                // If the session has just ended, the runner resumes the job as running on its next one.
                outbox.send(Kind::Start(proto::Start { lease: Some(wire(lease)) }));
            }
            Started::Not(outcome) => {
                debug!(job_id = %lease.job_id, lease_id = %lease.lease_id, outcome = outcome.word(), "start refused");
                pod.held.remove(lease);
                outbox.send(revoked(lease, "gone"));
            }
        }
    }
    pod.tell_if_lost(number, &before).await
}
