//! The router's state in a few maps, and what each script ought to do with it. Moves go by `flow`, choices by
//! `fairness`; the rest is written down here a second time, as plainly as can be.

use std::collections::{BTreeMap, BTreeSet};

use job_router::flow::{Event, State};
use job_router::job::{JobId, Lease, LeaseId, PendingJob, ProjectFacts, ProjectId, Tenant};
use job_router::pause::Target;
use job_router::redis::scripts::Outcome;
use job_router::redis::{Expired, Manager, Policy, Renewed, Report, Return};
use job_router::runner::{Lane, Scope};
use job_router::tags::Fingerprint;

/// (fingerprint, project, priority)
pub type Bucket = (Fingerprint, u64, i8);
/// Buckets with queued jobs, each with its first one.
pub type Heads<'a> = BTreeMap<Bucket, (u64, &'a Job)>;

#[derive(Debug, Clone)]
pub struct Job {
    pub bucket: Bucket,
    /// Its place: the bucket's order.
    pub seq: u64,
    pub at: u64,
    pub state: State,
    pub lease: Option<LeaseId>,
    pub attempt: u32,
    pub tenant: String,
    pub pod: String,
    pub scope: Option<Scope>,
    pub starts: u32,
    pub max_attempts: u32,
    pub failures: u32,
    pub beat: Option<u64>,
    /// Who had it last.
    pub runner: u64,
    /// Whether its entry stands in its bucket: not where Rails took it out of the queue.
    pub has_place: bool,
}

#[derive(Debug, Clone)]
pub struct Project {
    pub tenant: String,
    pub facts: ProjectFacts,
    pub version: Option<u64>,
    pub namespaces_version: Option<u64>,
    pub cap: Option<u32>,
    pub cap_version: Option<u64>,
    /// Its scopes or tenant were not always these: lanes may still name it where it was.
    pub moved: bool,
    /// Its buckets have not followed its last change yet.
    pub unindexed: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Payer {
    pub weight: Option<u32>,
    pub cap: Option<u32>,
    pub version: Option<u64>,
    pub served: u64,
}

#[derive(Debug, Default)]
pub struct Reference {
    pub jobs: BTreeMap<u64, Job>,
    pub ended: BTreeMap<u64, (String, Option<LeaseId>)>,
    pub projects: BTreeMap<u64, Project>,
    pub payers: BTreeMap<String, Payer>,
    pub scopes: BTreeSet<Scope>,
    pub paused: BTreeSet<Target>,
    pub policy: Policy,
    /// Events of the present step: job, word, attempt.
    pub events: Vec<(u64, String, u32)>,
    seq: u64,
}

// === impl Reference ===

impl Reference {
    pub fn fan_out(&mut self, version: u64, at: u64, job: &PendingJob) -> Outcome {
        self.learn(version, job);
        let id = job.id.0;
        if self.jobs.contains_key(&id) || self.ended.contains_key(&id) {
            return Outcome::Known;
        }
        self.seq += 1;
        let queued = Job {
            bucket: (job.capability.fingerprint(), job.project.id.0, job.priority.rank()),
            seq: self.seq,
            at,
            state: State::Queued,
            lease: None,
            attempt: 0,
            tenant: job.tenant.key(),
            pod: String::new(),
            scope: None,
            starts: 0,
            max_attempts: job.max_attempts,
            failures: 0,
            beat: None,
            runner: 0,
            has_place: true,
        };
        self.jobs.insert(id, queued);
        self.events.push((id, "queued".into(), 0));
        Outcome::Ok
    }

    fn learn(&mut self, version: u64, job: &PendingJob) {
        let tenant = job.tenant.key();
        let Some(known) = self.projects.get_mut(&job.project.id.0) else {
            let project = Project {
                tenant,
                facts: job.project.clone(),
                version: Some(version),
                namespaces_version: Some(version),
                cap: None,
                cap_version: None,
                moved: false,
                unindexed: false,
            };
            self.projects.insert(job.project.id.0, project);
            return;
        };
        if known.namespaces_version >= Some(version) {
            return;
        }
        known.namespaces_version = Some(version);
        let (was, payer) = (known.facts.clone(), known.tenant.clone());
        known.facts.namespace_ids.clone_from(&job.project.namespace_ids);
        if known.version < Some(version) {
            known.version = Some(version);
            known.facts = job.project.clone();
            known.tenant = tenant;
        }
        if known.facts != was || known.tenant != payer {
            (known.moved, known.unindexed) = (true, true);
        }
    }

    pub fn project(
        &mut self,
        id: u64,
        version: u64,
        tenant: &Tenant,
        instance: Option<bool>,
        group: Option<bool>,
        cap: Option<u32>,
    ) -> Outcome {
        let known = self.projects.entry(id).or_insert_with(|| Project {
            tenant: tenant.key(),
            facts: ProjectFacts {
                id: ProjectId(id),
                namespace_ids: Vec::new(),
                instance_runners: true,
                group_runners: true,
            },
            version: None,
            namespaces_version: None,
            cap: None,
            cap_version: None,
            moved: false,
            unindexed: false,
        });
        let (newer_cap, newer_facts) = (known.cap_version < Some(version), known.version < Some(version));
        if newer_cap {
            (known.cap, known.cap_version) = (cap, Some(version));
        }
        if newer_facts {
            let was = (known.facts.clone(), known.tenant.clone());
            known.version = Some(version);
            known.tenant = tenant.key();
            known.facts.instance_runners = instance.unwrap_or(known.facts.instance_runners);
            known.facts.group_runners = group.unwrap_or(known.facts.group_runners);
            known.moved |= was != (known.facts.clone(), known.tenant.clone());
        }
        known.unindexed |= newer_cap || newer_facts;
        if known.unindexed { Outcome::Ok } else { Outcome::Stale }
    }

    pub fn payer(&mut self, tenant: &Tenant, version: u64, weight: u32, cap: Option<u32>) -> Outcome {
        let known = self.payers.entry(tenant.key()).or_default();
        if known.version > Some(version) {
            return Outcome::Stale;
        }
        if known.version < Some(version) {
            *known = Payer { weight: Some(weight), cap, version: Some(version), served: known.served };
        }
        Outcome::Ok
    }

    pub fn start(&mut self, lease: Lease) -> Outcome {
        let id = lease.job_id.0;
        let Some(job) = self.jobs.get_mut(&id) else { return Outcome::Gone };
        if job.lease != Some(lease.lease_id) || job.state == State::Queued {
            return Outcome::Stale;
        }
        let Some(next) = job.state.next(Event::Start) else { return Outcome::Refused };
        if next != job.state {
            job.state = next;
            job.starts += 1;
            job.beat = Some(0);
            self.events.push((id, "running".into(), job.attempt));
        }
        Outcome::Ok
    }

    /// Rails says that this runner runs it. Answers whether it has another lease now, too.
    pub fn acknowledge(&mut self, pod: &str, id: u64, runner: Option<&Manager>) -> (Outcome, bool) {
        let project = self.jobs.get(&id).map_or(0, |job| job.bucket.1);
        let for_all = project != 0 && self.scopes_of(project).contains(&Scope::Instance);
        let Some(job) = self.jobs.get_mut(&id) else { return (Outcome::Gone, false) };
        let Some(next) = job.state.next(Event::RunByRails) else { return (Outcome::Refused, false) };
        if next == job.state {
            return (Outcome::Ok, false);
        }
        let there = job.state == State::Assigned && runner.is_none_or(|(runner, _)| runner.0 == job.runner);
        if !there {
            let Some((runner, _)) = runner else { return (Outcome::Stale, false) };
            if job.state == State::Assigned {
                self.events.push((id, "requeued".into(), job.attempt));
            } else {
                let own = Scope::Project(project);
                job.scope = job.scope.or(Some(if for_all { Scope::Instance } else { own }));
                job.tenant.clone_from(&self.projects[&project].tenant);
                (job.has_place, job.max_attempts) = (false, 1);
            }
            job.attempt += 1;
            job.runner = runner.0;
            job.pod = pod.to_owned();
            self.events.push((id, "assigned".into(), job.attempt));
        }
        job.state = next;
        job.starts += 1;
        job.beat = Some(0);
        self.events.push((id, "running".into(), job.attempt));
        (Outcome::Ok, !there)
    }

    pub fn renew(&mut self, pod: &str, lease: Lease) -> Renewed {
        let Some(job) = self.jobs.get_mut(&lease.job_id.0) else { return Renewed::NotYours };
        if job.lease != Some(lease.lease_id) || job.state.next(Event::Beat).is_none() {
            return Renewed::NotYours;
        }
        job.beat = job.beat.map(|beat| beat + 1);
        job.pod = pod.to_owned();
        match job.state {
            State::Running => Renewed::Running,
            _ => Renewed::Canceling { grace: std::time::Duration::ZERO, reason: String::new() },
        }
    }

    pub fn give_back(&mut self, limit: u32, back: &Return) -> Outcome {
        let id = back.lease.job_id.0;
        let Some(job) = self.jobs.get_mut(&id) else { return Outcome::Gone };
        if job.lease != Some(back.lease.lease_id) {
            return Outcome::Stale;
        }
        let failures = job.failures + u32::from(back.failed_delivery);
        let event = Event::GiveBack { limit_reached: failures > limit };
        let Some(next) = job.state.next(event) else { return Outcome::Refused };
        if job.state == State::Assigned {
            job.failures = failures;
        }
        self.moves(id, next, ("failed", "failed"), None);
        Outcome::Ok
    }

    pub fn cancel(&mut self, id: u64) -> Outcome {
        let Some(job) = self.jobs.get_mut(&id) else {
            if self.ended.contains_key(&id) {
                return Outcome::Gone;
            }
            self.ended.insert(id, ("canceled".into(), None));
            self.events.push((id, "canceled".into(), 0));
            return Outcome::Ok;
        };
        let next = job.state.next(Event::Cancel).expect("a live job can be canceled");
        self.moves(id, next, ("canceled", "canceled"), None);
        Outcome::Ok
    }

    pub fn finish(&mut self, report: &Report) -> Outcome {
        let id = report.job_id.0;
        let Some(job) = self.jobs.get(&id) else {
            return match (self.ended.get(&id), report.lease_id) {
                (Some((_, Some(by))), Some(lease)) if *by == lease => Outcome::Ok,
                (None, None) => {
                    self.ended.insert(id, (report.status.into(), None));
                    Outcome::Gone
                }
                _ => Outcome::Gone,
            };
        };
        if report.lease_id.is_some() && (job.lease != report.lease_id || job.state == State::Queued) {
            return Outcome::Stale;
        }
        let event = if report.lease_id.is_some() { Event::Finish } else { Event::FinishByRails };
        let Some(next) = job.state.next(event) else { return Outcome::Refused };
        let end = if job.state == State::Canceling { ("canceled", "canceled") } else { (report.status, "finished") };
        self.moves(id, next, end, report.lease_id);
        Outcome::Ok
    }

    pub fn expire(&mut self, lease: Lease, beat: &str) -> Expired {
        let id = lease.job_id.0;
        let Some(job) = self.jobs.get(&id) else { return Expired::Not };
        if job.lease != Some(lease.lease_id) || job.beat_text() != beat {
            return Expired::Not;
        }
        let event = Event::Expire { attempts_left: job.starts < job.max_attempts };
        let Some(next) = job.state.next(event) else { return Expired::Not };
        let canceling = job.state == State::Canceling;
        self.moves(id, next, if canceling { ("canceled", "canceled") } else { ("failed", "failed") }, None);
        match next {
            State::Queued => Expired::Requeued,
            _ if canceling => Expired::Canceled,
            _ => Expired::Failed,
        }
    }

    pub fn bury(&mut self, pod: &str) -> u64 {
        let held = |job: &Job| job.pod == pod && job.state.next(Event::PodGone).is_some();
        let ids: Vec<u64> = self.jobs.iter().filter(|(_, job)| held(job)).map(|(id, _)| *id).collect();
        for id in &ids {
            self.moves(*id, State::Queued, ("", ""), None);
        }
        ids.len() as u64
    }

    /// A job of `lane` goes to a slot, under a lease of its own.
    /// `turn`: the next of the tenants that this call serves.
    pub fn taken(&mut self, lease: Lease, lane: Lane, pod: &str, turn: &mut u64) -> u32 {
        let id = lease.job_id.0;
        let job = self.jobs.get_mut(&id).expect("it was queued");
        job.state = job.state.next(Event::Take).expect("it was queued");
        job.attempt += 1;
        job.lease = Some(lease.lease_id);
        job.pod = pod.to_owned();
        job.scope = Some(lane.scope);
        job.runner = 1; // of whom all offers are
        job.tenant.clone_from(&self.projects[&job.bucket.1].tenant);
        if lane.scope == Scope::Instance {
            let payer = self.payers.entry(job.tenant.clone()).or_default();
            payer.served = (*turn).max(payer.served + 1);
            *turn += 1;
        }
        self.events.push((id, "assigned".into(), job.attempt));
        job.attempt
    }

    /// To its next state, with the event and the record that go with it. `end`: outcome and event, should it end; whose
    /// report ended it.
    fn moves(&mut self, id: u64, next: State, end: (&str, &str), reported_by: Option<LeaseId>) {
        let job = self.jobs.get_mut(&id).expect("it lives");
        let was = std::mem::replace(&mut job.state, next);
        match next {
            State::Queued if was != next => self.events.push((id, "requeued".into(), job.attempt)),
            State::Ended => {
                self.events.push((id, end.1.into(), job.attempt));
                self.ended.insert(id, (end.0.into(), reported_by));
                self.jobs.remove(&id);
            }
            _ => {}
        }
    }
}

// === impl Job ===

impl Job {
    pub fn beat_text(&self) -> String {
        self.beat.map(|beat| beat.to_string()).unwrap_or_default()
    }

    pub fn lease_of(&self, id: u64) -> Option<Lease> {
        self.lease.map(|lease_id| Lease { job_id: JobId(id), lease_id })
    }
}
