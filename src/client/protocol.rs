//! What each message, each moment and each ended job does: the protocol without its I/O.
//!
//! Arrives: messages of the router, the time, ends of executors. Leaves: [`Action`]s, in order, for the
//! driver to carry out. What the router must hear about free slots is not an action but
//! [`Protocol::slots_to_tell`]: asked once after a batch, so that many changes cost one message.
//!
//! Invariants:
//! 1. An executor runs only after `Start` (or `Welcome.resumed`), and never past its fence ([`super::fence`]).
//! 2. A job that is no longer this runner's is killed and reports nothing.
//! 3. `Finished` is sent when a job ends, again on every new session, and again when the router has answered
//!    more than [`REPEAT_BEATS`] later beats without its `FinishedAck`.
//! 4. A job that was handed back is held until the router answers: a `Start` that crossed the `Declined` says that
//!    it was recorded as running here, and then it runs, or after a kill its end is reported.
//! 5. While another session is being opened, no job is accepted: `Hello` has listed what there is.

use std::collections::VecDeque;
use std::time::Duration;

use super::Summary;
use super::executor::{Assignment, Outcome, Reason, Status};
use super::fence::{Beats, BootTime};
use super::held::{Held, Stage, Table};
use super::wire;
use crate::job::Lease;
use crate::proto::router_message::Kind as Down;
use crate::proto::runner_message::Kind as Up;
use crate::proto::{Assign, BeatAck, Hello, Slots, Welcome};

/// How long past its own limit a job is left to the executor, which may want to end it cleanly.
const OVERDUE_MS: u64 = 5_000;
/// So many more beats than the first after a `Finished` must be acknowledged before it is said again. Counted in beats
/// that are answered, not in time: while the router cannot reach Redis, it answers neither, and holds what it was told.
const REPEAT_BEATS: u64 = 2;

/// What the driver shall do.
#[derive(Debug)]
pub(super) enum Action {
    /// Send this on the session.
    Send(Up),
    /// Run the job; after a kill its executor has at most this long.
    Run(Assignment, Duration),
    /// Tell the executor that the job was canceled.
    Cancel(Lease),
    /// Tell the executor to stop at once.
    Kill(Lease),
    /// Open another session after this delay, and keep this one until the other is welcome.
    Move(Duration),
    /// End this session: it broke a rule, named here.
    HangUp(&'static str),
}

/// The protocol's state over all sessions.
#[derive(Debug)]
pub(super) struct Protocol {
    slots: u32,
    jobs: Table,
    session: Option<Session>,
    stopping: bool,
    /// Nothing may run any more, whatever starts.
    killed: bool,
    actions: VecDeque<Action>,
    summary: Summary,
}

/// One welcomed session.
#[derive(Debug)]
struct Session {
    beats: Beats,
    lease_ms: u64,
    assigns_seen: u64,
    /// What the router believes to be free.
    believed: u32,
    /// The pod said that it goes away.
    draining: bool,
}

// === impl Protocol ===

impl Protocol {
    /// Holds no job, has no session.
    pub(super) fn new(slots: u32) -> Self {
        let (jobs, actions) = (Table::default(), VecDeque::new());
        Self { slots, jobs, session: None, stopping: false, killed: false, actions, summary: Summary::default() }
    }

    /// The next thing to do.
    pub(super) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The count of free slots to send, if the router cannot know it.
    pub(super) fn slots_to_tell(&mut self) -> Option<Slots> {
        let free = self.free();
        let session = self.session.as_mut()?;
        if session.believed == free {
            return None;
        }
        session.believed = free;
        Some(Slots { free, assigns_seen: session.assigns_seen })
    }

    /// Fills in what a `Hello` says of slots and jobs.
    pub(super) fn hello(&self, hello: Hello) -> Hello {
        let running =
            self.jobs.iter().filter(|(_, held)| held.is_ours()).map(|(lease, _)| wire::lease(&lease)).collect();
        // Not `free()`: a draining session is left behind by the one that this opens.
        let slots = if self.stopping { 0 } else { self.jobs.free(self.slots) };
        Hello { slots, running, ..hello }
    }

    /// A session that was opened with `hello` is welcome; it replaces the one before.
    pub(super) fn welcomed(&mut self, welcome: &Welcome, hello: &Hello, now: BootTime) {
        self.session = Some(Session {
            beats: Beats::new(welcome.lease_ms, welcome.beat_interval_ms, now),
            lease_ms: u64::from(welcome.lease_ms),
            assigns_seen: 0,
            believed: hello.slots,
            draining: false,
        });
        self.summary.sessions += 1;
        self.jobs.values_mut().for_each(|held| held.listed_from = 1);
        for lease in self.jobs.leases_where(|held| matches!(held.stage, Stage::Finished { .. })) {
            self.report(&lease);
        }
        let resumed: Vec<_> =
            welcome.resumed.iter().filter_map(|r| Some((wire::lease_of(r.lease.as_ref())?, r))).collect();
        let kept: std::collections::HashSet<Lease> = resumed.iter().map(|(lease, _)| *lease).collect();
        for lease in self.jobs.leases_where(|held| !matches!(held.stage, Stage::Finished { .. })) {
            if !kept.contains(&lease) {
                self.lose(&lease, "not resumed");
            }
        }
        for (lease, resumed) in resumed {
            match resumed.canceling {
                true => self.cancel(&lease, resumed.cancel_grace_ms, now),
                false => self.start(&lease, now),
            }
        }
        if self.stopping {
            self.actions.push_back(Action::Send(wire::goodbye()));
        }
    }

    /// The session is gone. Jobs run on until their fences; of those handed back, the next `Welcome` says which started.
    pub(super) fn session_lost(&mut self) {
        self.session = None;
    }

    /// A message of the router, after the welcome.
    pub(super) fn received(
        &mut self,
        message: Down,
        now: BootTime,
        accept: impl FnOnce(&Assignment) -> Result<(), Reason>,
    ) {
        match message {
            Down::Assign(assign) => self.assigned(assign, now, accept),
            Down::Start(start) => self.with_lease(start.lease.as_ref(), |this, lease| this.start(lease, now)),
            Down::Cancel(cancel) => self.with_lease(cancel.lease.as_ref(), |this, lease| {
                this.cancel(lease, cancel.grace_ms, now);
            }),
            Down::Revoked(revoked) => self.with_lease(revoked.lease.as_ref(), |this, lease| {
                this.lose(lease, &revoked.reason);
            }),
            Down::FinishedAck(ack) => self.with_lease(ack.lease.as_ref(), |this, lease| {
                if matches!(this.jobs.get_mut(lease).map(|held| &held.stage), Some(Stage::Finished { .. })) {
                    this.jobs.remove(lease);
                }
            }),
            Down::BeatAck(ack) => self.beat_acknowledged(&ack),
            Down::Drain(drain) => {
                if let Some(session) = self.session.as_mut() {
                    session.draining = true;
                    self.actions.push_back(Action::Move(Duration::from_millis(drain.reconnect_after_ms.into())));
                }
            }
            Down::Scaling(scaling) => tracing::debug!(pending_jobs = scaling.pending_jobs, "backlog reported"),
            Down::Welcome(_) => self.actions.push_back(Action::HangUp("a second Welcome")),
        }
    }

    /// A moment has passed: beats, fences, graces and limits. Due every few milliseconds to a second.
    pub(super) fn tick(&mut self, now: BootTime) {
        let lapsed = |held: &Held| match &held.stage {
            Stage::Accepted { .. } => now >= held.fence,
            Stage::Running { cancel_by, overdue } => {
                now >= held.fence || now >= *overdue || cancel_by.is_some_and(|at| now >= at)
            }
            Stage::Dying { report } => report.is_some() && now >= held.fence,
            Stage::Finished { .. } => false,
        };
        for lease in self.jobs.leases_where(lapsed) {
            let Some(held) = self.jobs.get_mut(&lease) else { continue };
            match held.stage {
                Stage::Accepted { declined: true, .. } => self.jobs.remove(&lease),
                _ if now >= held.fence => {
                    self.summary.fenced += 1;
                    tracing::warn!(job_id = lease.job_id.0, lease_id = %lease.lease_id, "lease was not renewed in time");
                    self.lose(&lease, "fenced");
                }
                Stage::Running { cancel_by: Some(_), .. } => self.kill(&lease, Outcome::canceled()),
                _ => self.kill(&lease, Outcome::failed(1, Reason::JOB_EXECUTION_TIMEOUT)),
            }
        }
        let Some(session) = self.session.as_mut() else { return };
        if session.beats.silent(now) {
            self.actions.push_back(Action::HangUp("beats unanswered for a whole lease"));
        } else if let Some(sequence) = session.beats.send(now) {
            let ours = self.jobs.iter().filter(|(_, held)| held.is_ours());
            self.actions.push_back(Action::Send(wire::beat(sequence, ours.map(|(lease, _)| lease))));
        }
    }

    /// An executor has returned, or (`None`) was dropped or panicked.
    pub(super) fn ended(&mut self, lease: &Lease, outcome: Option<Outcome>) {
        let report = match self.jobs.get_mut(lease).map(|held| &mut held.stage) {
            Some(Stage::Running { .. }) => {
                Some(outcome.unwrap_or_else(|| Outcome::failed(1, Reason::RUNNER_SYSTEM_FAILURE)))
            }
            Some(Stage::Dying { report }) => report.take(),
            _ => return,
        };
        match report {
            Some(outcome) => self.finish(lease, outcome),
            None => self.jobs.remove(lease),
        }
    }

    /// Takes no more jobs, hands back those not started, and says goodbye.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
        for (lease, declined) in self.jobs.accepted_mut() {
            *declined = true;
            self.summary.declined += 1;
            self.actions.push_back(Action::Send(wire::declined(&lease, &Reason::SHUTTING_DOWN)));
        }
        if self.session.is_some() {
            self.actions.push_back(Action::Send(wire::goodbye()));
        }
    }

    /// Kills what still runs, and lets nothing start; the router hears that the runner, not the job, is to blame.
    pub(super) fn kill_all(&mut self) {
        self.killed = true;
        for lease in self.jobs.leases_where(|held| matches!(held.stage, Stage::Running { .. })) {
            self.kill(&lease, Outcome::failed(1, Reason::RUNNER_SYSTEM_FAILURE));
        }
    }

    /// How many jobs occupy a slot.
    pub(super) fn occupied(&self) -> usize {
        self.jobs.occupied()
    }

    /// Whether nothing runs and nothing will: after a kill that is so whatever starts.
    pub(super) fn is_still(&self) -> bool {
        let runs = |held: &Held| matches!(held.stage, Stage::Running { .. } | Stage::Dying { .. });
        self.occupied() == 0 || self.killed && !self.jobs.iter().any(|(_, held)| runs(held))
    }

    /// Whether no job is held and no outcome waits for its acknowledgement.
    pub(super) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// What was done so far.
    pub(super) fn summary(&self) -> Summary {
        let unacknowledged = self.jobs.iter().filter(|(_, held)| matches!(held.stage, Stage::Finished { .. })).count();
        Summary { unacknowledged: unacknowledged as u64, ..self.summary.clone() }
    }

    fn free(&self) -> u32 {
        let closed = self.stopping || self.session.as_ref().is_some_and(|session| session.draining);
        if closed { 0 } else { self.jobs.free(self.slots) }
    }

    fn with_lease(&mut self, lease: Option<&crate::proto::Lease>, act: impl FnOnce(&mut Self, &Lease)) {
        match wire::lease_of(lease) {
            Some(lease) => act(self, &lease),
            None => self.actions.push_back(Action::HangUp("a message without a valid lease")),
        }
    }

    fn assigned(&mut self, assign: Assign, now: BootTime, accept: impl FnOnce(&Assignment) -> Result<(), Reason>) {
        let free = self.free();
        let Some(session) = self.session.as_mut() else { return };
        session.assigns_seen += 1;
        session.believed = session.believed.saturating_sub(1);
        let (fence, listed_from) = (session.beats.fence(now), session.beats.next_sequence());
        let closed = self.stopping || session.draining;
        let Some(assignment) = wire::assignment(assign) else {
            return self.actions.push_back(Action::HangUp("an Assign without a valid lease"));
        };
        let lease = assignment.lease;
        let verdict = match self.jobs.of_job(lease.job_id) {
            // Repeated: the answer was lost, or is on its way.
            Some((held, Stage::Accepted { declined: false, .. })) if held == lease => {
                return self.actions.push_back(Action::Send(wire::accepted(&lease)));
            }
            Some((held, _)) if held == lease => return,
            // The router has given it a new lease, so the old one is over, and its process must go first.
            Some((held, stage)) if !matches!(stage, Stage::Finished { .. }) => {
                self.lose(&held, "assigned anew");
                Err(Reason::BUSY)
            }
            _ if closed => Err(Reason::SHUTTING_DOWN),
            _ if free == 0 => Err(Reason::BUSY),
            _ => accept(&assignment),
        };
        match verdict {
            Ok(()) => {
                self.jobs.insert(lease, Stage::Accepted { assignment, declined: false }, fence, listed_from);
                self.actions.push_back(Action::Send(wire::accepted(&lease)));
            }
            Err(reason) => {
                self.summary.declined += 1;
                tracing::info!(job_id = lease.job_id.0, lease_id = %lease.lease_id, %reason, "job declined");
                self.actions.push_back(Action::Send(wire::declined(&lease, &reason)));
            }
        }
    }

    /// Runs an accepted job. One that was handed back, too: a `Start` that crossed the `Declined` says that the
    /// job was recorded as running here before that came.
    fn start(&mut self, lease: &Lease, now: BootTime) {
        let Some(Held { stage: Stage::Accepted { assignment, .. }, fence, .. }) = self.jobs.get_mut(lease) else {
            return;
        };
        if now >= *fence {
            return; // the next tick drops it
        }
        if self.killed {
            return self.finish(lease, Outcome::failed(1, Reason::RUNNER_SYSTEM_FAILURE));
        }
        let timeout_ms = u64::try_from(assignment.timeout.as_millis()).unwrap_or(u64::MAX);
        let overdue = now.plus(timeout_ms).plus(OVERDUE_MS);
        let running = Stage::Running { cancel_by: None, overdue };
        if let Some(Stage::Accepted { assignment, .. }) = self.jobs.set(lease, running) {
            let lease_ms = self.session.as_ref().map_or(u64::MAX, |session| session.lease_ms);
            let kill_wait = Duration::from_millis(lease_ms / 8).min(Duration::from_secs(2));
            self.actions.push_back(Action::Run(assignment, kill_wait));
        }
    }

    fn cancel(&mut self, lease: &Lease, grace_ms: u32, now: BootTime) {
        match self.jobs.get_mut(lease).map(|held| &mut held.stage) {
            Some(Stage::Accepted { .. }) => self.finish(lease, Outcome::canceled()),
            Some(Stage::Running { cancel_by, .. }) => {
                // The report must be there within the grace, so the kill comes a quarter before its end.
                *cancel_by = Some(now.plus(u64::from(grace_ms - grace_ms / 4)));
                self.actions.push_back(Action::Cancel(*lease));
            }
            _ => {}
        }
    }

    fn kill(&mut self, lease: &Lease, report: Outcome) {
        if let Some(Stage::Running { .. }) = self.jobs.set(lease, Stage::Dying { report: Some(report) }) {
            self.actions.push_back(Action::Kill(*lease));
        }
    }

    /// The job is not this runner's any more.
    fn lose(&mut self, lease: &Lease, reason: &str) {
        let Some(held) = self.jobs.get_mut(lease) else { return };
        match &mut held.stage {
            Stage::Accepted { .. } | Stage::Finished { .. } => self.jobs.remove(lease),
            Stage::Dying { report } => *report = None,
            Stage::Running { .. } => {
                self.summary.lost += 1;
                tracing::warn!(job_id = lease.job_id.0, lease_id = %lease.lease_id, reason, "job lost");
                self.jobs.set(lease, Stage::Dying { report: None });
                self.actions.push_back(Action::Kill(*lease));
            }
        }
    }

    fn finish(&mut self, lease: &Lease, outcome: Outcome) {
        match outcome.status {
            Status::Success => self.summary.succeeded += 1,
            Status::Failed => self.summary.failed += 1,
            Status::Canceled => self.summary.canceled += 1,
        }
        self.jobs.set(lease, Stage::Finished { outcome, repeat_at: u64::MAX });
        self.report(lease);
    }

    /// Says how a job ended, if there is anybody to hear it.
    fn report(&mut self, lease: &Lease) {
        let (Some(session), Some(held)) = (&self.session, self.jobs.get_mut(lease)) else { return };
        if let Stage::Finished { outcome, repeat_at } = &mut held.stage {
            *repeat_at = session.beats.next_sequence() + REPEAT_BEATS;
            self.actions.push_back(Action::Send(wire::finished(lease, outcome)));
        }
    }

    fn beat_acknowledged(&mut self, ack: &BeatAck) {
        let Some(session) = self.session.as_mut() else { return };
        if let Some(sent) = session.beats.acknowledge(ack.sequence) {
            let fence = session.beats.fence(sent);
            for held in self.jobs.values_mut().filter(|held| held.listed_from <= ack.sequence) {
                held.fence = fence;
            }
        }
        let unheard =
            |held: &Held| matches!(held.stage, Stage::Finished { repeat_at, .. } if repeat_at <= ack.sequence);
        for lease in self.jobs.leases_where(unheard) {
            self.report(&lease);
        }
        for lease in ack.gone.iter().filter_map(|lease| wire::lease_of(Some(lease))) {
            // An end whose acknowledgement is on its way is gone too; it is repeated until that comes.
            if !matches!(self.jobs.get_mut(&lease).map(|held| &held.stage), Some(Stage::Finished { .. })) {
                self.lose(&lease, "gone");
            }
        }
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
