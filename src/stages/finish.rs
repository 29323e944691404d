//! finish: records how jobs ended, then acknowledges.
//!
//! In: what runners report. Out: `FinishedAck` for every report, also for jobs that are not the runner's: until it has one,
//! it repeats.

use tokio::sync::mpsc;
use tracing::info;

use super::{BATCH, GiveBack, Pod, Undone, between, by_partition, wire};
use crate::contract::Status;
use crate::grpc::{Finished, SessionId, Spoken};
use crate::proto::{self, router_message::Kind};
use crate::redis::Report;
use crate::redis::scripts::Outcome;
use crate::telemetry::labels::{Ended, GaveBack};
use crate::telemetry::metrics;

/// A report, whose it is, and where its acknowledgement goes.
type Reported = (SessionId, Finished);

/// Records ends until the pod has stopped.
pub async fn run(pod: Pod, mut finished: mpsc::Receiver<Spoken<Finished>>, give_back: mpsc::Sender<GiveBack>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            () = pod.stopped.cancelled() => return,
            read = finished.recv_many(&mut batch, BATCH) => if read == 0 { return },
        }
        let reports = batch.drain(..).map(|spoken| (spoken.session, spoken.said)).collect();
        let (groups, nowhere) = by_partition(&pod, reports, |(_, report): &Reported| report.lease);
        for report in nowhere {
            acknowledge(&pod, &report, false);
        }
        for (partition, reports) in groups {
            if let Err(Undone::Stopped) = finish(&pod, partition, reports, &give_back).await {
                return;
            }
        }
    }
}

async fn finish(
    pod: &Pod,
    number: u16,
    reported: Vec<Reported>,
    give_back: &mpsc::Sender<GiveBack>,
) -> Result<(), Undone> {
    let reports: Vec<Report> = reported.iter().map(|(_, report)| report_of(report)).collect();
    let partition = &pod.partitions[usize::from(number)];
    let (before, call) = (pod.seen(number), || partition.finish(pod.config.ended_ttl, &reports));
    let mut outcomes = pod.until_done("finish", call).await?;
    // Not known here, or not as its runner's: or has Redis lost it, and Rails published it again?
    let is_odd = |outcome: &Outcome| matches!(outcome, Outcome::Gone | Outcome::Stale);
    if outcomes.iter().any(is_odd) && pod.was_lost(number, &before).await? {
        outcomes = pod.until_done("finish", call).await?;
    }
    between("finish: before FinishedAck");
    for ((session, report), outcome) in reported.into_iter().zip(outcomes) {
        let lease = report.lease;
        if outcome == Outcome::Refused && pod.held.is_undelivered(lease, session) {
            // It ended what it was not told to start: nobody ran it as far as the record goes.
            let _ = give_back.send(GiveBack { lease, why: GaveBack::Declined, back_off: Some(session) }).await;
        } else if outcome == Outcome::Ok {
            pod.held.ended(lease, report_of(&report), pod.config.lease);
        } else {
            pod.held.remove(lease);
        }
        if outcome == Outcome::Ok {
            metrics().jobs_ended_total.of(label(report.status)).increment(1);
            info!(job_id = %lease.job_id, lease_id = %lease.lease_id, outcome = %report.status,
                exit_code = report.exit_code, reason = %report.failure_reason, "job finished");
        }
        acknowledge(pod, &(session, report), outcome == Outcome::Ok);
    }
    pod.tell_if_lost(number, &before).await
}

fn label(status: Status) -> Ended {
    match status {
        Status::Success => Ended::Success,
        Status::Failed => Ended::Failed,
        Status::Canceled => Ended::Canceled,
    }
}

fn report_of(report: &Finished) -> Report {
    Report {
        job_id: report.lease.job_id,
        lease_id: Some(report.lease.lease_id),
        status: report.status.as_str(),
        exit_code: report.exit_code,
        failure_reason: report.failure_reason.clone(),
    }
}

fn acknowledge(pod: &Pod, (session, report): &Reported, recorded: bool) {
    if let Some(outbox) = pod.sessions.get(*session) {
        outbox.send(Kind::FinishedAck(proto::FinishedAck { lease: Some(wire(report.lease)), recorded }));
    }
}
