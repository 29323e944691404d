//! The executors at work: one task for each job, none outlives this.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::executor::{Assignment, Executor, JobContext, Outcome, Reason};
use crate::job::Lease;

/// The tasks, and how to stop each. Dropping it drops the executors' futures, which stops their jobs.
#[derive(Debug)]
pub(super) struct Jobs<E> {
    executor: Arc<E>,
    /// `None`: it had not returned in time after a kill.
    tasks: JoinSet<Option<Outcome>>,
    leases: HashMap<Id, Lease>,
    tokens: HashMap<Lease, Tokens>,
}

#[derive(Debug)]
struct Tokens {
    cancel: CancellationToken,
    kill: CancellationToken,
}

/// A job's end; `None` if its executor panicked or was dropped.
pub(super) type Ended = (Lease, Option<Outcome>);

// === impl Jobs ===

impl<E: Executor> Jobs<E> {
    /// Runs nothing yet.
    pub(super) fn new(executor: E) -> Self {
        Self { executor: Arc::new(executor), tasks: JoinSet::new(), leases: HashMap::new(), tokens: HashMap::new() }
    }

    /// Whether the executor takes a job. One that panics over it does not: it is this job's affair, not that of all others here.
    pub(super) fn accept(&self, assignment: &Assignment) -> Result<(), Reason> {
        catch_unwind(AssertUnwindSafe(|| self.executor.accept(assignment))).unwrap_or_else(|_| {
            tracing::error!(
                job_id = assignment.lease.job_id.0,
                "executor panicked over a job that it was asked to accept"
            );
            Err(Reason::UNSUPPORTED)
        })
    }

    /// Runs a job; `kill_wait` after a kill its future is dropped.
    pub(super) fn start(&mut self, assignment: Assignment, kill_wait: Duration) {
        let lease = assignment.lease;
        let kill = CancellationToken::new();
        let cancel = kill.child_token();
        let executor = Arc::clone(&self.executor);
        let job = JobContext { assignment, cancel: cancel.clone(), kill: kill.clone() };
        self.tokens.insert(lease, Tokens { cancel, kill: kill.clone() });
        let task = self.tasks.spawn(async move {
            let overdue = async {
                kill.cancelled().await;
                tokio::time::sleep(kill_wait).await;
            };
            tokio::select! {
                outcome = executor.run(job) => Some(outcome),
                () = overdue => None,
            }
        });
        self.leases.insert(task.id(), lease);
    }

    /// Tells the executor that the job was canceled.
    pub(super) fn cancel(&self, lease: &Lease) {
        if let Some(tokens) = self.tokens.get(lease) {
            tokens.cancel.cancel();
        }
    }

    /// Tells the executor to stop at once.
    pub(super) fn kill(&self, lease: &Lease) {
        if let Some(tokens) = self.tokens.get(lease) {
            tokens.kill.cancel();
        }
    }

    /// The next job to end; waits for ever while none runs. Nothing is lost if it is dropped.
    pub(super) async fn next(&mut self) -> Ended {
        loop {
            match self.tasks.join_next_with_id().await {
                Some(result) => {
                    if let Some(ended) = self.close(result) {
                        return ended;
                    }
                }
                None => return std::future::pending().await,
            }
        }
    }

    /// A job that has ended already.
    pub(super) fn try_next(&mut self) -> Option<Ended> {
        let result = self.tasks.try_join_next_with_id()?;
        self.close(result)
    }

    /// Kills all jobs and waits until none runs, as long as the longest `kill_wait`.
    pub(super) async fn kill_all(&mut self) {
        self.tokens.values().for_each(|tokens| tokens.kill.cancel());
        while self.tasks.join_next().await.is_some() {}
    }

    fn close(&mut self, result: Result<(Id, Option<Outcome>), JoinError>) -> Option<Ended> {
        let (id, outcome) = result.unwrap_or_else(|error| (error.id(), None));
        let lease = self.leases.remove(&id)?;
        self.tokens.remove(&lease);
        if outcome.is_none() {
            tracing::error!(job_id = lease.job_id.0, lease_id = %lease.lease_id, "executor panicked or had to be dropped");
        }
        Some((lease, outcome))
    }
}
