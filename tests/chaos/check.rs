//! Decides over a history: what was promised, and whether it was kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::history::{Micros, Record, Told, What};

/// A process that goes on after it stood still gets so long to notice that its lease is over.
const WAKES_UP: Micros = 300_000;
/// Between a runner's record of an end and the event of it there may be no order of less than this.
const CLOSE: Micros = 1_000;

/// What the checker found.
#[derive(Debug, Default)]
pub struct Verdict {
    pub jobs: u64,
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
    /// The longest time in which jobs waited and none began.
    pub longest_gap: Micros,
    /// The first few of all that is wrong, for people.
    pub wrong: Vec<String>,
}

/// A time in which a job's process ran.
#[derive(Debug, Clone)]
struct Span {
    job: u64,
    lease: String,
    manager: String,
    /// Its parts, without the time in which it stood still.
    active: Vec<(Micros, Micros)>,
}

const ENDS: [&str; 3] = ["job.finished", "job.failed", "job.canceled"];

// === impl Verdict ===

impl Verdict {
    pub fn of(history: &[Record]) -> Self {
        let mut verdict = Self::default();
        let mut history = history.to_vec();
        history.sort_by_key(|record| record.at); // stable: the stream's order stays
        let spans = spans(&history);
        verdict.check_lives(&history);
        verdict.check_spans(&history, &spans);
        verdict.check_events(&history);
        verdict.check_gaps(&history);
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
        counts.into_iter().chain([self.invented, self.leaked_keys]).all(|count| count == 0)
    }

    fn say(&mut self, what: String) {
        if self.wrong.len() < 50 {
            self.wrong.push(what);
        }
    }

    /// Every published job ends, once, in an order that a life has, by the lease that had it last.
    fn check_lives(&mut self, history: &[Record]) {
        let mut lives: BTreeMap<u64, Vec<&Told>> = BTreeMap::new();
        let (mut tried, mut published, mut leases) = (HashSet::new(), BTreeSet::new(), HashSet::new());
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
                    if !leases.insert(&told.lease) {
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
    fn check_spans(&mut self, history: &[Record], spans: &[Span]) {
        let (mut job_tags, mut manager_tags) = (HashMap::new(), HashMap::new());
        let mut over: HashMap<u64, Micros> = HashMap::new();
        let mut handed: HashSet<(u64, &str)> = HashSet::new();
        for record in history {
            match &record.what {
                What::Tried { job, tags } => drop(job_tags.insert(*job, tags)),
                What::Manager { manager, tags } => drop(manager_tags.insert(&**manager, tags)),
                What::Applied(told) if ["job.canceled", "job.failed"].contains(&&*told.kind) => {
                    over.entry(told.job).or_insert(record.at);
                }
                What::Written(told) if told.kind == "job.running" => drop(handed.insert((told.job, &told.lease))),
                _ => {}
            }
        }
        let mut by_job: BTreeMap<u64, Vec<&Span>> = BTreeMap::new();
        for span in spans {
            let may = job_tags.get(&span.job).zip(manager_tags.get(&*span.manager));
            if !may.is_some_and(|(needs, has)| needs.iter().all(|tag| has.contains(tag))) {
                self.invented += 1;
                self.say(format!("job {} ran at {}, which may not", span.job, span.manager));
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
    fn check_events(&mut self, history: &[Record]) {
        let (mut written, mut applied) = (BTreeSet::new(), BTreeSet::new());
        for record in history {
            match &record.what {
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

fn spans(history: &[Record]) -> Vec<Span> {
    let end = history.last().map_or(0, |record| record.at);
    let mut running_since: HashMap<(&str, u64, &str), Micros> = HashMap::new();
    let mut frozen: HashMap<&str, Vec<(Micros, Micros)>> = HashMap::new();
    for record in history {
        match &record.what {
            What::Frozen { manager } => frozen.entry(manager).or_default().push((record.at, Micros::MAX)),
            What::Thawed { manager } => {
                if let Some(last) = frozen.entry(manager).or_default().last_mut() {
                    last.1 = record.at + WAKES_UP;
                }
            }
            _ => {}
        }
    }
    let close = |key: (&str, u64, &str), from: Micros, to: Micros| {
        let mut parts = vec![(from, to)];
        for (stood, went_on) in frozen.get(key.0).into_iter().flatten() {
            parts = parts.into_iter().flat_map(|(f, t)| [(f, t.min(*stood)), (f.max(*went_on), t)]).collect();
            parts.retain(|(f, t)| f < t);
        }
        let owned = (key.0.to_owned(), key.1, key.2.to_owned());
        (owned, parts)
    };
    let mut spans = Vec::new();
    let mut push = |((manager, job, lease), active)| spans.push(Span { job, lease, manager, active });
    for record in history {
        match &record.what {
            What::Began { manager, job, lease } => {
                let key = (&**manager, *job, &**lease);
                if let Some(from) = running_since.insert(key, record.at) {
                    push(close(key, from, record.at)); // twice under one lease: the checker tells
                }
            }
            What::Ended { manager, job, lease } => {
                let key = (&**manager, *job, &**lease);
                if let Some(from) = running_since.remove(&key) {
                    push(close(key, from, record.at));
                }
            }
            What::Killed { manager } => {
                let of: Vec<_> = running_since.keys().filter(|key| key.0 == manager).copied().collect();
                for key in of {
                    let from = running_since.remove(&key).expect("just found");
                    push(close(key, from, record.at));
                }
            }
            _ => {}
        }
    }
    for (key, from) in running_since {
        push(close(key, from, end));
    }
    spans
}
