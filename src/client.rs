//! A runner's side of the native door: a library to build a runner on.
//!
//! Write an [`Executor`], which runs one job; [`run`] does the rest: it keeps a session with the router,
//! takes as many jobs as there are slots, keeps their leases, stops a job whose lease it cannot keep,
//! resumes its jobs on another pod after a lost connection, and repeats every outcome until the router has
//! recorded it. [`shell`] is the executor of the reference runner (`job-router runner`).
//!
//! ```no_run
//! use job_router::client::{self, Executor, JobContext, Options, Outcome, Shutdown};
//!
//! struct Print;
//!
//! impl Executor for Print {
//!     async fn run(&self, job: JobContext) -> Outcome {
//!         println!("job {} of {} bytes", job.assignment.lease.job_id, job.assignment.payload.len());
//!         Outcome::success()
//!     }
//! }
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let options = Options::new("http://127.0.0.1:7460", "glrt-secret".into(), "my-runner-1".parse()?, 4);
//! let summary = client::run(options, Print, Shutdown::default()).await?;
//! println!("{} jobs succeeded", summary.succeeded);
//! # Ok(())
//! # }
//! ```
//!
//! What it promises the router: a job runs only after `Start`, never past its lease, and its outcome is
//! reported once its processes are gone. What it promises the executor: every job that was started gets
//! its `cancel` or `kill` in time; nothing is started after [`Shutdown::stop`] but jobs whose `Start` was on the way.

mod backoff;
mod connect;
mod driver;
mod executor;
mod fence;
mod held;
mod jobs;
mod protocol;
pub mod shell;
mod wire;

#[cfg(test)]
mod session_tests;

use std::time::Duration;

use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

pub use executor::{Assignment, Executor, JobContext, Outcome, Reason, Status};

use crate::job::Name;
use crate::tags::TagSet;

/// The most slots of one runner manager: what `Hello` may announce.
pub const SLOTS_MAX: u32 = 10_000;

/// Who this runner is and where its router is.
#[derive(Debug, Clone)]
pub struct Options {
    /// The router's native door, `http://host:port` or `https://host:port`.
    pub url: String,
    /// The runner's token. Never logged.
    pub token: SecretString,
    /// Which manager of the runner this is: stable over restarts, different on every machine.
    pub system_id: Name,
    /// The software's version, for people; cut to 64 characters of ASCII.
    pub version: String,
    /// Jobs at once, at most [`SLOTS_MAX`].
    pub slots: u32,
    /// What it can do, matched against a job's `requires`.
    pub features: TagSet,
    /// The certificates (PEM) that the router's must be signed by; the system's own if absent. Only for `https://`.
    pub ca_pem: Option<Vec<u8>>,
    /// The certificate (PEM) to show to the router, and its private key. Only for `https://`.
    pub identity_pem: Option<(Vec<u8>, SecretString)>,
    /// How long running jobs may go on after [`Shutdown::stop`].
    pub shutdown_grace: Duration,
}

/// Two ways to end a runner; clones share their tokens.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Go away in good order: take no more jobs, hand back those not started, and let the others end within
    /// the grace; then as `kill`.
    pub stop: CancellationToken,
    /// Go away now: kill the jobs, let none start, report them as failed with `runner_system_failure`, wait at most 5 s
    /// for the acknowledgements and for what becomes of jobs handed back.
    pub kill: CancellationToken,
}

/// What a runner did in its life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Sessions welcomed.
    pub sessions: u64,
    /// Jobs that ended in success.
    pub succeeded: u64,
    /// Jobs that failed, for whatever reason.
    pub failed: u64,
    /// Jobs that were canceled.
    pub canceled: u64,
    /// Jobs declined or handed back.
    pub declined: u64,
    /// Running jobs that stopped being this runner's, and were killed.
    pub lost: u64,
    /// Jobs whose lease could not be renewed in time; those among them that ran are in `lost` too.
    pub fenced: u64,
    /// Outcomes that the router had not acknowledged at the end: it will fail or repeat these jobs.
    pub unacknowledged: u64,
    /// The longest time between the end of a session and the next one's `Welcome`.
    pub longest_away: Duration,
}

/// Why a runner cannot go on. Everything that may pass is retried instead.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// An option cannot be right; the text names it.
    #[error("{0}")]
    Options(String),
    /// The router refuses this runner for good: it was deleted, or what it says of itself is out of the limits.
    #[error("{0}")]
    Refused(String),
}

/// Runs jobs until told to stop.
///
/// Lost connections, restarting pods and unknown tokens (the registry may lag) are retried for ever,
/// with a warning each time. Dropping the future kills all jobs and reports nothing.
///
/// # Errors
///
/// [`ClientError::Options`] at once; [`ClientError::Refused`] when the router answers `PERMISSION_DENIED`, or refuses
/// the very first `Hello` as invalid. All jobs are gone by then.
pub async fn run<E: Executor>(options: Options, executor: E, shutdown: Shutdown) -> Result<Summary, ClientError> {
    if !(1..=SLOTS_MAX).contains(&options.slots) {
        return Err(ClientError::Options(format!("slots: must be 1 to {SLOTS_MAX}")));
    }
    driver::Driver::new(&options, executor, shutdown)?.run().await
}

// === impl Options ===

impl Options {
    /// Options with what has no sensible default; no features, the system's certificates, a grace of 30 s.
    pub fn new(url: impl Into<String>, token: SecretString, system_id: Name, slots: u32) -> Self {
        Self {
            url: url.into(),
            token,
            system_id,
            version: concat!("job-router ", env!("CARGO_PKG_VERSION")).to_owned(),
            slots,
            features: TagSet::default(),
            ca_pem: None,
            identity_pem: None,
            shutdown_grace: Duration::from_secs(30),
        }
    }
}
