//! Random calls of all scripts that move jobs, each against a small reference of the whole router: same answers, same
//! state, same events, the choice of `fairness`, and no wake lost. `SEED=` repeats a run, `STEPS=` sets its length. Both
//! runs together make more than 200,000 calls of scripts.
mod draw;
mod dump;
mod next;
mod reference;
mod take;
mod tally;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use crate::support::{World, name, text};
use draw::{Op, PODS, lanes_of_all};
use dump::Dump;
use job_router::flow::State;
use job_router::job::{JobId, Lease, LeaseId, OfferId, PendingJob, ProjectId};
use job_router::pause::{Note, Target};
use job_router::redis::scripts::Outcome;
use job_router::redis::{
    HandOver, PrivateRedis, PrivateRedisOptions, Redis, RedisError, RedisSettings, Renewed, Resumed, Started, TakenJob,
};
use job_router::runner::{Lane, Scope};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reference::Reference;
use tally::Tally;

/// Long, so that nothing ends by time.
const LONG: Duration = Duration::from_secs(3600);
/// Steps in one world; short enough that what ended does not pile up, and that pods' heartbeats stay fresh.
const WORLD_STEPS: u64 = 150;

/// How closely a run looks: at the whole state after one of so many calls, and which calls are made again.
#[derive(Clone, Copy)]
enum Pace {
    /// At one of 6, and both before and after one of 6 is made again.
    Close,
    /// At one of 60; each is made again.
    Fast,
}

struct Run {
    world: World,
    pace: Pace,
    model: Reference,
    rng: StdRng,
    dump: Dump,
    last_event: String,
    last_mail: BTreeMap<String, String>,
    alive: BTreeSet<&'static str>,
    /// Wakes each pod has heard and not yet acted on.
    woken: BTreeMap<String, BTreeSet<Lane>>,
    taken: Vec<TakenJob>,
    /// Every lease there was.
    leases: HashSet<LeaseId>,
    /// What was handed over by each offer.
    handed: HashMap<OfferId, Lease>,
    /// Whether pods were told to read all lanes anew.
    resynced: bool,
    version: u64,
    tally: Tally,
}

#[test]
fn the_scripts_do_what_the_reference_does() {
    run(Pace::Close, 20_000);
}

#[test]
fn each_call_twice_is_the_same_to_the_reference_as_once() {
    run(Pace::Fast, 90_000);
}

fn run(pace: Pace, steps: u64) {
    let number = |key: &str| std::env::var(key).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("SEED").unwrap_or_else(rand::random);
    let steps = number("STEPS").unwrap_or(steps);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut tally = Tally::default();
    println!("SEED={seed} STEPS={steps}"); // shown when the test fails
    let server = PrivateRedis::start(&PrivateRedisOptions::default()).expect("redis-server starts");
    runtime.block_on(async {
        // A busy machine is no fault of a script.
        let settings = RedisSettings { command_timeout: Duration::from_secs(60), ..RedisSettings::new(server.url()) };
        let redis = Redis::connect(&settings).await.expect("connects");
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..steps.div_ceil(WORLD_STEPS) {
            let world = World::on(redis.clone());
            let mut run = Run::new(world, pace, StdRng::seed_from_u64(rng.random())).await;
            for _ in 0..WORLD_STEPS {
                run.step().await;
            }
            run.settle(&Op::Heartbeats).await;
            run.clean_up().await;
            tally.add(&run.tally);
        }
        let stats = redis.command_at("any", "INFO", ["commandstats".into()]).await.expect("a reply");
        let stats = text(&stats);
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_fcall:calls=")?.split(',').next());
        println!("{} calls of scripts", calls.expect("some"));
    });
    println!("{tally:?}");
    tally.check(steps);
}

// === impl Run ===

impl Run {
    async fn new(world: World, pace: Pace, rng: StdRng) -> Self {
        for pod in PODS {
            world.heartbeat(pod).await;
        }
        Self {
            world,
            pace,
            model: Reference::default(),
            rng,
            dump: Dump::default(),
            last_event: "0-0".into(),
            last_mail: BTreeMap::new(),
            alive: PODS.into(),
            woken: BTreeMap::new(),
            taken: Vec::new(),
            leases: HashSet::new(),
            handed: HashMap::new(),
            resynced: false,
            version: 1_780_000_000_000,
            tally: Tally::default(),
        }
    }

    async fn step(&mut self) {
        let op = self.draw();
        self.apply(&op, false).await;
        if matches!(self.pace, Pace::Fast) {
            if op.repeats() {
                self.tally.repeats += 1;
                self.apply(&op, true).await;
            }
            if self.rng.random_ratio(1, 60) {
                self.settle(&op).await;
            }
            return;
        }
        let (look, repeat) = (self.rng.random_ratio(1, 6), self.rng.random_ratio(1, 6) && op.repeats());
        if look || repeat {
            self.settle(&op).await;
        }
        if repeat {
            self.tally.repeats += 1;
            self.apply(&op, true).await;
            let before = std::mem::take(&mut self.dump);
            self.dump = Dump::read(&self.world, &self.last_event).await;
            let wakes = op.wakes_again();
            self.dump.assert_same(&before, wakes, &format!("{op:?}"));
            self.settle(&op).await;
        }
    }

    /// One call, its answer compared with the reference's.
    async fn apply(&mut self, op: &Op, again: bool) {
        self.tally.calls += 1;
        let partition = self.world.partition.clone();
        let model = &mut self.model;
        match op {
            Op::FanOut(pod, jobs, slots) => self.fan_out(pod, jobs, slots).await,
            Op::Take(pod, lanes, offers) => self.take(pod, lanes, offers, again).await,
            Op::Start(jobs) => {
                let answer = partition.start(LONG, jobs).await.expect("starts");
                let expected: Vec<_> = jobs.iter().map(|lease| model.start(*lease)).collect();
                let answer: Vec<_> = answer.iter().map(Started::outcome).collect();
                assert_eq!(answer, expected, "{op:?}");
            }
            Op::Acknowledge(pod, id, offer, runner) => {
                let by = name(pod);
                let call = partition.acknowledge(&by, LONG, JobId(*id), *offer, runner.as_ref());
                let answer = call.await.expect("acknowledges");
                let (expected, other_lease) = model.acknowledge(pod, *id, runner.as_ref());
                assert_eq!(answer, expected, "{op:?}");
                if other_lease {
                    let fields = self.world.fields(*id).await;
                    let lease = fields["lease"].split(' ').next().and_then(|id| id.parse().ok());
                    assert!(self.leases.insert(lease.expect("a lease id")), "{op:?}: a lease that was used before");
                    self.model.jobs.get_mut(id).expect("it runs").lease = lease;
                }
            }
            Op::Renew(pod, leases) => {
                let answer = partition.renew(&name(pod), LONG, leases).await.expect("renews");
                let expected: Vec<_> = leases.iter().map(|lease| model.renew(pod, *lease)).collect();
                let kind = |renewed: &Renewed| std::mem::discriminant(renewed);
                assert!(answer.iter().map(kind).eq(expected.iter().map(kind)), "{op:?}: {answer:?}");
            }
            Op::GiveBack(pod, limit, backs) => {
                let (answer, wakes) = partition.give_back(&name(pod), *limit, LONG, backs).await.expect("gives back");
                let expected: Vec<_> = backs.iter().map(|back| model.give_back(*limit, back)).collect();
                assert_eq!(answer, expected, "{op:?}");
                self.hear(pod, wakes);
            }
            Op::Finish(reports) => {
                let answer = partition.finish(LONG, reports).await.expect("finishes");
                let expected: Vec<_> = reports.iter().map(|report| model.finish(report)).collect();
                assert_eq!(answer, expected, "{op:?}");
            }
            Op::Cancel(id) => {
                let answer = partition.cancel(JobId(*id), "why not", LONG, LONG).await.expect("cancels");
                assert_eq!(answer, model.cancel(*id), "{op:?}");
            }
            Op::Expire(pod, leases) => {
                let (answer, wakes) = partition.expire(&name(pod), LONG, leases).await.expect("expires");
                let expected: Vec<_> = leases.iter().map(|(lease, beat)| model.expire(*lease, beat)).collect();
                assert_eq!(answer, expected, "{op:?}");
                self.hear(pod, wakes);
            }
            Op::Bury(pod) => {
                self.index(pod).await; // before it leaves: what that answers is heard too
                // What a leaving pod heard in answers it passes on itself; its mail is passed on by `bury`.
                let lanes: Vec<Lane> = self.woken.remove(*pod).unwrap_or_default().into_iter().collect();
                for lane in lanes {
                    self.take(pod, &[lane], &[], false).await;
                    self.woken.remove(*pod);
                }
                let answer = partition.bury(&name(pod), None).await.expect("buries");
                assert_eq!(answer, Some(self.model.bury(pod)), "{op:?}");
                self.alive.remove(pod);
                self.last_mail.remove(*pod);
            }
            Op::Heartbeats => {
                for pod in PODS {
                    self.world.heartbeat(pod).await;
                    // One that comes back reads all lanes anew; it matters if a letter that told it so went with its mail.
                    if self.alive.insert(pod) && self.resynced {
                        self.hear(pod, lanes_of_all());
                    }
                }
            }
            Op::Payer(tenant, version, weight, cap) => {
                let answer = partition.tenant(tenant, &format!("{version}-0"), *weight, *cap).await.expect("stores");
                assert_eq!(answer, model.payer(tenant, *version, *weight, *cap), "{op:?}");
            }
            Op::Project(id, version, tenant, instance, group, cap) => {
                let entry = format!("{version}-0");
                let answer = partition.project(ProjectId(*id), &entry, tenant, *instance, *group, *cap).await;
                let expected = model.project(*id, *version, tenant, *instance, *group, *cap);
                assert_eq!(answer.expect("stores"), expected, "{op:?}");
            }
            Op::Open(pod, scope) => {
                model.scopes.insert(*scope);
                if !partition.scope(*scope, false).await.expect("opens") {
                    let wakes = partition.index(&name(pod), None).await.expect("indexes");
                    assert!(partition.scope(*scope, true).await.expect("opens"));
                    self.hear(pod, wakes);
                }
            }
            Op::Index(pod) => self.index(pod).await,
            Op::Configure(group, ageing) => {
                (model.policy.group, model.policy.ageing) = (*group, *ageing);
                self.set(partition.configure(*group, *ageing).await).await;
            }
            Op::LaneOrder(lane, order) => {
                match lane {
                    Some(lane) => drop(model.policy.lanes.insert(*lane, *order)),
                    None => (model.policy.instance, model.policy.lanes) = (*order, BTreeMap::new()),
                }
                self.set(partition.set_lane_order(*lane, *order).await).await;
            }
            Op::Pause(target, until_ms) => {
                model.pause(target);
                partition.pause(target, *until_ms, &Note::default(), &Note::default()).await.expect("pauses");
            }
            Op::Resume(target) => {
                let paused = model.paused.remove(target);
                self.resynced |= paused && *target == Target::All;
                let answer = partition.resume(target, &Note::default(), None).await.expect("resumes");
                assert_eq!(answer == Resumed::Done, paused, "{op:?}");
                // It has indexed the project's buckets, whatever change they were to follow.
                if let (Target::Project(id), true) = (target, paused) {
                    model.projects.entry(id.0).and_modify(|project| project.unindexed = false);
                }
            }
        }
    }

    async fn fan_out(&mut self, pod: &str, jobs: &[(u64, PendingJob)], slots: &[HandOver]) {
        let batch: Vec<_> = jobs.iter().map(|(version, job)| (format!("{version}-0"), job.clone())).collect();
        let answer = self.world.partition.fan_out(&name(pod), &batch, LONG, slots).await.expect("fans out");
        let mut seen = BTreeSet::new();
        let served = jobs.iter().filter(|(_, job)| {
            let slot = slots.iter().find(|slot| slot.job_id == job.id && slot.lane.scope == Scope::Instance);
            let is_new = seen.insert(job.id.0) && !self.model.jobs.contains_key(&job.id.0);
            is_new && slot.is_some() && answer.handed.iter().any(|lease| lease.job_id == job.id)
        });
        let served = served.count();
        let mut turn = self.first_turn(served).await;
        let model = &mut self.model;
        let mut outcomes = Vec::new();
        for (version, job) in jobs {
            let outcome = model.fan_out(*version, job.queued_at_ms.expect("set"), job);
            if let Some(slot) = slots.iter().find(|slot| slot.job_id == job.id) {
                let handed = answer.handed.iter().find(|lease| lease.job_id == job.id);
                let known = model.jobs.get(&job.id.0).filter(|_| outcome == Outcome::Known);
                let assigned = known.filter(|job| job.state == State::Assigned);
                let before = assigned
                    .and_then(|job| self.handed.get(&slot.offer.id).filter(|by| job.lease == Some(by.lease_id)));
                assert!(before.is_none() || handed == before, "the same answer again");
                if let Some(lease) = handed.filter(|_| before.is_none()) {
                    assert!(self.leases.insert(lease.lease_id), "{slot:?}: a lease that was used before");
                    self.handed.insert(slot.offer.id, *lease);
                    let next = model.next_of_lane(&model.heads(), slot.lane).map(|(_, next)| next.job);
                    let unindexed = model.projects.values().any(|project| project.unindexed);
                    assert!(next == Some(job.id.0) || unindexed, "{slot:?} was handed its job before {next:?}");
                    model.taken(*lease, slot.lane, pod, &mut turn);
                    self.tally.handed += 1;
                }
            }
            outcomes.push(outcome);
        }
        assert_eq!(answer.outcomes, outcomes, "{jobs:?}");
        let changed: BTreeSet<u64> = answer.changed.iter().map(|id| id.0).collect();
        let batch: BTreeSet<u64> = jobs.iter().map(|(_, job)| job.project.id.0).collect();
        let expected = batch.into_iter().filter(|id| model.projects[id].unindexed).collect();
        assert_eq!(changed, expected, "{jobs:?}");
        self.hear(pod, answer.wakes);
    }

    /// A policy was set.
    async fn set(&mut self, answer: Result<bool, RedisError>) {
        answer.expect("sets");
        assert_eq!(self.world.partition.policy().await.expect("reads"), self.model.policy);
    }

    async fn index(&mut self, pod: &str) {
        let unindexed: Vec<u64> = self.model.projects.iter().filter(|(_, p)| p.unindexed).map(|(id, _)| *id).collect();
        for id in unindexed {
            let wakes = self.world.partition.index(&name(pod), Some(ProjectId(id))).await.expect("indexes");
            self.model.projects.get_mut(&id).expect("known").unindexed = false;
            self.hear(pod, wakes);
        }
    }

    fn hear(&mut self, pod: &str, wakes: Vec<Lane>) {
        self.woken.entry(pod.to_owned()).or_default().extend(wakes);
    }

    /// Reads the whole state and compares all of it.
    async fn settle(&mut self, op: &Op) {
        self.dump = Dump::read(&self.world, &self.last_event).await;
        let mut told: Vec<(u64, String, u32)> =
            self.dump.pairs("events").iter().filter_map(|(_, entry)| event(entry)).collect();
        // In order per job; jobs of one call may come in any.
        told.sort_by_key(|event| event.0);
        self.model.events.sort_by_key(|event| event.0);
        assert_eq!(told, std::mem::take(&mut self.model.events), "{op:?}");
        if let Some((id, _)) = self.dump.pairs("events").last() {
            self.last_event.clone_from(id);
        }
        for pod in PODS {
            let mail = self.dump.pairs(&format!("mail:{pod}")).to_vec();
            let seen = self
                .last_mail
                .get(pod)
                .map_or(0, |last| mail.iter().position(|(id, _)| id == last).map_or(0, |at| at + 1));
            let wakes = |(_, letter): &(String, String)| match letter.strip_prefix("type wake lane ") {
                Some(lane) => vec![lane.parse().expect("a lane")],
                None if letter == "type resync" => lanes_of_all(),
                None => Vec::new(),
            };
            let wakes = mail[seen..].iter().flat_map(wakes).collect();
            self.hear(pod, wakes);
            if let Some((last, _)) = mail.last() {
                self.last_mail.insert(pod.into(), last.clone());
            }
        }
        self.dump.check(&self.model);
        self.check_wakes(op);
    }

    /// Where work and a waiting pod meet, somebody has been woken and will act on it.
    fn check_wakes(&self, op: &Op) {
        if self.model.projects.values().any(|project| project.unindexed) {
            return;
        }
        let heads = self.model.heads();
        for lane in lanes_of_all() {
            let waits = self.dump.members(&format!("waiting:{lane}")).iter().any(|pod| self.alive.contains(&**pod));
            let work = waits && self.model.next_of_lane(&heads, lane).is_some();
            let woken = self.woken.values().any(|lanes| lanes.contains(&lane));
            assert!(!work || woken, "{lane} has work and a waiting pod, and nobody was woken by {op:?}");
            if let Op::Take(pod, lanes, offers) = op {
                let empty = lanes.contains(&lane)
                    && self.taken.len() < offers.len()
                    && self.woken.get(*pod).is_none_or(|woken| !woken.contains(&lane));
                let waits = self.dump.members(&format!("waiting:{lane}")).contains(*pod);
                assert!(!empty || waits, "{pod} has slots left and does not wait in {lane}");
            }
        }
    }

    async fn clean_up(&mut self) {
        let keys: Vec<String> = self.dump.keys.keys().map(|key| self.world.partition.key(key)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        self.world.command("UNLINK", &keys).await;
    }

    /// Scopes that runners of one pod may have at once: all instance, all of groups, or all of projects.
    fn kind_of(scope: Scope) -> u8 {
        match scope {
            Scope::Instance => 0,
            Scope::Group(_) => 1,
            Scope::Project(_) => 2,
        }
    }
}

/// Job, word and attempt of a job's event.
fn event(entry: &str) -> Option<(u64, String, u32)> {
    let (head, data) = entry.split_once(" data ").expect("data");
    let data: serde_json::Value = serde_json::from_str(data).expect("the data is JSON");
    let word = head.rsplit_once("job.")?.1;
    Some((data["id"].as_u64().expect("an id"), word.to_owned(), data["attempt"].as_u64().expect("a number") as u32))
}
