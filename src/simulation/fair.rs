//! The policy of this router in one instance lane, by the functions of `fairness`.
//!
//! Tenants and buckets stand in ordered sets under their scores, as in Redis, so a step costs O(log tenants + log
//! buckets). Unlike there, no score is ever out of date: a project's buckets all follow its running jobs at once. Where
//! scores are equal, names decide, byte by byte: a tenant's key, a bucket's member. Names are ranked once, so that sets
//! compare numbers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{DAY_BEGINS_AT_MS, Day, JobIndex, Policy};
use crate::fairness::{at_cap, bucket_name, bucket_score, first_turn_of, head_in, head_of, tenant_score, waits_since};
use crate::job::Priority;

/// Two levels: tenants by (running jobs + ½) ÷ weight, then who waits longest; inside by priority, the project's running
/// jobs, the oldest head. Who is at a cap is left out.
#[derive(Debug)]
pub struct Fair<'a> {
    day: &'a Day,
    /// Who is next: score, rank by name.
    lane: BTreeSet<(u64, usize)>,
    /// Tenants by rank.
    ranked: Vec<usize>,
    tenants: Vec<TenantQueue>,
    projects: Vec<ProjectQueue>,
    /// By the bytes of their names.
    buckets: Vec<Bucket>,
}

#[derive(Debug, Default)]
struct TenantQueue {
    rank: usize,
    running: u32,
    /// Its last turn; 0: none.
    served: u64,
    /// Its score in the lane, while it stands there.
    score: Option<u64>,
    /// Its buckets with waiting jobs that no cap holds back: score, bucket.
    buckets: BTreeSet<(u64, usize)>,
}

#[derive(Debug, Default)]
struct ProjectQueue {
    running: u32,
    buckets: Vec<(Priority, usize)>,
}

#[derive(Debug)]
struct Bucket {
    project: usize,
    priority: Priority,
    waiting: VecDeque<JobIndex>,
    /// Its score within its tenant, while it stands there.
    score: Option<u64>,
}

// === impl Fair ===

impl<'a> Fair<'a> {
    /// An empty lane for the jobs of a day.
    pub fn new(day: &'a Day) -> Self {
        let mut keys: Vec<(String, usize)> =
            day.tenants().iter().enumerate().map(|(at, tenant)| (tenant.tenant.key(), at)).collect();
        keys.sort_unstable();
        let ranked: Vec<usize> = keys.into_iter().map(|(_, at)| at).collect();
        let mut tenants: Vec<TenantQueue> = day.tenants().iter().map(|_| TenantQueue::default()).collect();
        for (rank, at) in ranked.iter().enumerate() {
            tenants[*at].rank = rank;
        }
        let mut projects: Vec<ProjectQueue> = day.projects().iter().map(|_| ProjectQueue::default()).collect();
        let mut buckets = Vec::new();
        for (project, priority) in names(day).into_values() {
            projects[project].buckets.push((priority, buckets.len()));
            buckets.push(Bucket { project, priority, waiting: VecDeque::new(), score: None });
        }
        Self { day, lane: BTreeSet::new(), ranked, tenants, projects, buckets }
    }

    /// A project has one job more or less running.
    fn count(&mut self, project: usize, change: impl Fn(&mut u32)) {
        let tenant = self.day.projects()[project].tenant;
        change(&mut self.projects[project].running);
        change(&mut self.tenants[tenant].running);
        for at in 0..self.projects[project].buckets.len() {
            self.place_bucket(self.projects[project].buckets[at].1);
        }
        self.place_tenant(tenant);
    }

    /// Puts a bucket where it belongs within its tenant, or takes it out.
    fn place_bucket(&mut self, at: usize) {
        let bucket = &mut self.buckets[at];
        let (facts, project) = (&self.day.projects()[bucket.project], &self.projects[bucket.project]);
        let first = bucket.waiting.front().map(|job| self.day.jobs()[*job].queued_at_ms);
        let head = first.filter(|_| !at_cap(project.running, facts.max_running.map(u32::from)));
        let score = head.map(|ms| bucket_score(bucket.priority, project.running, head_of(DAY_BEGINS_AT_MS + ms)));
        let before = std::mem::replace(&mut bucket.score, score);
        if before != score {
            let buckets = &mut self.tenants[facts.tenant].buckets;
            before.map(|score| buckets.remove(&(score, at)));
            score.map(|score| buckets.insert((score, at)));
        }
    }

    /// Puts a tenant where it belongs in the lane, or takes it out.
    fn place_tenant(&mut self, at: usize) {
        let (facts, tenant) = (&self.day.tenants()[at], &mut self.tenants[at]);
        let first = tenant.buckets.first().map(|(score, _)| head_in(*score));
        let head = first.filter(|_| !at_cap(tenant.running, facts.max_running.map(u32::from)));
        let since = head.map(|head| waits_since(head, tenant.served));
        let score = since.map(|since| tenant_score(tenant.running, facts.weight.get(), since));
        let before = std::mem::replace(&mut tenant.score, score);
        if before != score {
            before.map(|score| self.lane.remove(&(score, tenant.rank)));
            score.map(|score| self.lane.insert((score, tenant.rank)));
        }
    }
}

/// The buckets there will be, by the bytes of their names.
fn names(day: &Day) -> BTreeMap<String, (usize, Priority)> {
    let kinds: BTreeSet<(usize, i8)> = day.jobs().iter().map(|job| (job.project, job.priority.rank())).collect();
    let name = |(project, rank): (usize, i8)| {
        let priority = Priority::new(rank.into()).expect("the rank of a priority");
        (bucket_name(day.projects()[project].id, priority), (project, priority))
    };
    kinds.into_iter().map(name).collect()
}

impl Policy for Fair<'_> {
    fn queue(&mut self, job: JobIndex) {
        let facts = &self.day.jobs()[job];
        let buckets = &self.projects[facts.project].buckets;
        let at =
            buckets.iter().find(|(priority, _)| *priority == facts.priority).expect("each job's bucket is known").1;
        self.buckets[at].waiting.push_back(job);
        if self.buckets[at].waiting.len() == 1 {
            self.place_bucket(at);
            self.place_tenant(self.day.projects()[facts.project].tenant);
        }
    }

    fn take(&mut self, turn: u64) -> Option<JobIndex> {
        let (_, rank) = *self.lane.first()?;
        let tenant = &mut self.tenants[self.ranked[rank]];
        tenant.served = (first_turn_of(DAY_BEGINS_AT_MS) + turn).max(tenant.served + 1);
        let (_, at) = *tenant.buckets.first().expect("a tenant in the lane has a bucket");
        let bucket = &mut self.buckets[at];
        let job = bucket.waiting.pop_front().expect("a bucket that stands somewhere has a job");
        let project = bucket.project;
        self.count(project, |running| *running += 1);
        Some(job)
    }

    fn end(&mut self, job: JobIndex) {
        self.count(self.day.jobs()[job].project, |running| *running -= 1);
    }
}
