//! Which steps there are from a state.

use job_router::flow::State;

use super::model::Protocol;
use super::runner::Stage;
use super::world::{Action, World};

// === impl Protocol ===

impl Protocol {
    /// Every step that may come next; some of them change nothing.
    pub fn choices(&self, world: &World, actions: &mut Vec<Action>) {
        self.actions_of_rails_and_redis(world, actions);
        self.actions_of_pods(world, actions);
        self.actions_of_runners(world, actions);
    }

    /// Whether the bounds leave room for another renewal.
    fn may_renew(&self, world: &World) -> bool {
        world.redis.holder().is_none() || world.redis.beat.is_none_or(|beat| beat < self.bounds.beats)
    }

    fn actions_of_rails_and_redis(&self, world: &World, actions: &mut Vec<Action>) {
        actions.extend([Action::Publish, Action::ReadEvent, Action::Tick, Action::Bury]);
        if self.bounds.cancel {
            actions.push(Action::Cancel);
        }
        match world.redis.state {
            Some(State::Canceling) if !self.rules.grace_lasts_a_lease => actions.push(Action::GraceOver),
            Some(State::Running) if !self.rules.own_observation => actions.push(Action::ExpireByRedisClock),
            _ => {}
        }
        if world.failovers > 0 {
            actions.push(if world.replica.is_some() { Action::Failover } else { Action::ReplicaStops });
        }
    }

    fn actions_of_pods(&self, world: &World, actions: &mut Vec<Action>) {
        for pod in 0..usize::from(self.bounds.pods) {
            actions.extend([Action::Look { pod }, Action::PodRestarts { pod }]);
            if world.pods[pod].read.is_some() {
                actions.push(Action::Compare { pod });
            }
            if world.pods[pod].expiring.is_some() {
                actions.push(Action::Expire { pod });
            }
        }
        if world.redis.state == Some(State::Queued) && world.leases < self.bounds.leases {
            // Which of two that are alike is the first makes no difference.
            let runners = if world.leases == 0 { 1 } else { 2 };
            actions.extend((0..runners).map(|runner| Action::Take { runner }));
        }
        let may_renew = self.may_renew(world);
        for id in 1..=world.leases {
            let said = world.said(id);
            if self.bounds.give_back {
                actions.push(Action::GiveBack { lease: id });
            }
            if said.accepted {
                actions.push(Action::Start { lease: id });
            }
            if said.accepted && may_renew {
                actions.push(Action::LateBeat { lease: id });
            }
            if said.finished {
                actions.push(Action::Report { lease: id });
            }
            if said.hello && may_renew {
                actions.push(Action::Resume { lease: id });
            }
        }
    }

    fn actions_of_runners(&self, world: &World, actions: &mut Vec<Action>) {
        let may_renew = self.may_renew(world);
        for (number, runner) in world.runners.iter().enumerate() {
            if runner.beat.is_some() && may_renew {
                actions.push(Action::Renew { runner: number });
            }
            if runner.asleep {
                actions.push(Action::Wake { runner: number });
                continue;
            }
            if self.bounds.sleep && runner.runs() {
                actions.push(Action::Sleep { runner: number });
            }
            if runner.ack.is_some() {
                actions.push(Action::AckArrives { runner: number });
            }
            if let Some(held) = runner.held {
                actions.push(Action::RunnerCrashes { runner: number });
                if self.bounds.slow_beats {
                    actions.push(Action::Beat { runner: number });
                } else if self.rules.fence && may_renew {
                    actions.push(Action::BeatAnswered { runner: number });
                }
                if held.stage == Stage::Running {
                    actions.push(Action::JobEnds { runner: number });
                } else if self.bounds.reconnect {
                    // What it says of a running job renews it, as a beat does.
                    actions.push(Action::Hello { runner: number });
                }
            }
        }
        for id in 1..=world.leases {
            let said = world.said(id);
            if world.runners[usize::from(said.runner)].asleep {
                continue;
            }
            if said.assign {
                actions.push(Action::AssignArrives { lease: id });
            }
            if said.start {
                actions.push(Action::StartArrives { lease: id });
            }
            if said.welcome {
                actions.push(Action::WelcomeArrives { lease: id });
            }
        }
    }
}
