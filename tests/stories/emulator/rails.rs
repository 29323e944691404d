//! A fake Rails: publishes jobs, answers what runners tell it, and tells the router.
//!
//! Runners reach it by a call in place of HTTP: its answers are the status codes and headers of the REST API. Of a job the first
//! acknowledgement wins. A poll (`POST /api/v4/jobs/request`) is counted by the one who makes it, and given a job only when a story
//! says so.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use job_router::redis::{Arg, Redis};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::client::Job;
use crate::support::pods::Installation;

/// Between two tries to append a message.
const RETRY: Duration = Duration::from_millis(50);

/// The server, and its table of jobs.
pub struct Rails {
    jobs: Mutex<BTreeMap<u64, Record>>,
    outbox: mpsc::UnboundedSender<(&'static str, Value)>,
    answers_polls: AtomicBool,
    publisher: Option<AbortHandle>,
}

/// A job.
#[derive(Debug, Clone)]
pub struct Record {
    pub published: Instant,
    payload: Value,
    pub state: State,
    /// Who acknowledged it: `runner_id`, `system_id`.
    pub runner: Option<(u64, String)>,
    /// Acknowledgements that were refused, as another was first.
    pub refused: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Pending,
    Running,
    Success,
    /// The runner is to be told.
    Canceling,
    Canceled,
}

/// An answer to a `PUT` or a `PATCH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Update {
    pub(super) status: u16,
    /// The header `Job-Status: canceled`.
    pub(super) canceled: bool,
}

/// Who speaks of a job.
pub(super) struct Caller<'a> {
    pub(super) job_token: &'a str,
    pub(super) runner_id: u64,
    pub(super) system_id: &'a str,
}

// === impl Rails ===

impl Rails {
    /// The Rails of an installation. It appends what it has to say in order, each until Redis has it.
    pub fn start(installation: &Installation) -> Arc<Self> {
        let (outbox, messages) = mpsc::unbounded_channel();
        let publish = publish_all(installation.redis.clone(), installation.config.inbox_stream.clone(), messages);
        let publisher = Some(tokio::spawn(publish).abort_handle());
        Arc::new(Self { jobs: Mutex::default(), outbox, answers_polls: AtomicBool::new(false), publisher })
    }

    /// One that nobody reads from.
    pub(super) fn alone() -> Arc<Self> {
        let (outbox, _) = mpsc::unbounded_channel();
        Arc::new(Self { jobs: Mutex::default(), outbox, answers_polls: AtomicBool::new(false), publisher: None })
    }

    /// Publishes a job that runs for so long, at a runner with these tags.
    pub fn publish(&self, id: u64, tags: &[&str], runs: Duration) {
        let payload = payload(id, runs);
        let data = json!({"id": id, "project_id": 1, "namespace_ids": [1], "tags": tags, "payload": payload});
        let (published, state) = (Instant::now(), State::Pending);
        self.jobs().insert(id, Record { published, payload, state, runner: None, refused: 0 });
        self.tell("job.pending", data);
    }

    /// Somebody cancels a job.
    pub fn cancel(&self, id: u64) {
        {
            let mut jobs = self.jobs();
            let job = jobs.get_mut(&id).expect("it was published");
            job.state = match job.state {
                State::Pending => State::Canceled,
                State::Running => State::Canceling,
                ended => ended,
            };
        }
        self.tell("job.canceled", json!({"id": id, "tenant": "ns:1"}));
    }

    /// From now on it gives its pending jobs to runners that poll.
    pub fn answer_polls(&self) {
        self.answers_polls.store(true, Ordering::Relaxed);
    }

    /// Its table.
    pub fn records(&self) -> BTreeMap<u64, Record> {
        self.jobs().clone()
    }

    /// How many jobs have ended, well or not.
    pub fn ended(&self) -> usize {
        self.jobs().values().filter(|job| matches!(job.state, State::Success | State::Canceled)).count()
    }

    /// A poll.
    pub(super) fn request_job(&self) -> Option<Job> {
        if !self.answers_polls.load(Ordering::Relaxed) {
            return None;
        }
        let jobs = self.jobs();
        let pending = jobs.values().find(|job| job.state == State::Pending)?;
        Some(serde_json::from_value(pending.payload.clone()).expect("it is a job"))
    }

    /// A job as the router hands it on.
    pub(super) fn payload(&self, id: u64) -> Bytes {
        self.jobs()[&id].payload.to_string().into()
    }

    /// `PUT /api/v4/jobs/:id` with `state=running`.
    pub(super) fn acknowledge(&self, id: u64, by: &Caller<'_>) -> Update {
        self.update(id, by, |job| match job.state {
            State::Pending => {
                (job.state, job.runner) = (State::Running, Some((by.runner_id, by.system_id.to_owned())));
                let running = json!({"id": id, "tenant": "ns:1", "runner_id": by.runner_id, "system_id": by.system_id});
                (Update::OK, Some(("job.running", running)))
            }
            State::Canceled => (Update::CANCELED, None),
            State::Running | State::Canceling | State::Success => {
                job.refused += 1;
                (Update::FORBIDDEN, None)
            }
        })
    }

    /// `PATCH /api/v4/jobs/:id/trace`.
    pub(super) fn patch_trace(&self, id: u64, by: &Caller<'_>) -> Update {
        self.update(id, by, |job| match job.state {
            _ if !job.is_with(by) => (Update::FORBIDDEN, None),
            State::Running => (Update::OK, None),
            State::Canceling => {
                job.state = State::Canceled;
                (Update::CANCELED, Some(finished(id, "canceled")))
            }
            State::Canceled => (Update::CANCELED, None),
            State::Pending | State::Success => (Update::FORBIDDEN, None),
        })
    }

    /// `PUT /api/v4/jobs/:id` with `state=success`.
    pub(super) fn succeed(&self, id: u64, by: &Caller<'_>) -> Update {
        self.update(id, by, |job| match job.state {
            State::Running if job.is_with(by) => {
                job.state = State::Success;
                (Update::OK, Some(finished(id, "success")))
            }
            State::Canceling if job.is_with(by) => {
                job.state = State::Canceled;
                (Update::CANCELED, Some(finished(id, "canceled")))
            }
            _ => (Update::FORBIDDEN, None),
        })
    }

    /// What is answered, and what the router is told.
    fn update(
        &self,
        id: u64,
        by: &Caller<'_>,
        apply: impl FnOnce(&mut Record) -> (Update, Option<(&'static str, Value)>),
    ) -> Update {
        let mut jobs = self.jobs();
        let Some(job) = jobs.get_mut(&id).filter(|job| job.payload["token"] == by.job_token) else {
            return Update::FORBIDDEN;
        };
        let (answer, told) = apply(job);
        // With the table locked: what is told of a job stands in the inbox in its order.
        if let Some((kind, data)) = told {
            self.tell(kind, data);
        }
        answer
    }

    fn tell(&self, kind: &'static str, data: Value) {
        let _ = self.outbox.send((kind, data)); // refused where nobody reads
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<u64, Record>> {
        self.jobs.lock().expect("nobody panics with it")
    }
}

impl Drop for Rails {
    fn drop(&mut self) {
        if let Some(publisher) = &self.publisher {
            publisher.abort();
        }
    }
}

async fn publish_all(redis: Redis, inbox: String, mut messages: mpsc::UnboundedReceiver<(&'static str, Value)>) {
    while let Some((kind, data)) = messages.recv().await {
        let data = data.to_string();
        let args = [inbox.as_str(), "*", "v", "1", "type", kind, "data", &data].map(Arg::from);
        // What was applied and not answered is appended again: the contract allows it.
        while redis.command("XADD", args.clone()).await.is_err() {
            sleep(RETRY).await;
        }
    }
}

fn finished(id: u64, status: &str) -> (&'static str, Value) {
    ("job.finished", json!({"id": id, "tenant": "ns:1", "status": status}))
}

/// A job as Rails answers it.
fn payload(id: u64, runs: Duration) -> Value {
    let nobody = "0".repeat(40);
    json!({
        "id": id, "token": format!("job-token-{id}"), "allow_git_fetch": false,
        "job_info": {
            "name": "t", "stage": "test", "project_id": 1, "project_name": "p", "time_in_queue_seconds": 0.01,
            "project_jobs_running_on_instance_runners_count": "0", "queue_size": 1, "queue_depth": 1,
        },
        "git_info": {
            "repo_url": "http://127.0.0.1/g/p.git", "ref": "main", "sha": nobody, "before_sha": nobody, "ref_type": "branch",
            "refspecs": [], "depth": 0,
        },
        "runner_info": {"timeout": 60},
        "variables": [
            {"key": "GIT_STRATEGY", "value": "none", "public": true, "masked": false},
            {"key": "RUNS_MS", "value": runs.as_millis().to_string(), "public": true, "masked": false},
        ],
        "steps": [{"name": "script", "script": ["echo hi"], "timeout": 60, "when": "on_success", "allow_failure": false}],
        "image": {}, "services": [], "artifacts": [], "cache": [], "credentials": [], "dependencies": [],
        "features": {"trace_sections": true},
    })
}

// === impl Record ===

impl Record {
    fn is_with(&self, by: &Caller<'_>) -> bool {
        self.runner.as_ref().is_some_and(|(id, system_id)| *id == by.runner_id && system_id == by.system_id)
    }
}

// === impl Update ===

impl Update {
    const OK: Self = Self { status: 200, canceled: false };
    const FORBIDDEN: Self = Self { status: 403, canceled: false };
    const CANCELED: Self = Self { status: 200, canceled: true };

    /// Whether the runner stops the job.
    pub(super) fn aborts(self) -> bool {
        self.canceled || matches!(self.status, 403 | 404)
    }
}
