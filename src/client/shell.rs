//! The reference executor: runs the steps of a GitLab job with `bash`, in a scratch directory.
//!
//! Arrives: the payload GitLab's runner gets, of which it reads `steps` and `variables` (no image, cache,
//! artifacts or Git: clone in a step). Leaves: an outcome in GitLab's words, and the output with masked
//! values replaced.
//!
//! Invariants:
//! 1. Each step is one `bash` in a process group of its own; when the step ends, however it ends, the
//!    group is killed. Only what leaves the group (`setsid`) can outlive it.
//! 2. Dropping the future kills the group too; and so does a guard (`guard`) when the runner itself is killed.
//! 3. What a job can make the runner hold or write is bounded: see `output`.
//!
//! No sandbox: a job is code that runs as the runner's user.

mod guard;
mod mask;
mod output;
mod payload;
mod process;

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

pub use output::LogTo;

use super::executor::{Assignment, Executor, JobContext, Outcome, Reason};
use guard::Guard;
use output::Output;
use payload::{Payload, Step, When};
use process::{Ended, Stop};

/// A job without a limit of its own may run this long. GitLab's default.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(3600);

/// Runs jobs with `bash`.
#[derive(Debug, Clone)]
pub struct Shell {
    log: LogTo,
}

/// A job prepared to run.
struct Job {
    payload: Payload,
    // Before the directory, so that it ends first.
    guard: Guard,
    /// Holds `build`, where steps run, and `tmp`, for file variables and scripts.
    scratch: TempDir,
    environment: Vec<(String, std::ffi::OsString)>,
    deadline: Instant,
}

// === impl Shell ===

impl Shell {
    /// A shell executor whose jobs write their output there.
    pub fn new(log: LogTo) -> Self {
        Self { log }
    }

    async fn run_job(&self, context: &JobContext) -> std::io::Result<Outcome> {
        let assignment = &context.assignment;
        let Ok(payload) = Payload::parse(&assignment.payload) else {
            return Ok(Outcome::failed(1, Reason::UNSUPPORTED));
        };
        let mut output = Output::open(&self.log, assignment, payload.masked()).await?;
        let job = Job::prepare(payload, assignment).await?;
        let outcome = job.run_steps(context, &mut output).await;
        if let Err(error) = &outcome {
            output.notice(&format!("the runner could not run this job: {error}")).await;
        }
        output.close().await;
        job.clean_up().await;
        outcome
    }
}

impl Executor for Shell {
    fn accept(&self, assignment: &Assignment) -> Result<(), Reason> {
        Payload::parse(&assignment.payload).map(drop).map_err(|error| {
            tracing::info!(job_id = assignment.lease.job_id.0, %error, "payload not understood");
            Reason::UNSUPPORTED
        })
    }

    async fn run(&self, context: JobContext) -> Outcome {
        self.run_job(&context).await.unwrap_or_else(|error| {
            let job_id = context.assignment.lease.job_id.0;
            tracing::error!(job_id, %error, "job could not be run");
            Outcome::failed(1, Reason::RUNNER_SYSTEM_FAILURE)
        })
    }
}

// === impl Job ===

impl Job {
    async fn prepare(payload: Payload, assignment: &Assignment) -> std::io::Result<Self> {
        let limit = payload.timeout().unwrap_or(TIMEOUT_DEFAULT).min(assignment.timeout);
        let scratch = tempfile::Builder::new().prefix("job-router-").tempdir()?;
        let guard = Guard::start(scratch.path())?;
        let (build, tmp) = (scratch.path().join("build"), scratch.path().join("tmp"));
        tokio::fs::create_dir(&build).await?;
        tokio::fs::create_dir(&tmp).await?;
        let inherited = ["PATH", "HOME", "USER", "LANG", "TERM", "TMPDIR"];
        let mut environment: Vec<(String, std::ffi::OsString)> =
            inherited.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var_os(name)?))).collect();
        environment.push(("CI".to_owned(), "true".into()));
        environment.push(("CI_JOB_ID".to_owned(), assignment.lease.job_id.to_string().into()));
        environment.push(("CI_PROJECT_DIR".to_owned(), build.into()));
        for variable in &payload.variables {
            let value = if variable.file {
                // The key is letters, digits and `_`, so the file stays in the directory.
                let path = tmp.join(&variable.key);
                tokio::fs::write(&path, &variable.value).await?;
                path.into_os_string()
            } else {
                variable.value.clone().into()
            };
            environment.push((variable.key.clone(), value));
        }
        Ok(Self { payload, guard, scratch, environment, deadline: Instant::now() + limit })
    }

    /// Runs the steps that their `when` asks for, until the job's time is over or it is told to stop.
    async fn run_steps(&self, context: &JobContext, output: &mut Output) -> std::io::Result<Outcome> {
        let mut failure: Option<Outcome> = None;
        for (index, step) in self.payload.steps.iter().enumerate() {
            let wanted = match step.when {
                When::Always => true,
                When::OnSuccess => failure.is_none(),
                When::OnFailure => failure.is_some(),
            };
            if !wanted {
                continue;
            }
            let ended = self.run_step(index, step, context, output).await?;
            let failed = match ended {
                Ended::Exited(0) => continue,
                Ended::Exited(code) => Outcome::failed(code, Reason::SCRIPT_FAILURE),
                Ended::Stopped(Stop::Canceled) => return Ok(Outcome::canceled()),
                Ended::Stopped(Stop::OutOfTime) => {
                    output.notice(&format!("step {} ran out of time", step.name)).await;
                    let timed_out = Outcome::failed(1, Reason::JOB_EXECUTION_TIMEOUT);
                    if Instant::now() >= self.deadline {
                        return Ok(timed_out);
                    }
                    timed_out
                }
            };
            match step.allow_failure {
                true => output.notice(&format!("step {} failed, which is allowed", step.name)).await,
                false => _ = failure.get_or_insert(failed),
            }
        }
        Ok(failure.unwrap_or_else(Outcome::success))
    }

    async fn run_step(
        &self,
        index: usize,
        step: &Step,
        context: &JobContext,
        output: &mut Output,
    ) -> std::io::Result<Ended> {
        // In a file, not an argument: an argument ends at 128 KiB.
        let script: PathBuf = self.scratch.path().join(format!("tmp/step-{index}.sh"));
        tokio::fs::write(&script, step.bash()).await?;
        let deadline = step.timeout().map_or(self.deadline, |limit| self.deadline.min(Instant::now() + limit));
        let mut command = tokio::process::Command::new("bash");
        command.args(["--noprofile", "--norc"]).arg(&script);
        command.current_dir(self.scratch.path().join("build"));
        command.env_clear().envs(self.environment.iter().map(|(key, value)| (key, value)));
        process::run(command, deadline, context, output, &self.guard).await
    }

    async fn clean_up(self) {
        let removed = tokio::task::spawn_blocking(move || self.scratch.close()).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, "scratch directory not removed");
        }
    }
}

#[cfg(test)]
#[path = "shell/tests.rs"]
mod tests;
