//! A day: its jobs in the order of their queue times, and whose they are.

use std::collections::HashMap;
use std::num::NonZeroU32;

use super::JobIndex;
use crate::job::{Priority, ProjectId, Tenant};

/// A day of jobs. Jobs name their projects, and projects their tenants, by their places in these lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Day {
    tenants: Vec<DayTenant>,
    projects: Vec<DayProject>,
    jobs: Vec<DayJob>,
}

/// Who pays for fairness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DayTenant {
    /// Its name.
    pub tenant: Tenant,
    /// Its share against others'.
    pub weight: NonZeroU32,
    /// The most jobs it may have running.
    pub max_running: Option<NonZeroU32>,
}

/// A project of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DayProject {
    /// Its id.
    pub id: ProjectId,
    /// Whose it is, all day.
    pub tenant: usize,
    /// The most jobs it may have running.
    pub max_running: Option<NonZeroU32>,
}

/// A job of the day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayJob {
    /// Whose it is.
    pub project: usize,
    /// Its rank within the tenant.
    pub priority: Priority,
    /// When it is queued, in ms since the beginning of the day.
    pub queued_at_ms: u64,
    /// How long it runs.
    pub duration_ms: u64,
}

/// A project has one tenant all day; jobs from here on would say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be that of the project's other jobs")]
pub struct TenantChanged;

/// A day that is being put together, in any order.
#[derive(Debug, Default)]
pub struct DayBuilder {
    tenants: Vec<DayTenant>,
    projects: Vec<DayProject>,
    jobs: Vec<DayJob>,
    tenant_at: HashMap<Tenant, usize>,
    project_at: HashMap<ProjectId, usize>,
}

// === impl Day ===

impl Day {
    /// Its tenants.
    pub fn tenants(&self) -> &[DayTenant] {
        &self.tenants
    }

    /// Its projects.
    pub fn projects(&self) -> &[DayProject] {
        &self.projects
    }

    /// Its jobs, by queue time; those of one ms as they were added.
    pub fn jobs(&self) -> &[DayJob] {
        &self.jobs
    }

    /// The place of a job's tenant.
    pub fn tenant_of(&self, job: JobIndex) -> usize {
        self.projects[self.jobs[job].project].tenant
    }

    /// The place of the tenant of this name.
    pub fn find_tenant(&self, tenant: &Tenant) -> Option<usize> {
        self.tenants.iter().position(|known| known.tenant == *tenant)
    }

    /// The tenants, each with how many jobs it has, most jobs first.
    pub fn busiest_tenants(&self) -> Vec<(usize, usize)> {
        let mut tenants: Vec<(usize, usize)> = (0..self.tenants.len()).map(|tenant| (tenant, 0)).collect();
        (0..self.jobs.len()).for_each(|job| tenants[self.tenant_of(job)].1 += 1);
        tenants.sort_by_key(|(_, jobs)| std::cmp::Reverse(*jobs));
        tenants
    }

    /// From the beginning of the day to the last queue time.
    pub fn span_ms(&self) -> u64 {
        self.jobs.last().map_or(0, |job| job.queued_at_ms)
    }

    /// Gives a tenant a weight. False when the day has no job of it.
    pub fn set_weight(&mut self, tenant: &Tenant, weight: NonZeroU32) -> bool {
        let found = self.tenants.iter_mut().find(|known| known.tenant == *tenant);
        found.map(|known| known.weight = weight).is_some()
    }

    /// Gives a tenant a cap. False when the day has no job of it.
    pub fn set_tenant_cap(&mut self, tenant: &Tenant, max_running: NonZeroU32) -> bool {
        let found = self.tenants.iter_mut().find(|known| known.tenant == *tenant);
        found.map(|known| known.max_running = Some(max_running)).is_some()
    }

    /// Gives a project a cap. False when the day has no job of it.
    pub fn set_project_cap(&mut self, project: ProjectId, max_running: NonZeroU32) -> bool {
        let found = self.projects.iter_mut().find(|known| known.id == project);
        found.map(|known| known.max_running = Some(max_running)).is_some()
    }
}

// === impl DayBuilder ===

impl DayBuilder {
    /// Adds a job, with its queue time in any ms of any clock; see [`build`](Self::build).
    pub fn add(
        &mut self,
        tenant: &Tenant,
        project: ProjectId,
        priority: Priority,
        queued_at_ms: u64,
        duration_ms: u64,
    ) -> Result<(), TenantChanged> {
        let known = self.tenant_at.get(tenant).copied();
        if let Some(at) = self.project_at.get(&project)
            && known != Some(self.projects[*at].tenant)
        {
            return Err(TenantChanged);
        }
        let tenant = known.unwrap_or_else(|| {
            self.tenants.push(DayTenant { tenant: tenant.clone(), weight: NonZeroU32::MIN, max_running: None });
            self.tenant_at.insert(tenant.clone(), self.tenants.len() - 1);
            self.tenants.len() - 1
        });
        let project = *self.project_at.entry(project).or_insert_with(|| {
            self.projects.push(DayProject { id: project, tenant, max_running: None });
            self.projects.len() - 1
        });
        self.jobs.push(DayJob { project, priority, queued_at_ms, duration_ms });
        Ok(())
    }

    /// The day, which begins at this ms of the jobs' clock, or at the first job's queue time.
    pub fn build(mut self, begins_at_ms: Option<u64>) -> Day {
        self.jobs.sort_by_key(|job| job.queued_at_ms); // stable: jobs of one ms stay as they came
        let first = self.jobs.first().map_or(0, |job| job.queued_at_ms);
        let begins_at_ms = begins_at_ms.unwrap_or(first).min(first);
        for job in &mut self.jobs {
            job.queued_at_ms -= begins_at_ms;
        }
        Day { tenants: self.tenants, projects: self.projects, jobs: self.jobs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_come_by_queue_time_and_those_of_one_ms_as_they_were_added() {
        let mut day = DayBuilder::default();
        let tenant = |number| Tenant::of_namespace(number);
        for (of, project, at) in [(1, 1, 500), (2, 3, 400), (1, 2, 400), (2, 3, 450)] {
            day.add(&tenant(of), ProjectId(project), Priority::default(), at, 1).unwrap();
        }
        assert_eq!(day.add(&tenant(2), ProjectId(1), Priority::default(), 600, 1), Err(TenantChanged));
        assert_eq!(day.add(&tenant(3), ProjectId(1), Priority::default(), 600, 1), Err(TenantChanged));
        let day = day.build(None);
        let jobs: Vec<_> = day.jobs().iter().map(|job| (day.projects()[job.project].id.0, job.queued_at_ms)).collect();
        assert_eq!(jobs, [(3, 0), (2, 0), (3, 50), (1, 100)]);
        assert_eq!((day.span_ms(), day.find_tenant(&tenant(1))), (100, Some(0)));
        assert_eq!(day.busiest_tenants(), [(0, 2), (1, 2)]);
    }
}
