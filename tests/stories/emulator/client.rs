//! One request for a job: to the router, or, where that is not there, to Rails.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use job_router::proto::gitlab::GetJobRequest;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};

use super::breaker::Breaker;
use super::connections::Connections;
use super::discovery::{self, Discovery};
use super::notes::Notes;
use super::rails::Rails;

/// What a process asks over the network.
pub(super) struct Reach {
    /// `GET /api/v4/runners/router/discovery` with a token.
    pub(super) discover: Arc<dyn Fn(String) -> BoxFuture<'static, Option<String>> + Send + Sync>,
    /// `GetJob`.
    pub(super) get_job: Arc<dyn Fn(Call) -> BoxFuture<'static, Result<Answer, Code>> + Send + Sync>,
}

/// What goes out.
pub(super) struct Call {
    pub(super) url: String,
    pub(super) token: String,
    pub(super) request_id: String,
    pub(super) job_request: Bytes,
}

/// What comes back.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) job_response: Bytes,
    pub(super) last_update: Option<String>,
    pub(super) request_id: Option<String>,
}

/// The client of a process, for all its entries.
pub(super) struct Client {
    reach: Reach,
    rails: Arc<Rails>,
    notes: Arc<Notes>,
    discovery: tokio::sync::Mutex<Discovery>,
    breaker: Mutex<Breaker>,
    system_id: String,
    requests: AtomicU64,
}

/// As whom an entry asks.
pub(super) struct Identity {
    pub(super) token: String,
    /// The cursor of the last answer.
    pub(super) last_update: Mutex<String>,
}

/// A job, as much of it as decides something here. What is missing or of another kind makes the answer unreadable.
#[derive(Debug, Deserialize)]
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) token: String,
    job_info: JobInfo,
    variables: Vec<Variable>,
}

#[derive(Debug, Deserialize)]
struct JobInfo {
    time_in_queue_seconds: f64,
}

#[derive(Debug, Deserialize)]
struct Variable {
    key: String,
    value: String,
}

// === impl Reach ===

impl Reach {
    /// A network in which these names stand for these addresses, and the discovery is at `admin`. Its connections end with `killed`.
    pub(super) fn network(admin: String, names: BTreeMap<String, Vec<SocketAddr>>, killed: CancellationToken) -> Self {
        let connections = Arc::new(Connections::new(names, killed));
        let discover = Arc::new(move |token: String| {
            let admin = admin.clone();
            let asked: BoxFuture<'static, _> = Box::pin(async move { discovery::ask(&admin, &token).await });
            asked
        });
        let get_job = Arc::new(move |call: Call| {
            let connections = connections.clone();
            let called: BoxFuture<'static, _> = Box::pin(async move { call.over(&connections).await });
            called
        });
        Self { discover, get_job }
    }
}

// === impl Call ===

impl Call {
    async fn over(&self, connections: &Connections) -> Result<Answer, Code> {
        let request = || {
            let mut request = Request::new(GetJobRequest { job_request: self.job_request.clone() });
            let bearer = format!("Bearer {}", self.token);
            for (name, value) in [
                ("authorization", bearer.as_str()),
                ("gitlab-agent-type", "runner"),
                ("x-request-id", &self.request_id),
            ] {
                request.metadata_mut().insert(name, value.parse().expect("ASCII"));
            }
            request
        };
        let answer = connections.get_job(&self.url, &self.token, request).await?;
        let header = |name| answer.metadata().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (last_update, request_id) = (header("x-gitlab-last-update"), header("x-request-id"));
        Ok(Answer { last_update, request_id, job_response: answer.into_inner().job_response })
    }
}

// === impl Client ===

impl Client {
    pub(super) fn new(reach: Reach, rails: Arc<Rails>, notes: Arc<Notes>, system_id: &str) -> Self {
        let system_id = system_id.to_owned();
        let (discovery, breaker, requests) = Default::default();
        Self { reach, rails, notes, discovery, breaker, system_id, requests }
    }

    /// Asks for a job; the job, and whether the answer was healthy.
    pub(super) async fn request_job(&self, identity: &Identity) -> (Option<Job>, bool) {
        let url = {
            let ask = (self.reach.discover)(identity.token.clone());
            self.discovery.lock().await.url(ask).await
        };
        let Some(url) = url else { return self.poll_rails() };
        if !self.breaker().allows(Instant::now()) {
            return self.poll_rails();
        }
        let call = self.call(url, identity);
        let request_id = call.request_id.clone();
        self.notes.read().calls += 1;
        let code = match (self.reach.get_job)(call).await {
            Ok(answer) => {
                self.breaker().succeeded();
                return self.take(answer, &request_id, identity);
            }
            Err(code) => code,
        };
        self.notes.failed(code);
        match code {
            Code::Unimplemented => {
                self.breaker().succeeded();
                self.discovery.lock().await.forget();
                self.poll_rails()
            }
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
                if self.breaker().failed(Instant::now()) {
                    self.notes.read().breaker_openings += 1;
                    return self.poll_rails();
                }
                (None, true)
            }
            _ => {
                self.breaker().succeeded();
                (None, false)
            }
        }
    }

    fn call(&self, url: String, identity: &Identity) -> Call {
        let said = json!({
            "info": {
                "name": "gitlab-runner", "version": "19.4.0", "executor": "shell", "shell": "bash",
                "features": {"trace_sections": true, "failure_reasons": ["script_failure"], "proxy": false},
                "config": {"gpus": ""}, "labels": {},
            },
            "token": identity.token, "system_id": self.system_id, "last_update": *identity.cursor(), "session": null,
        });
        let request_id = format!("{}-{}", self.system_id, self.requests.fetch_add(1, Ordering::Relaxed));
        Call { url, token: identity.token.clone(), request_id, job_request: said.to_string().into() }
    }

    fn take(&self, answer: Answer, request_id: &str, identity: &Identity) -> (Option<Job>, bool) {
        if answer.request_id.as_deref() != Some(request_id) {
            self.broken(format!("x-request-id {:?} in the answer to {request_id}", answer.request_id));
        }
        match answer.last_update {
            Some(cursor) => *identity.cursor() = cursor,
            None => self.broken(format!("no x-gitlab-last-update in the answer to {request_id}")),
        }
        if answer.job_response.is_empty() {
            self.notes.read().empty += 1;
            return (None, true);
        }
        match serde_json::from_slice::<Job>(&answer.job_response) {
            Ok(job) => {
                if job.job_info.time_in_queue_seconds < 0.0 {
                    self.broken(format!("job {} was queued for {:?}", job.id, job.job_info));
                }
                (Some(job), true)
            }
            Err(error) => {
                self.broken(format!("an unreadable job: {error}"));
                (None, false)
            }
        }
    }

    /// `POST /api/v4/jobs/request`.
    fn poll_rails(&self) -> (Option<Job>, bool) {
        self.notes.read().rest_polls += 1;
        (self.rails.request_job(), true)
    }

    fn broken(&self, promise: String) {
        self.notes.read().broken_promises.push(promise);
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().expect("nobody panics with it")
    }
}

// === impl Identity ===

impl Identity {
    fn cursor(&self) -> MutexGuard<'_, String> {
        self.last_update.lock().expect("nobody panics with it")
    }
}

// === impl Job ===

impl Job {
    /// How long it runs: its variable `RUNS_MS`.
    pub(super) fn runs_for(&self) -> Duration {
        let value = self.variables.iter().find(|variable| variable.key == "RUNS_MS").map(|variable| &variable.value);
        Duration::from_millis(value.and_then(|value| value.parse().ok()).expect("jobs of the fake Rails have it"))
    }
}
