//! Decides over a history: what was promised, and whether it was kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::history::{Micros, Record, Told, What};
use super::spans::{Span, spans};
use super::waits::idle_waits;
use crate::support::rules::may_run;

/// Between a runner's record of an end and the event of it there may be no order of less than this.
const CLOSE: Micros = 1_000;

/// A replica that has not been found out of order has what its primary had so long ago.
const REPLICATED: Micros = 1_000_000;

/// What a pod may take more than twice what it took before: buffers of a backlog, connections that end.
const MEMORY_SLACK: u64 = 32 * 1024;
const DESCRIPTORS_SLACK: u64 = 16;

/// What the checker found.
#[derive(Debug, Default)]
pub struct Verdict {
    pub jobs: u64,
    /// Those that a primary without a barrier may have taken something of along: of them it is only promised that they end, and leave
    /// nothing behind.
    pub in_doubt: u64,
    /// Published and acknowledged, and without an end.
    pub lost: u64,
    /// Ran at two places at once, or ended twice.
    pub doubled: u64,
    /// Ran on, or was done, after Rails was told that it was canceled or given up.
    pub done_after_cancel: u64,
    /// Written and not applied, or applied and not there any more.
    pub events_lost: u64,
    /// Events of a job in an order that no life has.
    pub order_broken: u64,
    /// Run or told of, and never published; at a runner that may not; under a lease that was used before or is not its own.
    pub invented: u64,
    pub leaked_keys: u64,
    /// Waited for long while a runner that may run them had a free slot and nothing went wrong.
    pub idle: u64,
    /// Pods that take much more at the end than before the faults.
    pub grown: u64,
    /// The longest time in which jobs waited and none began.
    pub longest_gap: Micros,
    /// The first few of all that is wrong, for people.
    pub wrong: Vec<String>,
}

const ENDS: [&str; 3] = ["job.finished", "job.failed", "job.canceled"];

// === impl Verdict ===

impl Verdict {
    pub fn of(history: &[Record]) -> Self {
        let mut verdict = Self::default();
        let mut history = history.to_vec();
        history.sort_by_key(|record| record.at); // stable: the stream's order stays
        let spans = spans(&history);
        let in_doubt = in_doubt(&history);
        verdict.in_doubt = in_doubt.len() as u64;
        verdict.check_lives(&history, &in_doubt);
        verdict.check_spans(&history, &spans, &in_doubt);
        verdict.check_events(&history, &in_doubt);
        verdict.check_gaps(&history);
        verdict.check_levels(&history);
        for wait in idle_waits(&history, &spans) {
            verdict.idle += 1;
            verdict.say(wait);
        }
        for record in &history {
            if let What::Left { key } = &record.what {
                verdict.leaked_keys += 1;
                verdict.say(format!("left behind: {key}"));
            }
        }
        verdict
    }

    pub fn is_clean(&self) -> bool {
        let counts = [self.lost, self.doubled, self.done_after_cancel, self.events_lost, self.order_broken];
        counts.into_iter().chain([self.invented, self.leaked_keys, self.idle, self.grown]).all(|count| count == 0)
    }

    fn say(&mut self, what: String) {
        if self.wrong.len() < 50 {
            self.wrong.push(what);
        }
    }

    /// Every published job ends, once, in an order that a life has, by the lease that had it last.
    fn check_lives(&mut self, history: &[Record], in_doubt: &HashSet<u64>) {
        let mut lives: BTreeMap<u64, Vec<&Told>> = BTreeMap::new();
        let (mut tried, mut published, mut leases) = (HashSet::new(), BTreeSet::new(), HashMap::new());
        // It may have jumped ahead between a take whose answer was lost and the next try, which then knows nothing of the first.
        let jumped = |record: &Record| matches!(&record.what, What::Fault { kind } if kind.starts_with("RedisClock"));
        let jumped = history.iter().any(jumped);
        for record in history {
            match &record.what {
                What::Tried { job, .. } => drop(tried.insert(*job)),
                What::Published { job } => drop(published.insert(*job)),
                What::Written(told) => lives.entry(told.job).or_default().push(told),
                _ => {}
            }
        }
        self.jobs = published.len() as u64;
        for job in &published {
            if !lives.get(job).is_some_and(|life| life.iter().any(|told| ENDS.contains(&&*told.kind))) {
                self.lost += 1;
                let life = lives.get(job).map(|life| life.iter().map(|told| &*told.kind).collect::<Vec<_>>());
                self.say(format!("job {job} was published and has no end: {life:?}"));
            }
        }
        for (job, life) in &lives {
            let kinds: Vec<&str> = life.iter().map(|told| told.kind.trim_start_matches("job.")).collect();
            if !tried.contains(job) {
                self.invented += 1;
                self.say(format!("job {job} was never published: {kinds:?}"));
            }
            if in_doubt.contains(job) {
                continue;
            }
            let ends = life.iter().filter(|told| ENDS.contains(&&*told.kind)).count();
            if ends > 1 {
                self.doubled += 1;
                self.say(format!("job {job} ended {ends} times: {kinds:?}"));
            }
            if !is_a_life(&kinds) {
                self.order_broken += 1;
                self.say(format!("job {job}: no life is {kinds:?}"));
            }
            let mut holder = "";
            for told in life {
                if told.kind == "job.assigned" {
                    holder = &told.lease;
                    let other = leases.insert(&told.lease, *job);
                    if other.is_some_and(|other| other == *job || !jumped) {
                        self.invented += 1;
                        self.say(format!("job {job}: lease {} was used before", told.lease));
                    }
                } else if ["job.running", "job.finished"].contains(&&*told.kind) && told.lease != holder {
                    self.invented += 1;
                    self.say(format!("job {job}: {} by lease {}, which is not {holder}", told.kind, told.lease));
                }
            }
        }
    }

    /// No job runs twice at once, where it may not, or after its end.
    fn check_spans(&mut self, history: &[Record], spans: &[Span], in_doubt: &HashSet<u64>) {
        let (mut jobs, mut managers, mut runners) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut over: HashMap<u64, Micros> = HashMap::new();
        let mut handed: HashSet<(u64, &str)> = HashSet::new();
        for record in history {
            match &record.what {
                What::Tried { job, data } => drop(jobs.insert(*job, data)),
                What::Manager { manager, runner } => {
                    managers.insert(&**manager, runner);
                    runners.insert(runner["id"].as_u64().expect("an id"), runner);
                }
                What::Written(told) if told.kind == "job.assigned" => {
                    let may = jobs.get(&told.job).zip(runners.get(&told.runner));
                    if !may.is_some_and(|(job, runner)| may_run(runner, &[], job)) {
                        self.invented += 1;
                        self.say(format!("job {} was pushed to runner {}, which may not", told.job, told.runner));
                    }
                }
                What::Applied(told) if ["job.canceled", "job.failed"].contains(&&*told.kind) => {
                    over.entry(told.job).or_insert(record.at);
                }
                What::Written(told) if told.kind == "job.running" => drop(handed.insert((told.job, &told.lease))),
                _ => {}
            }
        }
        let mut by_job: BTreeMap<u64, Vec<&Span>> = BTreeMap::new();
        for span in spans {
            let may = jobs.get(&span.job).zip(managers.get(&*span.manager));
            if !may.is_some_and(|(job, runner)| may_run(runner, &[], job)) {
                self.invented += 1;
                self.say(format!("job {} ran at {}, which may not", span.job, span.manager));
            }
            if in_doubt.contains(&span.job) {
                continue;
            }
            if !handed.contains(&(span.job, &*span.lease)) {
                self.invented += 1;
                self.say(format!("job {} ran under lease {}, of which no start is told", span.job, span.lease));
            }
            if let Some(over) = over.get(&span.job)
                && span.active.iter().any(|(_, to)| *to > over + CLOSE)
            {
                self.done_after_cancel += 1;
                self.say(format!("job {} ran on at {} after Rails was told that it is over", span.job, span.manager));
            }
            by_job.entry(span.job).or_default().push(span);
        }
        for (job, spans) in by_job {
            let pairs =
                spans.iter().enumerate().flat_map(|(at, one)| spans[at + 1..].iter().map(move |two| (one, two)));
            for (one, two) in pairs {
                let meet = one.active.iter().any(|(from, to)| two.active.iter().any(|(f, t)| from < t && f < to));
                if meet || one.lease == two.lease {
                    self.doubled += 1;
                    self.say(format!("job {job} ran twice at once: {one:?} and {two:?}"));
                }
            }
        }
    }

    /// Rails applied what was written, and nothing else.
    fn check_events(&mut self, history: &[Record], in_doubt: &HashSet<u64>) {
        let (mut written, mut applied) = (BTreeSet::new(), BTreeSet::new());
        for record in history {
            match &record.what {
                What::Written(told) | What::Applied(told) if in_doubt.contains(&told.job) => {}
                What::Written(told) => drop(written.insert(&told.id)),
                What::Applied(told) => drop(applied.insert(&told.id)),
                _ => {}
            }
        }
        let missed: Vec<_> = written.symmetric_difference(&applied).collect();
        self.events_lost = missed.len() as u64;
        for id in missed {
            let what = if written.contains(*id) { "written and not applied" } else { "applied and not there" };
            self.say(format!("event {id} was {what}"));
        }
    }

    /// What pods take comes back to its level. It is that of new ones, as pods do not live long in a run.
    fn check_levels(&mut self, history: &[Record]) {
        let levels = |wanted: bool| {
            history.iter().filter_map(move |record| match record.what {
                What::Level { at_end, memory, descriptors } if at_end == wanted => Some((memory, descriptors)),
                _ => None,
            })
        };
        let most = levels(false).reduce(|one, two| (one.0.max(two.0), one.1.max(two.1)));
        let Some((memory, descriptors)) = most else { return };
        for level in levels(true) {
            if level.0 > memory * 2 + MEMORY_SLACK || level.1 > descriptors * 2 + DESCRIPTORS_SLACK {
                self.grown += 1;
                self.say(format!(
                    "a pod takes {level:?} KiB and descriptors; before the faults {:?}",
                    (memory, descriptors)
                ));
            }
        }
    }

    fn check_gaps(&mut self, history: &[Record]) {
        let mut waiting = HashSet::new();
        let mut since = None;
        for record in history {
            match &record.what {
                What::Published { job } => {
                    waiting.insert(*job);
                    since.get_or_insert(record.at);
                }
                What::Applied(told) if told.kind == "job.requeued" => {
                    waiting.insert(told.job);
                    since.get_or_insert(record.at);
                }
                What::Began { job, .. } => {
                    if let Some(from) = since.take() {
                        self.longest_gap = self.longest_gap.max(record.at - from);
                    }
                    waiting.remove(job);
                    since = (!waiting.is_empty()).then_some(record.at);
                }
                What::Applied(told) if ENDS.contains(&&*told.kind) => {
                    waiting.remove(&told.job);
                    if waiting.is_empty() {
                        since = None;
                    }
                }
                _ => {}
            }
        }
    }
}

/// Whether these events, without `job.`, may be all there are of a job that has ended or goes on.
fn is_a_life(kinds: &[&str]) -> bool {
    let mut state = "new";
    for kind in kinds {
        state = match (state, *kind) {
            ("new", "queued") | ("assigned" | "running", "requeued") => "queued",
            ("queued", "assigned") => "assigned",
            ("assigned", "running") => "running",
            // One that was canceled before it was queued has no other event.
            ("running", "finished") | ("assigned" | "running", "failed") | (_, "canceled") if state != "over" => "over",
            (state, "stuck") => state,
            _ => return false,
        };
    }
    true
}

/// Jobs that were on their way at some time between shortly before a primary was lost and when another had taken over.
fn in_doubt(history: &[Record]) -> HashSet<u64> {
    let mut lost: Vec<(Micros, Micros)> = Vec::new();
    let mut ways: HashMap<u64, (Micros, Micros)> = HashMap::new();
    for record in history {
        let job = match &record.what {
            What::PrimaryLost => {
                lost.push((record.at.saturating_sub(REPLICATED), Micros::MAX));
                continue;
            }
            What::PrimaryReplaced => {
                lost.iter_mut().filter(|(_, to)| *to == Micros::MAX).for_each(|(_, to)| *to = record.at);
                continue;
            }
            What::Tried { job, .. } | What::Began { job, .. } | What::Ended { job, .. } => *job,
            What::Applied(told) => told.job,
            _ => continue,
        };
        ways.entry(job).or_insert((record.at, record.at)).1 = record.at;
    }
    let met = |(from, to): &(Micros, Micros)| lost.iter().any(|(lost, replaced)| lost < to && from < replaced);
    ways.into_iter().filter(|(_, way)| met(way)).map(|(job, _)| job).collect()
}
