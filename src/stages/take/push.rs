//! Jobs on their way to runners: free slots for jobs that are about to be queued, and what was taken or handed over.

use tracing::{debug, info};

use super::{GiveBack, Queueing, Slot, Take, wire};
use crate::clock::since_unix_ms;
use crate::grpc::SessionId;
use crate::proto::{self, router_message::Kind};
use crate::redis::{HandOver, TakenJob};
use crate::telemetry::labels::{self, CameAlong};
use crate::telemetry::metrics;

impl Take {
    /// A free slot that a new job may be handed to, if this pod knows of nothing else that the slot's class could take.
    fn slot_for(&mut self, partition: u16, job: &Queueing) -> Option<Slot> {
        if self.loading || self.pod.draining.is_cancelled() {
            return None;
        }
        let known = &self.lanes[usize::from(partition)];
        let liked = self.affinity.manager_of(&job.affinity);
        let found = self.fleet.slot_for(partition, &known.ids(&job.lanes), |lane| known.is_waiting(lane), liked)?;
        let (lane, rank, (session, runner_id, system_id)) = found;
        let offer = self.pod.offer(partition, session, runner_id, system_id);
        Some(Slot { session, hand_over: HandOver { job_id: job.job_id, lane: known.get(lane).0, rank, offer } })
    }

    pub(super) fn slots_for(&mut self, partition: u16, jobs: &[Queueing], all_or_none: bool) -> Vec<Slot> {
        let mut slots = Vec::with_capacity(jobs.len());
        for job in jobs {
            match self.slot_for(partition, job) {
                Some(slot) => slots.push(slot),
                None if all_or_none => {
                    slots.drain(..).for_each(|slot| self.fleet.release(slot.session));
                    break;
                }
                None => {}
            }
        }
        slots
    }

    /// What became of the slots that were found for new jobs.
    pub(super) fn queued(&mut self, partition: u16, slots: Vec<(Slot, Option<TakenJob>)>) {
        for (slot, job) in slots {
            let outcome = if job.is_some() { CameAlong::HandedOver } else { CameAlong::Unused };
            metrics().slots_sent_along_total.of(outcome).increment(1);
            match job {
                Some(job) => self.push(job, slot.session, partition),
                None => self.fleet.release(slot.session),
            }
        }
    }

    /// Pushes a taken job to the runner it was taken for.
    pub(super) fn push(&mut self, job: TakenJob, session: SessionId, partition: u16) {
        let capability = self.lanes[usize::from(partition)].capability(job.lane);
        let may_take = capability.is_some_and(|capability| self.fleet.may_take(session, job.lane.scope, capability));
        let outbox = self.pod.sessions.get(session).filter(|_| may_take && !self.pod.draining.is_cancelled());
        let lease = job.lease;
        let Some(outbox) = outbox else {
            let draining = self.pod.draining.is_cancelled();
            let why = if draining { labels::GaveBack::Drain } else { labels::GaveBack::SessionClosed };
            self.fleet.release(session);
            self.returns.push(GiveBack { lease, why, back_off: None });
            return;
        };
        self.pod.held.assign(lease, session, outbox.clone());
        let assign = proto::Assign {
            lease: Some(wire(lease)),
            payload: job.payload,
            accept_timeout_ms: self.pod.accept_timeout(outbox.door()).as_millis() as u32,
            traceparent: job.traceparent,
            attempt: job.attempt,
            timeout_ms: job.timeout.as_millis() as u64,
            queued_for_ms: since_unix_ms(job.queued_at_ms).as_millis() as u64,
        };
        if !outbox.send(Kind::Assign(assign)) {
            debug!(job_id = %lease.job_id, session = %session, "job not sent");
            // The end of a session gives its jobs back. One that goes on had a call, and that has gone.
            if !outbox.is_closed() {
                self.fleet.release(session);
                self.returns.push(GiveBack { lease, why: labels::GaveBack::SessionClosed, back_off: None });
            }
            return;
        }
        if let Some(manager) = self.fleet.assigned(session) {
            self.affinity.remember(job.affinity, manager);
        }
        metrics().jobs_assigned_total.increment(1);
        if job.attempt == 1 {
            metrics().publish_to_push_seconds.record(since_unix_ms(job.published_at_ms));
        }
        metrics().queue_wait_seconds.record(since_unix_ms(job.queued_at_ms));
        info!(job_id = %lease.job_id, lease_id = %lease.lease_id, attempt = job.attempt, session = %session,
            lane = %job.lane, "job pushed");
    }
}
