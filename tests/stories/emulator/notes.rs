//! What runners saw and did: the record that stories are judged by, beside that of Rails and the events.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use tokio::time::Instant;
use tonic::Code;

/// Of all processes of a story.
#[derive(Default)]
pub struct Notes(Mutex<Noted>);

/// What there is to read.
#[derive(Clone, Default)]
pub struct Noted {
    /// Calls that were made to the router.
    pub calls: u64,
    /// Those of them that were answered OK and empty.
    pub empty: u64,
    /// Those that failed.
    pub failed: BTreeMap<String, u64>,
    /// How often a breaker opened.
    pub breaker_openings: u64,
    /// How often an entry stopped asking for an hour.
    pub unhealthy: u64,
    /// How often Rails was asked for a job instead.
    pub rest_polls: u64,
    /// Jobs that were answered, and when.
    pub received: Vec<(u64, Instant)>,
    /// Jobs that were begun.
    pub runs: Vec<Run>,
    /// What the router promises and did not keep.
    pub broken_promises: Vec<String>,
}

/// A job at a runner.
#[derive(Debug, Clone)]
pub struct Run {
    pub job: u64,
    pub runner_id: u64,
    pub system_id: String,
    pub began: Instant,
    /// None: it still runs, or its process was killed.
    pub ended: Option<Instant>,
    /// Ended as Rails said so.
    pub aborted: bool,
}

// === impl Notes ===

impl Notes {
    pub fn read(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().expect("nobody panics with it")
    }

    pub(super) fn failed(&self, code: Code) {
        *self.read().failed.entry(format!("{code:?}")).or_default() += 1;
    }

    /// Notes that a job begins; what to say when it ends.
    pub(super) fn began(&self, job: u64, runner_id: u64, system_id: &str) -> usize {
        let began = Instant::now();
        let run = Run { job, runner_id, system_id: system_id.to_owned(), began, ended: None, aborted: false };
        let mut noted = self.read();
        noted.runs.push(run);
        noted.runs.len() - 1
    }

    pub(super) fn ended(&self, run: usize, aborted: bool) {
        let run = &mut self.read().runs[run];
        (run.ended, run.aborted) = (Some(Instant::now()), aborted);
    }
}
