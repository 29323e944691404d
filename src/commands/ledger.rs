//! What became of each job, by the event stream: what `bench` and `demo` believe.

use std::collections::HashMap;

use anyhow::Context;
use job_router::contract::{Event, EventType};
use job_router::redis::{Arg, Entry, Redis};

/// Entries of one read.
const PAGE: usize = 5_000;

/// The lives of jobs, read from one event stream.
pub(super) struct Ledger {
    redis: Redis,
    stream: String,
    after: String,
    lives: HashMap<u64, Life>,
    ended: u64,
    /// When the last job ended, in Unix ms of Redis' clock.
    pub(super) last_end_ms: u64,
}

/// What happened to one job.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Life {
    /// When it was first queued, in Unix ms of Redis' clock.
    pub(super) queued_at_ms: u64,
    /// When it was last taken for a runner, in Unix ms of Redis' clock.
    pub(super) assigned_at_ms: u64,
    /// How often it was pushed.
    pub(super) assigned: u32,
    /// How often it was started.
    pub(super) started: u32,
    /// How often it went back.
    pub(super) requeued: u32,
    /// How often it ended.
    pub(super) ended: u32,
    /// Whether it ended with success.
    pub(super) succeeded: bool,
    /// When it was started, in Unix ms of Redis' clock.
    pub(super) started_at_ms: u64,
}

// === impl Ledger ===

impl Ledger {
    /// Begins at the start of the stream.
    pub(super) fn new(redis: Redis, stream: String) -> Self {
        Self { redis, stream, after: "-".to_owned(), lives: HashMap::new(), ended: 0, last_end_ms: 0 }
    }

    /// Reads what is new.
    pub(super) async fn read(&mut self) -> anyhow::Result<()> {
        loop {
            let count = PAGE.to_string();
            let args = [self.stream.as_str(), &self.after, "+", "COUNT", &count].map(Arg::from);
            let page = self.redis.command("XRANGE", args).await?.into_entries()?;
            for entry in &page {
                self.add(entry)?;
            }
            match page.last() {
                Some(last) => self.after = format!("({}", last.id),
                None => return Ok(()),
            }
        }
    }

    /// How many entries the stream has.
    pub(super) async fn stream_len(&self) -> anyhow::Result<u64> {
        Ok(self.redis.command("XLEN", [self.stream.as_str().into()]).await?.as_u64()?)
    }

    /// How many jobs have ended.
    pub(super) fn ended(&self) -> u64 {
        self.ended
    }

    /// How many jobs are started and not ended.
    pub(super) fn running(&self) -> u64 {
        self.lives.values().filter(|life| life.started > 0 && life.ended == 0).count() as u64
    }

    /// The life of one job; empty when nothing is known of it.
    pub(super) fn life(&self, id: u64) -> Life {
        self.lives.get(&id).copied().unwrap_or_default()
    }

    fn add(&mut self, entry: &Entry) -> anyhow::Result<()> {
        let event = Event::parse(&entry.fields).map_err(|rejection| anyhow::anyhow!("{}", rejection.reason));
        let event = event.with_context(|| format!("event {} is malformed", entry.id))?;
        anyhow::ensure!(event.event_type != EventType::MessageRejected, "the router refused a message of ours");
        let Some(id) = event.id else { return Ok(()) };
        let life = self.lives.entry(id.0).or_default();
        match event.event_type {
            EventType::JobQueued => life.queued_at_ms = event.at_ms,
            EventType::JobAssigned => {
                life.assigned += 1;
                life.assigned_at_ms = event.at_ms;
            }
            EventType::JobRequeued => life.requeued += 1,
            EventType::JobRunning => {
                life.started += 1;
                life.started_at_ms = event.at_ms;
            }
            EventType::JobFinished | EventType::JobFailed | EventType::JobCanceled => {
                life.ended += 1;
                life.succeeded = event.rest.get("status").is_some_and(|status| status == "success");
                self.ended += u64::from(life.ended == 1);
                self.last_end_ms = event.at_ms;
            }
            _ => {}
        }
        Ok(())
    }
}
