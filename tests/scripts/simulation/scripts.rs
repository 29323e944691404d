//! Our policy and the real scripts side by side: each step is done by both, and by the plain scan.
//!
//! The scripts tell time by Redis' clock, so that is when jobs are taken here: the day begins when the test does, or somewhat
//! before, so that takes are ahead of queue times on some days and behind on others. Jobs end and are queued in the order of
//! the simulation, however long a call takes.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use job_router::fairness::{first_turn_of, next_of_tenant, share_rank};
use job_router::job::{JobId, Lease, LeaseId, Name, PendingJob};
use job_router::redis::scripts::Outcome;
use job_router::redis::{HandOver, Report, Taken, TakenJob};
use job_router::runner::{Lane, Scope};
use job_router::simulation::{DAY_BEGINS_AT_MS, Day, Fair, JobIndex, Policy};
use tokio::runtime::Runtime;

use crate::simulation::scan::Scan;
use crate::support::{World, instance_lane, job, name, offers, text};

/// Long, so that nothing ends by time.
const LONG: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
pub struct Tally {
    pub takes: usize,
    /// Jobs that went to a slot which came along when they were queued.
    pub handed: usize,
    /// Calls that took more than one job.
    pub many: usize,
    /// Takes of a tenant that waited since its first job was queued, though it had been served before.
    pub since_queued: usize,
    /// Takes of a tenant that waited since it was served.
    pub since_served: usize,
    /// Takes where a tenant of equal share came first.
    pub excused: usize,
}

pub struct BesideScripts<'a> {
    runtime: &'a Runtime,
    world: World,
    pod: Name,
    lane: Lane,
    day: &'a Day,
    /// By Redis' clock, in Unix ms.
    begins_at_ms: u64,
    /// Ours, as long as no take was excused: then the two go different ways.
    fair: Option<Fair<'a>>,
    scan: Scan<'a>,
    tally: &'a mut Tally,
    slots_free: usize,
    leases: BTreeMap<JobIndex, LeaseId>,
    /// Jobs that have a slot since they were queued, and when they were taken.
    handed: VecDeque<(JobIndex, u64)>,
    version: u64,
}

// === impl BesideScripts ===

impl<'a> BesideScripts<'a> {
    pub fn new(runtime: &'a Runtime, day: &'a Day, slots: usize, lead_ms: u64, tally: &'a mut Tally) -> Self {
        let world = runtime.block_on(World::with_scopes(&[Scope::Instance]));
        let begins_at_ms = runtime.block_on(redis_clock(&world)) - lead_ms;
        let mut new = Self {
            runtime,
            world,
            pod: name("pod"),
            lane: instance_lane(),
            day,
            begins_at_ms,
            fair: Some(Fair::new(day)),
            scan: Scan::new(day),
            tally,
            slots_free: slots,
            leases: BTreeMap::new(),
            handed: VecDeque::new(),
            version: 1_780_000_000_000,
        };
        for facts in day.tenants() {
            let (weight, cap, version) = (facts.weight.get(), facts.max_running.map(u32::from), new.version());
            let stored = new.world.partition.tenant(&facts.tenant, &version, weight, cap);
            runtime.block_on(stored).expect("stores");
        }
        for facts in day.projects() {
            let tenant = &day.tenants()[facts.tenant].tenant;
            let (cap, version) = (facts.max_running.map(u32::from), new.version());
            let stored = new.world.partition.project(facts.id, &version, tenant, None, None, cap);
            runtime.block_on(stored).expect("stores");
        }
        new
    }

    fn version(&mut self) -> String {
        self.version += 1;
        format!("{}-0", self.version)
    }

    fn pending(&self, at: JobIndex) -> PendingJob {
        let (facts, mut pending) = (&self.day.jobs()[at], job(at as u64 + 1));
        pending.tenant = self.day.tenants()[self.day.tenant_of(at)].tenant.clone();
        pending.project.id = self.day.projects()[facts.project].id;
        pending.priority = facts.priority;
        pending.queued_at_ms = Some(self.begins_at_ms + facts.queued_at_ms);
        pending
    }

    /// A slot for a job that comes by itself, as in a pod.
    fn slot_for(&self, at: JobIndex) -> Option<HandOver> {
        let when = |at: Option<usize>| at.and_then(|at| self.day.jobs().get(at)).map(|job| job.queued_at_ms);
        let alone = [at.checked_sub(1), Some(at + 1)].into_iter().all(|other| when(other) != when(Some(at)));
        let slot = || HandOver { job_id: JobId(at as u64 + 1), lane: self.lane, rank: 0, offer: offers(1).remove(0) };
        (alone && self.slots_free > 0).then(slot)
    }

    /// The first turn, counted from the beginning of the day, of the script that just took so many jobs.
    fn first_turn(&self, served: usize) -> u64 {
        let last = self.runtime.block_on(self.world.command("GET", &[&self.world.partition.key("turn")]));
        let last: u64 = text(&last).parse().expect("a turn");
        last - (served as u64 - 1) - first_turn_of(self.begins_at_ms)
    }

    /// What `take` gives for so many slots, and in which turns. It is asked again where its index hid work.
    fn taken(&mut self, slots: usize) -> Vec<(JobIndex, u64)> {
        let mut jobs = Vec::new();
        loop {
            let (lanes, offers) = ([self.lane], offers(slots - jobs.len()));
            let take = self.world.partition.take(&self.pod, LONG, 0, &lanes, &offers);
            let Taken { jobs: taken, again, .. } = self.runtime.block_on(take).expect("takes");
            let index = |job: &TakenJob| (job.lease.job_id.0 as usize - 1, job.lease.lease_id);
            self.leases.extend(taken.iter().map(index));
            if !taken.is_empty() {
                jobs.extend(taken.iter().map(|job| index(job).0).zip(self.first_turn(taken.len())..));
            }
            if again.is_empty() || jobs.len() == slots {
                return jobs;
            }
        }
    }

    /// The rule says `expected`; fine only where another tenant of equal share came first, with its next job.
    fn excuse(&mut self, expected: Option<JobIndex>, job: JobIndex) {
        let wrong = format!("the scripts take {job}, the rule {expected:?}");
        let expected = self.scan.tenant(self.day.tenant_of(expected.expect(&wrong)));
        let taken = self.scan.tenant(self.day.tenant_of(job));
        assert_ne!(expected.key, taken.key, "{wrong}");
        let share = |tenant: &job_router::fairness::TenantInLane<'_>| share_rank(tenant.running, tenant.weight);
        assert_eq!(share(&expected), share(&taken), "{wrong}");
        let next = next_of_tenant(&taken).expect("it has one");
        assert_eq!(self.scan.head(next.project, next.priority), job, "{wrong}");
        self.fair = None;
        self.tally.excused += 1;
    }
}

impl Policy for BesideScripts<'_> {
    fn queue(&mut self, job: JobIndex) {
        self.scan.queue(job);
        self.fair.iter_mut().for_each(|fair| fair.queue(job));
        let (batch, slot) = ([(self.version(), self.pending(job))], self.slot_for(job));
        let fan_out = self.world.partition.fan_out(&self.pod, &batch, LONG, slot.as_slice());
        let answer = self.runtime.block_on(fan_out).expect("fans out");
        assert_eq!(answer.outcomes, [Outcome::Ok]);
        for project in answer.changed {
            let index = self.world.partition.index(&self.pod, Some(project));
            self.runtime.block_on(index).expect("indexes");
        }
        if let [lease] = answer.handed[..] {
            self.leases.insert(job, lease.lease_id);
            self.handed.push_back((job, self.first_turn(1)));
            self.tally.handed += 1;
        }
    }

    fn take(&mut self, now_ms: u64) -> Option<JobIndex> {
        self.take_many(now_ms, 1).pop()
    }

    fn take_many(&mut self, _: u64, slots: usize) -> Vec<JobIndex> {
        let mut jobs: Vec<(JobIndex, u64)> = self.handed.drain(..).collect();
        if jobs.len() < slots {
            let more = self.taken(slots - jobs.len());
            self.tally.many += usize::from(more.len() > 1);
            jobs.extend(more);
        }
        for (job, turn) in &jobs {
            let expected = self.scan.next();
            if expected != Some(*job) {
                self.excuse(expected, *job);
            }
            let served = self.scan.tenant(self.day.tenant_of(*job)).served;
            let later = served > first_turn_of(DAY_BEGINS_AT_MS + self.day.jobs()[*job].queued_at_ms);
            self.tally.since_served += usize::from(later);
            self.tally.since_queued += usize::from(!later && served > 0);
            self.scan.take_this(*job, *turn);
            if let Some(fair) = &mut self.fair {
                assert_eq!(fair.take(*turn), Some(*job));
            }
            let start = [Lease { job_id: JobId(*job as u64 + 1), lease_id: self.leases[job] }];
            let started = self.runtime.block_on(self.world.partition.start(LONG, &start)).expect("starts");
            assert_eq!(started[0].outcome(), Outcome::Ok);
        }
        if jobs.len() < slots {
            assert_eq!(self.scan.next(), None, "the scripts leave work");
        }
        self.tally.takes += jobs.len();
        self.slots_free -= jobs.len();
        jobs.into_iter().map(|(job, _)| job).collect()
    }

    fn end(&mut self, job: JobIndex) {
        self.scan.end(job);
        self.fair.iter_mut().for_each(|fair| fair.end(job));
        let report = Report {
            job_id: JobId(job as u64 + 1),
            lease_id: self.leases.remove(&job),
            status: "success",
            exit_code: 0,
            failure_reason: String::new(),
        };
        let finished = self.runtime.block_on(self.world.partition.finish(LONG, &[report])).expect("finishes");
        assert_eq!(finished, [Outcome::Ok]);
        self.slots_free += 1;
    }
}

async fn redis_clock(world: &World) -> u64 {
    let reply = world.redis.command_at(&world.prefix, "TIME", []).await.expect("a time");
    let [seconds, micros] = reply.into_tuple().expect("seconds and microseconds");
    let number = |reply| text(&reply).parse::<u64>().expect("a number");
    number(seconds) * 1_000 + number(micros) / 1_000
}
