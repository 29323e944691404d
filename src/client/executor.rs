//! What a runner builder writes: how one job is run.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::job::{Lease, Malformed, is_reason_word};

/// Runs jobs. Shared by all jobs of a runner; `run` is called once for each job, in a task of its own.
///
/// ```
/// use job_router::client::{Executor, JobContext, Outcome};
///
/// /// Ends every job at once.
/// struct Nothing;
///
/// impl Executor for Nothing {
///     async fn run(&self, _: JobContext) -> Outcome {
///         Outcome::success()
///     }
/// }
/// ```
pub trait Executor: Send + Sync + 'static {
    /// Whether to take this job. Called before it is accepted, on the session's task: look, do not wait.
    /// A refused job goes to another runner.
    fn accept(&self, assignment: &Assignment) -> Result<(), Reason> {
        match serde_json::from_slice::<serde::de::IgnoredAny>(&assignment.payload) {
            Ok(_) => Ok(()),
            Err(_) => Err(Reason::UNSUPPORTED),
        }
    }

    /// Runs the job to its end. When the future returns, nothing of the job may be left running.
    ///
    /// It must watch [`JobContext::cancel`] and [`JobContext::kill`]. A future that has not returned 2 s
    /// after `kill` (an eighth of a lease, if that is less) is **dropped**; that too must stop the job. So
    /// must a panic, which is reported as `runner_system_failure`.
    fn run(&self, job: JobContext) -> impl Future<Output = Outcome> + Send;
}

/// One job pushed to this runner.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The job and the lease it is held by.
    pub lease: Lease,
    /// The job as it was published: a JSON object.
    pub payload: Bytes,
    /// Which take of the job this is, from 1. For logs.
    pub attempt: u32,
    /// W3C trace context of the publisher; empty if it gave none.
    pub traceparent: String,
    /// The longest it may run. Past it the job is killed and fails with `job_execution_timeout`, if
    /// the executor has not ended it 5 s later. [`Duration::MAX`]: no limit was set.
    pub timeout: Duration,
}

/// A job to run now.
#[derive(Debug)]
pub struct JobContext {
    /// The job.
    pub assignment: Assignment,
    /// Cancelled when the job was canceled: end it with [`Outcome::canceled`], soon and cleanly. Also cancelled with `kill`.
    pub cancel: CancellationToken,
    /// Cancelled when the job must stop at once: its lease is over, a grace is over, or the runner goes away.
    /// What the executor returns then is not reported.
    pub kill: CancellationToken,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// In one word.
    pub status: Status,
    /// The failing step's exit code; 0 on success.
    pub exit_code: i32,
    /// Why it failed; only with [`Status::Failed`].
    pub failure_reason: Option<Reason>,
}

/// How a job ended, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// All of it ran and succeeded.
    Success,
    /// It failed, or could not be run.
    Failed,
    /// It stopped because it was told to.
    Canceled,
}

/// A short word that says why: 1 to 64 of `[a-z0-9_]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason(Cow<'static, str>);

// === impl Outcome ===

impl Outcome {
    /// It succeeded.
    pub fn success() -> Self {
        Self { status: Status::Success, exit_code: 0, failure_reason: None }
    }

    /// It failed.
    pub fn failed(exit_code: i32, reason: Reason) -> Self {
        Self { status: Status::Failed, exit_code, failure_reason: Some(reason) }
    }

    /// It was stopped on request.
    pub fn canceled() -> Self {
        Self { status: Status::Canceled, exit_code: 0, failure_reason: None }
    }
}

// === impl Reason ===

impl Reason {
    /// A step's command failed. GitLab's word, as are the next two: `retry:when` in `.gitlab-ci.yml` knows them.
    pub const SCRIPT_FAILURE: Self = Self(Cow::Borrowed("script_failure"));
    /// The job ran longer than it may.
    pub const JOB_EXECUTION_TIMEOUT: Self = Self(Cow::Borrowed("job_execution_timeout"));
    /// The runner could not run the job to its end, which is not the job's fault.
    pub const RUNNER_SYSTEM_FAILURE: Self = Self(Cow::Borrowed("runner_system_failure"));
    /// The job cannot be run by this kind of runner.
    pub const UNSUPPORTED: Self = Self(Cow::Borrowed("unsupported"));
    /// There is no room.
    pub const BUSY: Self = Self(Cow::Borrowed("busy"));
    /// The runner, or the session, is ending.
    pub const SHUTTING_DOWN: Self = Self(Cow::Borrowed("shutting_down"));

    /// A reason of one's own: 1 to 64 of `[a-z0-9_]`.
    pub fn new(word: &str) -> Result<Self, Malformed> {
        match is_reason_word(word) {
            true => Ok(Self(Cow::Owned(word.to_owned()))),
            false => Err(Malformed("must be 1 to 64 of [a-z0-9_]")),
        }
    }

    /// The word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Status ===

impl Status {
    /// The word for logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }
}
