//! What Redis holds of the job, and what each script does with it: the part that the real scripts are held against.
//!
//! Written down a third time, beside `lua/` and the table in `flow`, because here rules can be left out.

use job_router::flow::State;

use super::rules::{Bounds, Compare, Rules};

/// One taking of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lease {
    /// Never used twice, from 1.
    pub id: u8,
    /// The attempt that Redis counted; a failover sets the count back.
    pub attempt: u8,
}

/// How a job ended, as Rails is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    Success,
    Canceled,
    Lost,
    Undeliverable,
    /// Rails said so itself.
    Told,
}

/// The record of an end: the outcome, and the lease whose runner reported it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct End {
    pub outcome: Outcome,
    pub by: Option<Lease>,
}

/// Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Record {
    /// Nothing before it was published.
    pub state: Option<State>,
    /// The last lease it was taken under; stays when the job is queued again.
    pub lease: Option<Lease>,
    /// Nothing before the first start; stays when the job is queued again.
    pub beat: Option<u8>,
    pub starts: u8,
    pub failures: u8,
    pub end: Option<End>,
}

/// A call of a script for the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// `fan_out`
    Publish,
    /// `take`, with a lease id.
    Take(u8),
    Start(Lease),
    Renew(Lease),
    GiveBack(Lease),
    /// With the beat that the caller saw.
    Expire(Lease, Option<u8>),
    Finish(Lease),
    FinishByRails,
    Cancel,
    /// `bury` of the pod that holds it.
    PodGone,
}

/// What a script answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    Ok,
    Gone,
    Stale,
    Refused,
    Known,
    Taken(Lease),
    /// `take` found nothing, `bury` gave nothing back.
    Nothing,
    Canceling,
    Requeued,
    Failed,
    Canceled,
}

/// What a call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    pub answer: Answer,
    /// The last word of the event that Rails is told.
    pub told: Option<&'static str>,
    /// Whether a lease was obeyed that is not the one in the record.
    pub obeyed_another: bool,
}

// === impl Record ===

impl Record {
    /// Calls a script.
    pub fn call(&mut self, rules: &Rules, bounds: &Bounds, call: Call) -> Done {
        let holder = self.lease.filter(|_| !matches!(self.state, None | Some(State::Ended)));
        let before = *self;
        let (answer, told) = match call {
            Call::Publish => self.publish(rules),
            Call::Take(id) => self.take(id),
            Call::Start(lease) => self.start(rules, lease),
            Call::Renew(lease) => self.renew(rules, lease),
            Call::GiveBack(lease) => self.give_back(rules, bounds, lease),
            Call::Expire(lease, beat) => self.expire(rules, bounds, lease, beat),
            Call::Finish(lease) => self.finish(rules, lease),
            Call::FinishByRails => self.finish_by_rails(),
            Call::Cancel => self.cancel(),
            Call::PodGone => match self.state {
                Some(State::Assigned) => self.requeue(Answer::Ok),
                _ => (Answer::Nothing, None),
            },
        };
        let finished = matches!(call, Call::Finish(lease) if Some(lease.id) != holder.map(|lease| lease.id));
        Done { answer, told, obeyed_another: finished && *self != before }
    }

    /// The lease that holds the job now.
    pub fn holder(&self) -> Option<Lease> {
        self.lease.filter(|_| matches!(self.state, Some(State::Assigned | State::Running | State::Canceling)))
    }

    fn is_live(&self) -> bool {
        !matches!(self.state, None | Some(State::Ended))
    }

    fn holds(&self, rules: &Rules, lease: Lease) -> bool {
        self.lease.is_some_and(|held| match rules.compare {
            Compare::Unique => held.id == lease.id,
            Compare::Counter => held.attempt == lease.attempt,
            Compare::Order => held.attempt <= lease.attempt,
            Compare::Nothing => true,
        })
    }

    fn publish(&mut self, rules: &Rules) -> (Answer, Option<&'static str>) {
        match self.state {
            None => {}
            Some(State::Ended) if !rules.ended_kept => {}
            Some(_) => return (Answer::Known, None),
        }
        *self = Self { state: Some(State::Queued), ..Self::default() };
        (Answer::Ok, Some("queued"))
    }

    fn take(&mut self, id: u8) -> (Answer, Option<&'static str>) {
        match (self.state, self.lease) {
            // Repeated: its answer was lost.
            (Some(State::Assigned), Some(lease)) if lease.id == id => (Answer::Taken(lease), None),
            (Some(State::Queued), last) if last.is_none_or(|last| last.id < id) => {
                let lease = Lease { id, attempt: last.map_or(0, |last| last.attempt) + 1 };
                self.state = Some(State::Assigned);
                self.lease = Some(lease);
                (Answer::Taken(lease), Some("assigned"))
            }
            _ => (Answer::Nothing, None),
        }
    }

    fn start(&mut self, rules: &Rules, lease: Lease) -> (Answer, Option<&'static str>) {
        if !self.is_live() {
            // A start that does not look finds nothing to refuse it.
            return if rules.start_looks_at_state { (Answer::Gone, None) } else { (Answer::Ok, None) };
        }
        if !self.holds(rules, lease) || self.state == Some(State::Queued) {
            return (Answer::Stale, None);
        }
        match self.state {
            Some(State::Canceling) => (Answer::Refused, None),
            Some(State::Assigned) => {
                self.state = Some(State::Running);
                self.beat = Some(0);
                self.starts += 1;
                (Answer::Ok, Some("running"))
            }
            _ => (Answer::Ok, None),
        }
    }

    fn renew(&mut self, rules: &Rules, lease: Lease) -> (Answer, Option<&'static str>) {
        if !self.is_live() {
            return (Answer::Gone, None);
        }
        let held = self.holds(rules, lease);
        match self.state {
            Some(State::Running | State::Canceling) if held => {
                self.beat = self.beat.map(|beat| beat + 1);
                let running = self.state == Some(State::Running);
                (if running { Answer::Ok } else { Answer::Canceling }, None)
            }
            _ => (Answer::Stale, None),
        }
    }

    fn give_back(&mut self, rules: &Rules, bounds: &Bounds, lease: Lease) -> (Answer, Option<&'static str>) {
        if !self.is_live() {
            return (Answer::Gone, None);
        }
        if !self.holds(rules, lease) {
            return (Answer::Stale, None);
        }
        match self.state {
            Some(State::Queued) => (Answer::Ok, None),
            Some(State::Assigned) => {
                self.failures += 1;
                if self.failures > bounds.give_back_limit {
                    return self.close(Answer::Ok, Outcome::Undeliverable, None);
                }
                self.requeue(Answer::Ok)
            }
            _ => (Answer::Refused, None),
        }
    }

    fn expire(
        &mut self,
        rules: &Rules,
        bounds: &Bounds,
        lease: Lease,
        beat: Option<u8>,
    ) -> (Answer, Option<&'static str>) {
        if !self.is_live() {
            return (Answer::Gone, None);
        }
        let moved = rules.expire_looks_at_beat && self.beat != beat;
        if !self.holds(rules, lease) || self.state == Some(State::Queued) || moved {
            return (Answer::Stale, None);
        }
        match self.state {
            Some(State::Canceling) => self.close(Answer::Canceled, Outcome::Canceled, None),
            Some(State::Running) if self.starts >= bounds.max_attempts => {
                self.close(Answer::Failed, Outcome::Lost, None)
            }
            _ => self.requeue(Answer::Requeued),
        }
    }

    fn finish(&mut self, rules: &Rules, lease: Lease) -> (Answer, Option<&'static str>) {
        if !self.is_live() {
            let by = self.end.and_then(|end| end.by);
            let ours = by.is_some_and(|by| by.id == lease.id);
            let told = (ours && !rules.finish_idempotent).then_some("finished");
            return (if ours { Answer::Ok } else { Answer::Gone }, told);
        }
        if !self.holds(rules, lease) || self.state == Some(State::Queued) {
            return (Answer::Stale, None);
        }
        match self.state {
            Some(State::Assigned) => (Answer::Refused, None),
            Some(State::Canceling) => self.close(Answer::Ok, Outcome::Canceled, Some(lease)),
            _ => self.close(Answer::Ok, Outcome::Success, Some(lease)),
        }
    }

    fn finish_by_rails(&mut self) -> (Answer, Option<&'static str>) {
        match self.state {
            None => {
                *self =
                    Self { state: Some(State::Ended), end: Some(End { outcome: Outcome::Told, by: None }), ..*self };
                (Answer::Gone, None)
            }
            Some(State::Ended) => (Answer::Gone, None),
            Some(State::Canceling) => self.close(Answer::Ok, Outcome::Canceled, None),
            Some(_) => self.close(Answer::Ok, Outcome::Told, None),
        }
    }

    fn cancel(&mut self) -> (Answer, Option<&'static str>) {
        match self.state {
            Some(State::Ended) => (Answer::Gone, None),
            None | Some(State::Queued | State::Assigned) => self.close(Answer::Ok, Outcome::Canceled, None),
            Some(State::Running | State::Canceling) => {
                self.state = Some(State::Canceling);
                (Answer::Ok, None)
            }
        }
    }

    fn requeue(&mut self, answer: Answer) -> (Answer, Option<&'static str>) {
        self.state = Some(State::Queued);
        (answer, Some("requeued"))
    }

    /// Only the record of the end is left.
    fn close(&mut self, answer: Answer, outcome: Outcome, by: Option<Lease>) -> (Answer, Option<&'static str>) {
        *self = Self { state: Some(State::Ended), end: Some(End { outcome, by }), ..Self::default() };
        let word = match outcome {
            Outcome::Success | Outcome::Told => "finished",
            Outcome::Canceled => "canceled",
            Outcome::Lost | Outcome::Undeliverable => "failed",
        };
        (answer, Some(word))
    }
}
