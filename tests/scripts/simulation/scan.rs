//! The rule as plainly as can be: at every take, all tenants and buckets go through `fairness::next_in_instance_lane`.

use std::collections::{BTreeMap, VecDeque};

use job_router::fairness::{BucketInLane, TenantInLane, first_turn_of, next_in_instance_lane};
use job_router::job::{Priority, ProjectId};
use job_router::simulation::{DAY_BEGINS_AT_MS, Day, JobIndex, Policy};

pub struct Scan<'a> {
    day: &'a Day,
    keys: Vec<String>,
    running: Vec<JobIndex>,
    /// By tenant, its last turn; 0: none.
    served: Vec<u64>,
    /// By project and priority.
    buckets: BTreeMap<(usize, i8), VecDeque<JobIndex>>,
}

// === impl Scan ===

impl<'a> Scan<'a> {
    pub fn new(day: &'a Day) -> Self {
        let keys: Vec<String> = day.tenants().iter().map(|tenant| tenant.tenant.key()).collect();
        Self { day, running: Vec::new(), served: vec![0; keys.len()], keys, buckets: BTreeMap::new() }
    }

    fn running_of(&self, project: usize) -> u32 {
        self.running.iter().filter(|job| self.day.jobs()[**job].project == project).count() as u32
    }

    /// A tenant in the lane, as the rule sees it.
    pub fn tenant(&self, at: usize) -> TenantInLane<'_> {
        let facts = &self.day.tenants()[at];
        let waiting = self.buckets.iter().filter(|((project, _), _)| self.day.projects()[*project].tenant == at);
        let buckets = waiting.filter_map(|((project, rank), jobs)| {
            let facts = &self.day.projects()[*project];
            Some(BucketInLane {
                project: facts.id,
                project_running: self.running_of(*project),
                project_max_running: facts.max_running.map(u32::from),
                priority: Priority::new((*rank).into()).expect("in range"),
                queued_at_ms: DAY_BEGINS_AT_MS + self.day.jobs()[*jobs.front()?].queued_at_ms,
            })
        });
        TenantInLane {
            key: &self.keys[at],
            weight: facts.weight.get(),
            running: self.running.iter().filter(|job| self.day.tenant_of(**job) == at).count() as u32,
            max_running: facts.max_running.map(u32::from),
            served: self.served[at],
            buckets: buckets.collect(),
        }
    }

    /// The first job of a bucket.
    pub fn head(&self, project: ProjectId, priority: Priority) -> JobIndex {
        let at = self.day.projects().iter().position(|known| known.id == project).expect("a project of the day");
        *self.buckets[&(at, priority.rank())].front().expect("it waits")
    }

    /// Takes this job, which is the first of its bucket, in this turn of the day.
    pub fn take_this(&mut self, job: JobIndex, turn: u64) {
        let facts = &self.day.jobs()[job];
        let bucket = self.buckets.get_mut(&(facts.project, facts.priority.rank())).expect("it waits there");
        assert_eq!(bucket.pop_front(), Some(job), "it is the first");
        self.running.push(job);
        let served = &mut self.served[self.day.tenant_of(job)];
        *served = (first_turn_of(DAY_BEGINS_AT_MS) + turn).max(*served + 1);
    }

    /// What the rule says.
    pub fn next(&self) -> Option<JobIndex> {
        let tenants: Vec<TenantInLane<'_>> = (0..self.keys.len()).map(|at| self.tenant(at)).collect();
        next_in_instance_lane(&tenants).map(|(_, bucket)| self.head(bucket.project, bucket.priority))
    }
}

impl Policy for Scan<'_> {
    fn queue(&mut self, job: JobIndex) {
        let facts = &self.day.jobs()[job];
        self.buckets.entry((facts.project, facts.priority.rank())).or_default().push_back(job);
    }

    fn take(&mut self, turn: u64) -> Option<JobIndex> {
        let job = self.next()?;
        self.take_this(job, turn);
        Some(job)
    }

    fn end(&mut self, job: JobIndex) {
        let at = self.running.iter().position(|running| *running == job).expect("it runs");
        self.running.swap_remove(at);
    }
}
