//! Policies: which waiting job a free slot gets. Two that look at age and at projects; [`super::Fair`] is ours.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

use super::Day;
use crate::fairness::first_turn_of;

/// A job, by its place in [`Day::jobs`].
pub type JobIndex = usize;

/// A queue with an order. Told of every job's way; asked whenever a slot is free.
pub trait Policy {
    /// A job waits. Jobs come in the order of the day.
    fn queue(&mut self, job: JobIndex);

    /// The next waiting job, which runs from now on; none if none may run. `turn` counts from the
    /// beginning of the day.
    fn take(&mut self, turn: u64) -> Option<JobIndex>;

    /// Up to so many jobs, one after the other, each in a turn of its own, so that who was served first waits longest.
    fn take_many(&mut self, now_ms: u64, slots: usize) -> Vec<JobIndex> {
        (first_turn_of(now_ms)..).map_while(|turn| self.take(turn)).take(slots).collect()
    }

    /// A running job is over.
    fn end(&mut self, job: JobIndex);
}

/// The policies there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyName {
    /// [`Fifo`].
    Fifo,
    /// [`GitLab`].
    GitLab,
    /// [`Fair`](super::Fair).
    JobRouter,
}

/// The oldest job first, whoever's it is.
#[derive(Debug, Default)]
pub struct Fifo(VecDeque<JobIndex>);

/// GitLab's rule for instance runners: the project with the fewest jobs running on them first, then the oldest job.
/// There is no tenant, weight, priority or cap in it.
///
/// Source: `builds_for_shared_runner` in GitLab's `app/services/ci/queue/pending_builds_strategy.rb` orders by
/// `COALESCE(project_builds.running_builds, 0) ASC, ci_pending_builds.build_id ASC`; in words,
/// <https://docs.gitlab.com/ci/runners/runners_scope/#how-instance-runners-pick-jobs>. Build ids stand here in the
/// order of queue times, as a day has none.
#[derive(Debug)]
pub struct GitLab<'a> {
    day: &'a Day,
    projects: Vec<ProjectQueue>,
    /// Projects with waiting jobs: running jobs, the oldest waiting one, project.
    order: BTreeSet<(u32, JobIndex, usize)>,
}

#[derive(Debug, Clone, Default)]
struct ProjectQueue {
    running: u32,
    waiting: VecDeque<JobIndex>,
}

// === impl PolicyName ===

impl PolicyName {
    /// All, in the order of tables.
    pub const ALL: [Self; 3] = [Self::Fifo, Self::GitLab, Self::JobRouter];

    /// Its name in flags, tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fifo => "fifo",
            Self::GitLab => "gitlab",
            Self::JobRouter => "job-router",
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

// === impl Fifo ===

impl Policy for Fifo {
    fn queue(&mut self, job: JobIndex) {
        self.0.push_back(job);
    }

    fn take(&mut self, _: u64) -> Option<JobIndex> {
        self.0.pop_front()
    }

    fn end(&mut self, _: JobIndex) {}
}

// === impl GitLab ===

impl<'a> GitLab<'a> {
    /// An empty queue for the jobs of a day.
    pub fn new(day: &'a Day) -> Self {
        Self { day, projects: vec![ProjectQueue::default(); day.projects().len()], order: BTreeSet::new() }
    }

    /// Changes a project's queue and puts it where it belongs then.
    fn change<T>(&mut self, project: usize, change: impl FnOnce(&mut ProjectQueue) -> T) -> T {
        let queue = &mut self.projects[project];
        if let Some(oldest) = queue.waiting.front() {
            self.order.remove(&(queue.running, *oldest, project));
        }
        let changed = change(queue);
        if let Some(oldest) = queue.waiting.front() {
            self.order.insert((queue.running, *oldest, project));
        }
        changed
    }
}

impl Policy for GitLab<'_> {
    fn queue(&mut self, job: JobIndex) {
        self.change(self.day.jobs()[job].project, |queue| queue.waiting.push_back(job));
    }

    fn take(&mut self, _: u64) -> Option<JobIndex> {
        let (_, _, project) = *self.order.first()?;
        self.change(project, |queue| {
            queue.running += 1;
            queue.waiting.pop_front()
        })
    }

    fn end(&mut self, job: JobIndex) {
        self.change(self.day.jobs()[job].project, |queue| queue.running -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Priority, ProjectId, Tenant};
    use crate::simulation::DayBuilder;

    /// Six jobs queued at once, of these projects.
    fn queued(projects: [u64; 6]) -> Day {
        let mut day = DayBuilder::default();
        for project in projects {
            day.add(&Tenant::of_namespace(1), ProjectId(project), Priority::default(), 0, 1).unwrap();
        }
        day.build(None)
    }

    #[test]
    fn gitlabs_rule_takes_as_gitlabs_documentation_says() {
        let day = queued([1, 1, 1, 2, 2, 3]);
        let mut policy = GitLab::new(&day);
        (0..6).for_each(|job| policy.queue(job));
        // Its first example, all jobs running at once; jobs there count from 1.
        assert_eq!(policy.take_many(0, 9), [0, 3, 5, 1, 4, 2]);

        let mut policy = GitLab::new(&day);
        (0..6).for_each(|job| policy.queue(job));
        // Its second, where jobs 1 and 4 end before the next is taken.
        let mut order = Vec::new();
        for ends in [true, false, true, false, false, false] {
            let job = policy.take(0).expect("one waits");
            order.push(job);
            if ends {
                policy.end(job);
            }
        }
        assert_eq!(order, [0, 1, 3, 4, 5, 2]);
    }

    #[test]
    fn fifo_takes_by_age_alone() {
        let mut policy = Fifo::default();
        (0..6).for_each(|job| policy.queue(job));
        policy.end(0);
        assert_eq!(policy.take_many(0, 9), [0, 1, 2, 3, 4, 5]);
    }
}
