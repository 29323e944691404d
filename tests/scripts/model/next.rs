//! What is queued, what is held up, and which job is next, by `fairness`.

use std::collections::{BTreeMap, BTreeSet};

use job_router::fairness::{self, BucketInLane, TenantInLane};
use job_router::flow::State;
use job_router::job::{Priority, ProjectId};
use job_router::pause::Target;
use job_router::redis::LaneOrder;
use job_router::runner::{Lane, Scope};

use super::reference::{Bucket, Heads, Job, Reference};

/// What take ought to choose.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "all of it is shown when a choice is wrong")]
pub struct Choice {
    pub lane: Lane,
    /// In an instance lane: whose bucket, and its share.
    pub tenant: Option<(String, u64)>,
    pub bucket: Bucket,
    pub job: u64,
}

// === impl Reference ===

impl Reference {
    /// Jobs on instance runners: all of a tenant's, or of one of its projects.
    pub fn running(&self, tenant: &str, project: Option<u64>) -> BTreeSet<u64> {
        let counts = |job: &Job| {
            job.state != State::Queued
                && job.scope == Some(Scope::Instance)
                && job.tenant == tenant
                && project.is_none_or(|project| job.bucket.1 == project)
        };
        self.jobs.iter().filter(|(_, job)| counts(job)).map(|(id, _)| *id).collect()
    }

    /// Jobs of a project on the runners of a group.
    pub fn running_in(&self, scope: Scope, project: u64) -> BTreeSet<u64> {
        let counts = |job: &Job| job.state != State::Queued && job.scope == Some(scope) && job.bucket.1 == project;
        self.jobs.iter().filter(|(_, job)| counts(job)).map(|(id, _)| *id).collect()
    }

    pub fn ageing_ms(&self) -> Option<u64> {
        self.policy.ageing.map(|ageing| ageing.as_millis() as u64)
    }

    /// Whether an instance lane is a plain queue.
    pub fn is_plain(&self, lane: Lane) -> bool {
        lane.scope == Scope::Instance && self.policy.order_of(lane) == LaneOrder::Fifo
    }

    /// Every bucket with queued jobs, and its first one.
    pub fn heads(&self) -> Heads<'_> {
        let mut heads = BTreeMap::new();
        for (id, job) in self.jobs.iter().filter(|(_, job)| job.state == State::Queued) {
            let head: &mut (u64, &Job) = heads.entry(job.bucket).or_insert((*id, job));
            if job.seq < head.1.seq {
                *head = (*id, job);
            }
        }
        heads
    }

    pub fn pause(&mut self, target: &Target) {
        self.paused.insert(target.clone());
        for (id, project) in &mut self.projects {
            // Lanes name it until `take` meets it there.
            project.moved |= match target {
                Target::Tenant(tenant) => tenant.key() == project.tenant,
                Target::Project(paused) => paused.0 == *id,
                _ => false,
            };
        }
    }

    pub fn lane_paused(&self, lane: Lane) -> bool {
        self.paused.contains(&Target::All) || self.paused.contains(&Target::Lane(lane))
    }

    pub fn tenant_paused(&self, key: &str) -> bool {
        self.paused.iter().any(|target| matches!(target, Target::Tenant(tenant) if tenant.key() == key))
    }

    /// The open scopes of a project.
    pub fn scopes_of(&self, project: u64) -> BTreeSet<Scope> {
        if self.paused.contains(&Target::Project(ProjectId(project))) {
            return BTreeSet::new();
        }
        Scope::of_project(&self.projects[&project].facts).filter(|scope| self.scopes.contains(scope)).collect()
    }

    fn in_lane(&self, bucket: Bucket, head: &Job) -> BucketInLane {
        let project = &self.projects[&bucket.1];
        BucketInLane {
            project: ProjectId(bucket.1),
            project_running: self.running(&project.tenant, Some(bucket.1)).len() as u32,
            project_max_running: project.cap,
            priority: Priority::new(bucket.2.into()).expect("in range"),
            queued_at_ms: head.at,
        }
    }

    /// A tenant in an instance lane as the rule sees it.
    pub fn tenant_in_lane<'a>(&self, heads: &Heads<'_>, lane: Lane, key: &'a str) -> TenantInLane<'a> {
        let payer = self.payers.get(key).cloned().unwrap_or_default();
        let of_tenant = |bucket: &Bucket| {
            bucket.0 == lane.fingerprint
                && self.projects[&bucket.1].tenant == key
                && self.scopes_of(bucket.1).contains(&lane.scope)
        };
        TenantInLane {
            key,
            weight: payer.weight.unwrap_or(1),
            running: self.running(key, None).len() as u32,
            served: payer.served,
            max_running: payer.cap.filter(|_| !self.tenant_paused(key)).or(self.tenant_paused(key).then_some(0)),
            buckets: heads
                .iter()
                .filter(|(bucket, _)| of_tenant(bucket))
                .map(|(bucket, (_, head))| self.in_lane(*bucket, head))
                .collect(),
        }
    }

    /// The next job of one lane, with its score.
    pub fn next_of_lane(&self, heads: &Heads<'_>, lane: Lane) -> Option<(u64, Choice)> {
        if self.lane_paused(lane) {
            return None;
        }
        let here = |bucket: &BucketInLane| (lane.fingerprint, bucket.project.0, bucket.priority.rank());
        if lane.scope == Scope::Instance {
            let keys: BTreeSet<&str> = self.projects.values().map(|project| project.tenant.as_str()).collect();
            let tenants: Vec<_> = keys.into_iter().map(|key| self.tenant_in_lane(heads, lane, key)).collect();
            let (score, bucket) = if self.is_plain(lane) {
                let (head, key, bucket) = fairness::next_in_plain_lane(&tenants, self.ageing_ms())?;
                // Beside fair lanes it has its tenant's share.
                let mixed = self.ageing_ms().is_none() && !self.policy.lanes.is_empty();
                let tenant = tenants.iter().find(|tenant| tenant.key == key).expect("just seen");
                let since = fairness::waits_since(head, tenant.served);
                let shared = fairness::tenant_score(tenant.running, tenant.weight, since);
                (if mixed { shared } else { head }, bucket)
            } else {
                fairness::next_in_instance_lane(&tenants)?
            };
            let bucket = here(&bucket);
            let tenant = (self.projects[&bucket.1].tenant.clone(), fairness::share_rank_in(score));
            return Some((score, Choice { lane, tenant: Some(tenant), bucket, job: heads[&bucket].0 }));
        }
        let stands = |bucket: &Bucket| {
            bucket.0 == lane.fingerprint
                && self.scopes_of(bucket.1).contains(&lane.scope)
                && !self.tenant_paused(&self.projects[&bucket.1].tenant)
        };
        let buckets: Vec<_> = heads
            .iter()
            .filter(|(bucket, _)| stands(bucket))
            .map(|(bucket, (_, head))| BucketInLane {
                project_running: self.running_in(lane.scope, bucket.1).len() as u32,
                ..self.in_lane(*bucket, head)
            })
            .collect();
        let (score, bucket) = match (self.ageing_ms(), self.policy.order_of(lane)) {
            (Some(ageing_ms), _) => fairness::next_in_aged_lane(&buckets, ageing_ms)?,
            (None, LaneOrder::Fair) => fairness::next_in_fair_lane(&buckets)?,
            (None, LaneOrder::Fifo) => fairness::next_in_fifo_lane(&buckets)?,
        };
        let bucket = here(&bucket);
        Some((score, Choice { lane, tenant: None, bucket, job: heads[&bucket].0 }))
    }

    /// The next job of several lanes of one kind.
    pub fn next_of_lanes(&self, lanes: &[Lane]) -> Option<Choice> {
        let heads = self.heads();
        let nexts = lanes.iter().filter_map(|lane| self.next_of_lane(&heads, *lane));
        let first = nexts.min_by_key(|(score, choice)| {
            let tenant = choice.tenant.as_ref().map(|(key, _)| key.clone());
            let bucket = tenant.as_ref().map(|_| self.score_in_lane(&heads, choice));
            (*score, tenant, bucket, choice.lane.to_string())
        });
        first.map(|(_, choice)| choice)
    }

    /// The score of a bucket among its tenant's.
    fn score_in_lane(&self, heads: &Heads<'_>, choice: &Choice) -> u64 {
        let bucket = self.in_lane(choice.bucket, heads[&choice.bucket].1);
        let head = fairness::head_of(bucket.queued_at_ms);
        match self.ageing_ms() {
            _ if !self.is_plain(choice.lane) => fairness::bucket_score(bucket.priority, bucket.project_running, head),
            Some(ageing_ms) => fairness::aged_head(bucket.priority, head, ageing_ms),
            None => head,
        }
    }
}
