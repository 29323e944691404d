//! What may be called next, drawn at random: mostly what makes sense, sometimes what does not.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use job_router::flow::State;
use job_router::job::{
    JobId, Lease, LeaseId, OfferId, PendingJob, Priority, ProjectFacts, ProjectId, RunnerId, Tenant,
};
use job_router::pause::Target;
use job_router::redis::{HandOver, LaneOrder, Manager, Offer, Report, Return};
use job_router::runner::{Lane, Scope};
use job_router::tags::{Capability, Fingerprint};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::Run;
use crate::support::{job, name, offers, tags};

pub const PODS: [&str; 3] = ["pod-1", "pod-2", "pod-3"];
const SCOPES: [Scope; 5] = [Scope::Instance, Scope::Instance, Scope::Group(1), Scope::Group(2), Scope::Project(4)];
const PROJECTS: u64 = 6;
/// Projects up to here keep their tenant and switches for ever, so their lanes are checked to the letter.
const SETTLED: u64 = 3;

/// One call with its arguments.
#[derive(Debug, Clone)]
pub enum Op {
    FanOut(&'static str, Vec<(u64, PendingJob)>, Vec<HandOver>),
    Take(&'static str, Vec<Lane>, Vec<Offer>),
    Start(Vec<Lease>),
    /// Rails says that this runner runs it; none: it does not say which.
    Acknowledge(&'static str, u64, OfferId, Option<Manager>),
    Renew(&'static str, Vec<Lease>),
    GiveBack(&'static str, u32, Vec<Return>),
    Finish(Vec<Report>),
    Cancel(u64),
    Expire(&'static str, Vec<(Lease, String)>),
    Bury(&'static str),
    Heartbeats,
    Payer(Tenant, u64, u32, Option<u32>),
    Project(u64, u64, Tenant, Option<bool>, Option<bool>, Option<u32>),
    Open(&'static str, Scope),
    Index(&'static str),
    Pause(Target, Option<u64>),
    Resume(Target),
    Configure(LaneOrder, Option<Duration>),
    LaneOrder(Option<Lane>, LaneOrder),
}

// === impl Op ===

impl Op {
    /// Whether the same call again changes nothing more: all but a beat, which counts, and a take without slots,
    /// which passes one more wake on.
    pub fn repeats(&self) -> bool {
        match self {
            Self::Renew(..) | Self::Bury(..) | Self::Heartbeats => false,
            Self::Take(_, _, offers) => !offers.is_empty(),
            _ => true,
        }
    }

    /// Whether the same call again wakes again, so that letters and who is next in line may be others.
    pub fn wakes_again(&self) -> bool {
        let brings_work = matches!(self, Self::FanOut(..) | Self::Take(..) | Self::Payer(..) | Self::Resume(..));
        let indexes = matches!(self, Self::Open(..) | Self::Index(..) | Self::Configure(..) | Self::LaneOrder(..));
        brings_work || indexes
    }
}

fn capabilities() -> &'static [(Arc<Capability>, Fingerprint); 3] {
    static ALL: OnceLock<[(Arc<Capability>, Fingerprint); 3]> = OnceLock::new();
    ALL.get_or_init(|| {
        let protected = Capability { tags: tags(&["b"]), protected: true, ..Capability::default() };
        let tagged = Capability { tags: tags(&["a"]), ..Capability::default() };
        [Capability::default(), tagged, protected].map(|job| (Arc::new(job.clone()), job.fingerprint()))
    })
}

/// Every lane there can be.
pub fn lanes_of_all() -> Vec<Lane> {
    let lanes = |scope| capabilities().iter().map(move |(_, fingerprint)| Lane { scope, fingerprint: *fingerprint });
    SCOPES[1..].iter().flat_map(|scope| lanes(*scope)).collect()
}

impl Run {
    pub fn draw(&mut self) -> Op {
        let pod = *self.alive.iter().collect::<Vec<_>>().choose(&mut self.rng).map_or(&"", |pod| *pod);
        if pod.is_empty() {
            return Op::Heartbeats;
        }
        // Most scopes have a runner soon; the rest open when much is queued.
        let opens = if self.model.scopes.len() < 2 { 115 } else { 105 };
        match self.rng.random_range(0..opens) {
            0..21 => {
                let n = if self.rng.random_ratio(1, 40) { 80 } else { self.rng.random_range(1..=4) };
                let jobs: Vec<_> = (0..n).map(|_| self.draw_job()).collect();
                let of_id = |id: JobId| jobs.iter().position(|(_, job)| job.id == id);
                let firsts = jobs.iter().enumerate().filter(|(at, (_, job))| of_id(job.id) == Some(*at));
                let slots = firsts.filter_map(|(_, (_, job))| self.draw_slot(job)).collect();
                Op::FanOut(pod, jobs, slots)
            }
            21..52 => self.draw_take(pod),
            52..61 => Op::Start(self.draw_leases(&[State::Assigned], |lease, _| lease)),
            61 => {
                let runner = (RunnerId(self.rng.random_range(1..=2)), name("s_1"));
                Op::Acknowledge(pod, self.draw_id(), OfferId::random(0), self.rng.random_ratio(3, 4).then_some(runner))
            }
            62..66 => Op::Renew(pod, self.draw_leases(&[State::Running, State::Canceling], |lease, _| lease)),
            66..72 => {
                let failed_delivery = self.rng.random_ratio(2, 3);
                let back = |lease, _| Return { lease, reason: "declined", failed_delivery };
                Op::GiveBack(
                    pod,
                    self.rng.random_range(0..3),
                    self.draw_leases(&[State::Assigned, State::Queued], back),
                )
            }
            72..82 => Op::Finish(self.draw_leases(&[State::Running, State::Canceling], |lease, rails| Report {
                job_id: lease.job_id,
                lease_id: (!rails).then_some(lease.lease_id),
                status: "failed",
                exit_code: 1,
                failure_reason: "script_failure".into(),
            })),
            82..86 => Op::Cancel(self.draw_id()),
            86..91 => {
                let right = self.rng.random_ratio(3, 4);
                let leases = self.draw_leases(&[State::Assigned, State::Running, State::Canceling], |lease, _| lease);
                let beat = |lease: &Lease| self.model.jobs.get(&lease.job_id.0).map(|job| job.beat_text());
                let leases =
                    leases.into_iter().map(|lease| (lease, beat(&lease).filter(|_| right).unwrap_or("7".into())));
                Op::Expire(pod, leases.collect())
            }
            91 => Op::Bury(pod),
            92 => Op::Heartbeats,
            93..95 => {
                let cap = self.rng.random_bool(0.5).then(|| self.rng.random_range(0..4));
                let tenant = Tenant::of_namespace(self.rng.random_range(1..=3));
                Op::Payer(tenant, self.draw_version(), self.rng.random_range(1..4), cap)
            }
            95..97 => self.draw_project(),
            97 | 98 | 105.. => Op::Open(pod, *SCOPES.choose(&mut self.rng).expect("some")),
            99 => Op::Index(pod),
            104 => self.draw_policy(),
            _ => self.draw_pause(),
        }
    }

    /// Mostly newer than all before, sometimes late.
    fn draw_version(&mut self) -> u64 {
        self.version += 2;
        if self.rng.random_ratio(1, 8) { self.version - self.rng.random_range(0..40) } else { self.version }
    }

    /// Near the ids that are in use: some are new, some live, some have ended.
    fn draw_id(&mut self) -> u64 {
        let first = (self.tally.calls - self.tally.repeats) / 4;
        self.rng.random_range(first + 1..first + 40)
    }

    /// The facts of a project, which for some change now and then.
    fn draw_facts(&mut self, id: u64) -> (u64, ProjectFacts) {
        let settled = id <= SETTLED || self.rng.random_ratio(4, 5);
        let tenant = if settled { id.div_ceil(2) } else { self.rng.random_range(1..=3) };
        let facts = ProjectFacts {
            id: ProjectId(id),
            namespace_ids: if settled { vec![id % 2 + 1] } else { vec![1, 2] },
            instance_runners: settled || self.rng.random(),
            group_runners: settled || self.rng.random(),
        };
        (tenant, facts)
    }

    fn draw_job(&mut self) -> (u64, PendingJob) {
        let mut job = job(self.draw_id());
        let (tenant, facts) = {
            let id = self.rng.random_range(1..=PROJECTS);
            self.draw_facts(id)
        };
        (job.tenant, job.project) = (Tenant::of_namespace(tenant), facts);
        job.capability = capabilities().choose(&mut self.rng).expect("some").0.clone();
        let rank = if self.rng.random_ratio(1, 4) { self.rng.random_range(-2..=2) } else { 0 };
        job.priority = Priority::new(rank).expect("in range");
        job.max_attempts = self.rng.random_range(1..=2);
        job.queued_at_ms = Some(1_780_000_000_000 + self.rng.random_range(0..50));
        (self.draw_version(), job)
    }

    /// Often a free slot for a job, mostly in a lane that may be its own.
    fn draw_slot(&mut self, job: &PendingJob) -> Option<HandOver> {
        let own: Vec<Scope> = Scope::of_project(&job.project).collect();
        let scopes = if self.rng.random_ratio(1, 10) { &SCOPES[..] } else { &own };
        let lane = Lane { scope: *scopes.choose(&mut self.rng)?, fingerprint: job.capability.fingerprint() };
        let offer = offers(1).remove(0);
        self.rng.random_ratio(2, 3).then_some(HandOver { job_id: job.id, lane, rank: 0, offer })
    }

    fn draw_project(&mut self) -> Op {
        let id = self.rng.random_range(1..=PROJECTS);
        let (tenant, facts) = self.draw_facts(id);
        let cap = self.rng.random_bool(0.5).then(|| self.rng.random_range(0..3));
        let given = |switch| Some(switch).filter(|_| id > SETTLED);
        let switches = (given(facts.instance_runners), given(facts.group_runners));
        Op::Project(id, self.draw_version(), Tenant::of_namespace(tenant), switches.0, switches.1, cap)
    }

    /// Seldom much at once, so that most takes find something.
    fn draw_pause(&mut self) -> Op {
        let target = match self.rng.random_range(0..12) {
            0 => Target::All,
            1..4 => Target::Lane(*lanes_of_all().choose(&mut self.rng).expect("some")),
            4..7 => Target::Tenant(Tenant::of_namespace(self.rng.random_range(1..=3))),
            _ => Target::Project(ProjectId(self.rng.random_range(1..=PROJECTS))),
        };
        let paused: Vec<&Target> = self.model.paused.iter().collect();
        match paused.choose(&mut self.rng) {
            Some(paused) if self.rng.random_ratio(7, 8) => Op::Resume((*paused).clone()),
            _ if self.rng.random_ratio(1, 10) => Op::Resume(target),
            _ => Op::Pause(target, self.rng.random_bool(0.5).then_some(4_000_000_000_000)),
        }
    }

    fn draw_policy(&mut self) -> Op {
        let order = if self.rng.random() { LaneOrder::Fair } else { LaneOrder::Fifo };
        let instance: Vec<Lane> = lanes_of_all().into_iter().filter(|lane| lane.scope == Scope::Instance).collect();
        match self.rng.random_range(0..4) {
            // Of the size of the differences in queue time.
            0 | 1 => Op::Configure(order, self.rng.random_bool(0.3).then_some(Duration::from_millis(12))),
            2 => Op::LaneOrder(None, order),
            _ => Op::LaneOrder(instance.choose(&mut self.rng).copied(), order),
        }
    }

    fn draw_take(&mut self, pod: &'static str) -> Op {
        let heard: Vec<Lane> = self.woken.get(pod).into_iter().flatten().copied().collect();
        let first = match heard.choose(&mut self.rng) {
            Some(lane) if self.rng.random_bool(0.7) => *lane,
            _ => *lanes_of_all().choose(&mut self.rng).expect("some"),
        };
        let mut lanes = vec![first];
        for lane in lanes_of_all() {
            if Self::kind_of(lane.scope) == Self::kind_of(first.scope) && lane != first && self.rng.random() {
                lanes.push(lane);
            }
        }
        let n = if self.rng.random_ratio(1, 60) { 70 } else { self.rng.random_range(0..4) };
        Op::Take(pod, lanes, offers(n))
    }

    /// Some leases, mostly of jobs in these states and right; now and then of any job, wrong, or Rails' word.
    fn draw_leases<T>(&mut self, states: &[State], make: impl Fn(Lease, bool) -> T) -> Vec<T> {
        let n = if self.rng.random_ratio(1, 50) { 70 } else { self.rng.random_range(1..=3) };
        let mut leases = Vec::new();
        for _ in 0..n {
            let fit = |lease: &(State, Option<Lease>)| states.contains(&lease.0);
            let all: Vec<_> = self.model.jobs.iter().map(|(id, job)| (job.state, job.lease_of(*id))).collect();
            let fitting: Vec<_> = all.iter().copied().filter(fit).collect();
            let from = if self.rng.random_ratio(1, 6) { &all } else { &fitting };
            let random = Lease { job_id: JobId(self.draw_id()), lease_id: LeaseId::random(0) };
            let mut lease = from.choose(&mut self.rng).and_then(|(_, lease)| *lease).unwrap_or(random);
            if self.rng.random_ratio(1, 12) {
                lease.lease_id = LeaseId::random(0);
            }
            leases.push(make(lease, self.rng.random_ratio(1, 10)));
        }
        leases
    }
}
