//! What each step does: from state to state.

use job_router::flow::State;
use stateright::{Model, Property};

use super::promises;
use super::record::{Answer, Call, Lease, Outcome, Record};
use super::rules::{AfterFailover, Bounds, LEASE, Rules};
use super::runner::{Held, Stage};
use super::world::{Action, Pod, Rails, Said, Watched, World};

/// The protocol under these rules, within these bounds.
#[derive(Debug, Clone, Copy)]
pub struct Protocol {
    pub rules: Rules,
    pub bounds: Bounds,
}

// === impl Protocol ===

impl Protocol {
    /// The script that this step calls.
    pub fn call_of(&self, world: &World, action: Action) -> Option<Call> {
        let lease_of = |id: u8| world.said(id).lease;
        let by_beat = |lease| Call::Expire(lease, world.redis.beat);
        match action {
            Action::Publish => Some(Call::Publish),
            Action::Cancel => Some(Call::Cancel),
            Action::Take { .. } => Some(Call::Take(world.leases + 1)),
            Action::Start { lease } => lease_of(lease).map(Call::Start),
            Action::Renew { runner } => world.runners[runner].beat.map(|(lease, _)| Call::Renew(lease)),
            Action::BeatAnswered { runner } => world.runners[runner].held.map(|held| Call::Renew(held.lease)),
            Action::LateBeat { lease } | Action::Resume { lease } => lease_of(lease).map(Call::Renew),
            Action::Report { lease } => lease_of(lease).map(Call::Finish),
            Action::GiveBack { lease } => lease_of(lease).map(Call::GiveBack),
            Action::Bury => Some(Call::PodGone),
            Action::GraceOver | Action::ExpireByRedisClock => world.redis.holder().map(by_beat),
            Action::Expire { pod } => world.pods[pod].expiring.map(|(lease, beat)| {
                // Of a cancel the pod passes on the beat of its last look; that it moves is no matter.
                let canceling = world.redis.state == Some(State::Canceling) && beat.is_none();
                Call::Expire(lease, if canceling { world.redis.beat } else { beat })
            }),
            _ => None,
        }
    }

    /// Calls the script, and notes what must not have happened.
    fn call(&self, world: &mut World, call: Call) -> Answer {
        let ended = world.redis.state == Some(State::Ended);
        let done = world.redis.call(&self.rules, &self.bounds, call);
        world.broken.holder |= done.obeyed_another;
        world.broken.end |= ended && (done.told.is_some() || world.redis.state != Some(State::Ended));
        let succeeded = world.redis.end.is_some_and(|end| end.outcome == Outcome::Success);
        world.broken.cancel |= !ended && succeeded && world.rails.cancel_acknowledged;
        done.answer
    }

    fn began_to_run(&self, world: &mut World) {
        world.runs = world.runs.saturating_add(1).min(self.bounds.max_attempts + 1);
        world.broken.canceled_start |= world.rails.cancel_acknowledged;
        world.broken.attempts |= world.runs > self.bounds.max_attempts;
        world.broken.told_start |= world.rails.acted_on.is_some_and(|end| end.outcome == Outcome::Canceled);
    }

    /// Whether a reply may be acted on: under a barrier not before what it says is replicated.
    fn may_tell(&self, world: &World, barrier: bool) -> bool {
        !barrier || world.is_replicated()
    }

    fn apply(&self, world: &mut World, action: Action) {
        let answer = self.call_of(world, action).map(|call| self.call(world, call));
        match action {
            Action::Cancel => {
                let ended = answer == Some(Answer::Ok) && world.redis.end.is_some();
                world.rails.cancel_acknowledged |= ended && self.may_tell(world, self.rules.barrier_cancel);
            }
            Action::ReadEvent => self.read_event(world),
            Action::Take { runner } => {
                if let Some(Answer::Taken(lease)) = answer {
                    world.leases += 1;
                    let assign = self.may_tell(world, self.rules.barrier_push);
                    let said = Said { lease: Some(lease), runner: runner as u8, assign, ..Said::default() };
                    *world.said_mut(lease.id) = said;
                }
            }
            Action::Start { lease } => {
                let may_tell = self.may_tell(world, self.rules.barrier_start);
                world.said_mut(lease).start |= answer == Some(Answer::Ok) && may_tell;
            }
            Action::BeatAnswered { runner } => {
                if world.runners[runner].held.is_some_and(|held| may_answer(world, held, answer)) {
                    world.runners[runner].acknowledged(&self.rules, 0);
                }
            }
            Action::Renew { runner } => self.renewed(world, runner, answer),
            Action::Resume { lease } => {
                let may_tell = self.may_tell(world, self.rules.barrier_welcome);
                world.said_mut(lease).welcome |= answer == Some(Answer::Ok) && may_tell;
            }
            Action::Report { .. } => {
                let recorded = answer == Some(Answer::Ok) && self.may_tell(world, self.rules.barrier_finish);
                // It can be lost only with a primary.
                world.finish_acknowledged |= recorded && self.bounds.failovers > 0;
            }
            Action::Look { pod } => {
                let seen = self.watched_now(world);
                let pod = &mut world.pods[pod];
                pod.read = seen.map(|(lease, beat)| (lease, beat, is_old(pod)));
                if seen.is_none() {
                    pod.watched = None;
                } else if !self.bounds.slow_looks {
                    self.compare(pod);
                }
            }
            Action::Compare { pod } => self.compare(&mut world.pods[pod]),
            Action::PodRestarts { pod } => world.pods[pod] = Default::default(),
            Action::AssignArrives { lease } => self.assign_arrives(world, lease),
            Action::StartArrives { lease } | Action::WelcomeArrives { lease } => {
                if world.runner_of(lease).started(lease) {
                    self.began_to_run(world);
                }
            }
            Action::AckArrives { runner } => {
                if let Some(age) = world.runners[runner].ack {
                    world.runners[runner].acknowledged(&self.rules, age);
                }
            }
            Action::Beat { runner } => {
                let runner = &mut world.runners[runner];
                runner.beat = runner.held.map(|held| (held.lease, 0));
            }
            Action::Hello { runner } => {
                if let Some(held) = world.runners[runner].held {
                    world.said_mut(held.lease.id).hello = true;
                }
            }
            Action::JobEnds { runner } => {
                if let Some(held) = world.runners[runner].held {
                    world.runners[runner].drop_job();
                    world.said_mut(held.lease.id).finished = true;
                }
            }
            Action::RunnerCrashes { runner } => world.runners[runner].drop_job(),
            Action::Sleep { runner } => world.runners[runner].asleep = true,
            Action::Wake { runner } => world.runners[runner].asleep = false,
            Action::Tick => self.tick(world),
            Action::ReplicaStops => world.replica = Some(world.redis),
            Action::Failover => {
                world.failovers -= 1;
                if let Some(replica) = world.replica.take() {
                    world.redis = replica;
                }
                for pod in &mut world.pods[..usize::from(self.bounds.pods)] {
                    match self.rules.after_failover {
                        AfterFailover::GoOn => {}
                        AfterFailover::Pause => pod.pause = LEASE,
                        // Also what was read before and is yet to be compared.
                        AfterFailover::Forget => (pod.watched, pod.read) = (None, None),
                    }
                }
            }
            // The call was all.
            Action::Publish
            | Action::GiveBack { .. }
            | Action::LateBeat { .. }
            | Action::Bury
            | Action::GraceOver
            | Action::ExpireByRedisClock => {}
            Action::Expire { pod } => world.pods[pod].expiring = None,
        }
    }

    fn read_event(&self, world: &mut World) {
        let replica = world.replica.filter(|_| self.rules.replicated_events);
        let Some(end) = replica.unwrap_or(world.redis).end else { return };
        let Rails { acted_on, .. } = &mut world.rails;
        world.broken.rails |= acted_on.is_some_and(|earlier| earlier != end);
        *acted_on = Some(end);
    }

    /// What a look sees that is watched: a running job with its beat; one that is being canceled, whatever its beat.
    fn watched_now(&self, world: &World) -> Option<(Lease, Option<u8>)> {
        let Record { state, lease, beat, .. } = world.redis;
        match state {
            Some(State::Running) => lease.map(|lease| (lease, beat)),
            Some(State::Canceling) if self.rules.grace_lasts_a_lease => lease.map(|lease| (lease, None)),
            _ => None,
        }
    }

    /// A pod compares what it has read to what it read before.
    fn compare(&self, pod: &mut Pod) {
        let Some((lease, beat, was_old)) = pod.read.take() else { return };
        let same = pod.watched.is_some_and(|watched| (watched.lease, watched.beat) == (lease, beat));
        if !same {
            pod.watched = Some(Watched { lease, beat, ticks: 0 });
        } else if pod.pause == 0 && (was_old || !self.rules.counts_to_asking && is_old(pod)) {
            pod.watched = None;
            pod.expiring = Some((lease, beat));
        }
    }

    fn renewed(&self, world: &mut World, runner: usize, answer: Option<Answer>) {
        let Some((lease, age)) = world.runners[runner].beat.take() else { return };
        let Some(held) = world.runners[runner].held.filter(|held| held.lease == lease) else { return };
        if age < self.rules.fence_ticks && may_answer(world, held, answer) {
            world.runners[runner].ack = Some(age);
        }
    }

    fn assign_arrives(&self, world: &mut World, id: u8) {
        let Some(lease) = world.said(id).lease else { return };
        world.said_mut(id).assign = !self.rules.assign_once;
        if world.runner_of(id).assigned(&self.rules, lease) {
            world.said_mut(id).accepted = true;
            if !self.rules.accept_gate {
                self.began_to_run(world);
            }
        }
    }

    fn tick(&self, world: &mut World) {
        world.runners.iter_mut().for_each(|runner| runner.tick(&self.rules));
        for pod in &mut world.pods {
            pod.pause = pod.pause.saturating_sub(1);
            if let Some(watched) = &mut pod.watched {
                watched.ticks = LEASE.min(watched.ticks + 1);
            }
        }
    }
}

/// Whether a beat that lists this job extends what the runner believes: when the lease was renewed, and while its start is on its
/// way, as far as its pod knows. `Cancel` goes before the answer and ends a job that waits for its start.
fn may_answer(world: &World, held: Held, renewed: Option<Answer>) -> bool {
    match (renewed, held.stage) {
        (Some(Answer::Ok), _) | (Some(Answer::Canceling), Stage::Running) => true,
        (Some(Answer::Stale | Answer::Gone), Stage::Accepted) => !world.said(held.lease.id).start,
        _ => false,
    }
}

fn is_old(pod: &Pod) -> bool {
    pod.watched.is_some_and(|watched| watched.ticks >= LEASE)
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.bounds.failovers)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if !world.is_broken() {
            self.choices(world, actions);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = *world;
        self.apply(&mut next, action);
        next.pods[..usize::from(self.bounds.pods)].sort_unstable(); // which pod knows it makes no difference
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        promises::all()
    }
}
