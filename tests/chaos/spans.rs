//! When each job ran, and where.

use std::collections::HashMap;

use super::history::{Micros, Record, What};

/// A process that goes on after it stood still gets so long to notice that its lease is over.
const WAKES_UP: Micros = 300_000;

/// A time in which a job's process ran.
#[derive(Debug, Clone)]
pub struct Span {
    pub job: u64,
    pub lease: String,
    pub manager: String,
    /// Its parts, without the time in which it stood still.
    pub active: Vec<(Micros, Micros)>,
}

/// All of them.
pub fn spans(history: &[Record]) -> Vec<Span> {
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
