//! The lease protocol as a model, all of whose states are walked: what the rules promise, what each of them is for, and that the
//! scripts in `lua/` do what the model says. `docs/protocol-model.md` says what is modelled and what is not.
//!
//! A rung is the rules with one or more left out. It must break just what `docs/protocol-model.md` says: a checker that finds nothing
//! there would find nothing anywhere.
mod check;
mod choices;
mod model;
mod promises;
mod reach;
mod record;
mod replay;
mod rules;
mod runner;
mod world;

use std::collections::BTreeSet;

use check::{Found, exhaust, shortest};
use model::Protocol;
use promises::{
    ATTEMPTS_KEPT, CANCEL_WINS, CANCELED_IS_NOT_STARTED, END_IS_FINAL, FINISH_KEPT, HOLDER_ONLY, ONE_END, ONE_RUNNER,
    TOLD_IS_NOT_STARTED,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use reach::Graph;
use replay::{Replay, calls, states};
use rules::{AfterFailover, Bounds, Compare, Rules};
use stateright::Model;

/// Walks all; what is broken must be `expected`, of those promises that the rung speaks of.
fn rung(what: &str, rules: Rules, bounds: Bounds, spoken_of: &[&'static str], expected: &[&'static str]) {
    let protocol = Protocol { rules, bounds };
    let Found { states, depth, took, broken } = exhaust(protocol);
    println!("{what}: {states} states, depth {depth}, {:.1} s", took.as_secs_f32());
    let (broken, others): (BTreeSet<_>, BTreeSet<_>) = broken.into_iter().partition(|name| spoken_of.contains(name));
    for name in &broken {
        let history = shortest(protocol, name);
        println!("  broken in {} steps: {name}", history.len());
        history.iter().for_each(|action| println!("    {action:?}"));
    }
    for name in &others {
        println!("  broken too: {name}");
    }
    assert_eq!(broken, BTreeSet::from_iter(expected.iter().copied()), "{what}");
}

/// How many random histories are replayed, with one attempt and with two.
const HISTORIES: usize = 150;

const P1_TO_P4: [&str; 4] = [ONE_RUNNER, HOLDER_ONLY, CANCEL_WINS, ONE_END];
const ALL: [&str; 9] = [
    ONE_RUNNER,
    HOLDER_ONLY,
    CANCEL_WINS,
    ONE_END,
    END_IS_FINAL,
    ATTEMPTS_KEPT,
    FINISH_KEPT,
    CANCELED_IS_NOT_STARTED,
    TOLD_IS_NOT_STARTED,
];

fn with_failover() -> Bounds {
    Bounds::with_failovers(1)
}

/// Where new sessions and failed deliveries would only make it longer.
fn short() -> Bounds {
    Bounds { give_back: false, reconnect: false, ..Bounds::small() }
}

/// Where new sessions would only make it longer.
fn without_sessions() -> Bounds {
    Bounds { reconnect: false, ..with_failover() }
}

#[test]
fn rung_0_without_a_fence_two_runners_run() {
    rung("rung 0", Rules::of_rung(0), Bounds::small(), &P1_TO_P4, &[ONE_RUNNER]);
}

#[test]
fn rung_1_with_a_fence_and_no_failover_nothing_breaks() {
    rung("rung 1", Rules::of_rung(1), Bounds::small(), &P1_TO_P4, &[]);
}

#[test]
fn rung_2_a_counter_is_no_fence_across_a_failover() {
    rung("rung 2", Rules::of_rung(2), without_sessions(), &P1_TO_P4, &P1_TO_P4);
}

#[test]
fn rung_3_unique_leases_keep_strangers_from_finishing() {
    rung("rung 3", Rules::of_rung(3), without_sessions(), &P1_TO_P4, &[ONE_RUNNER, CANCEL_WINS, ONE_END]);
}

#[test]
fn rung_4_barriers_before_push_and_start_still_let_leases_expire_by_lost_beats() {
    rung("rung 4", Rules::of_rung(4), without_sessions(), &P1_TO_P4, &[ONE_RUNNER, CANCEL_WINS, ONE_END]);
}

#[test]
fn rung_5_quiet_after_a_failover_leaves_one_runner() {
    rung("rung 5", Rules::of_rung(5), without_sessions(), &P1_TO_P4, &[CANCEL_WINS, ONE_END]);
}

#[test]
fn rung_6_a_barrier_before_a_cancel_is_acknowledged_makes_it_final() {
    rung("rung 6", Rules::of_rung(6), without_sessions(), &P1_TO_P4, &[ONE_END]);
}

#[test]
fn rung_7_rails_acts_on_replicated_events_and_nothing_breaks() {
    rung("rung 7", Rules::of_rung(7), with_failover(), &P1_TO_P4, &[]);
}

#[test]
fn rung_8_nor_across_two_failovers() {
    rung("rung 8", Rules::of_rung(7), Bounds::with_failovers(2), &P1_TO_P4, &[]);
}

#[test]
fn with_every_rule_nothing_at_all_breaks() {
    let bounds = with_failover();
    rung("all rules, 3 leases", Rules::all(), Bounds { leases: 3, ..without_sessions() }, &ALL, &[]);
    rung("all rules, 2 pods watch", Rules::all(), Bounds { pods: 2, ..without_sessions() }, &ALL, &[]);
    rung("all rules, 2 beats", Rules::all(), Bounds { beats: 2, ..bounds }, &ALL, &[]);
    rung("all rules, deliveries fail", Rules::all(), Bounds { give_back: true, ..bounds }, &ALL, &[]);
    rung("all rules, one attempt", Rules::all(), Bounds { max_attempts: 1, ..bounds }, &ALL, &[]);
    rung("all rules, slow looks", Rules::all(), Bounds { slow_looks: true, ..bounds }, &ALL, &[]);
}

/// The router of today has no replica to wait for.
#[test]
fn the_rules_of_the_router_break_nothing_on_one_redis() {
    let (rules, bounds) = (Rules::of_the_router(), Bounds::small());
    rung("router, 3 leases", rules, Bounds { leases: 3, give_back: false, ..bounds }, &ALL, &[]);
    rung("router, 2 pods watch", rules, Bounds { pods: 2, ..bounds }, &ALL, &[]);
    rung("router, 3 beats", rules, Bounds { beats: 3, ..bounds }, &ALL, &[]);
    rung("router, slow beats", rules, Bounds { slow_beats: true, reconnect: false, ..bounds }, &ALL, &[]);
    rung("router, slow looks", rules, Bounds { slow_looks: true, ..bounds }, &ALL, &[]);
    rung("router, machines sleep", rules, Bounds { sleep: true, ..bounds }, &ALL, &[]);
    rung("router, one attempt", rules, Bounds { max_attempts: 1, ..bounds }, &ALL, &[]);
}

#[test]
fn a_cancel_whose_grace_is_shorter_than_a_lease_is_told_while_its_start_is_on_its_way() {
    let rules = Rules { grace_lasts_a_lease: false, ..Rules::of_the_router() };
    rung("short grace", rules, Bounds::small(), &ALL, &[TOLD_IS_NOT_STARTED]);
}

#[test]
fn without_the_start_script_a_late_assign_runs_beside_another_runner() {
    let rules = Rules { accept_gate: false, ..Rules::all() };
    let expected = [ONE_RUNNER, CANCELED_IS_NOT_STARTED];
    rung("no accept gate", rules, Bounds::small(), &expected, &expected);
}

/// A pod pushes a job once and a stream repeats nothing: the fence of an accepted job counts from its acceptance because of that.
#[test]
fn an_assign_that_came_twice_would_run_past_its_lease() {
    let rules = Rules { assign_once: false, ..Rules::all() };
    rung("Assign twice", rules, short(), &P1_TO_P4, &[ONE_RUNNER]);
}

#[test]
fn without_comparing_leases_a_stranger_finishes_the_job() {
    let rules = Rules { compare: Compare::Nothing, ..Rules::all() };
    rung("leases not compared", rules, Bounds::small(), &P1_TO_P4, &[ONE_RUNNER, HOLDER_ONLY]);
}

#[test]
fn leases_that_are_compared_by_order_obey_a_stranger_after_a_failover() {
    let rules = Rules { compare: Compare::Order, ..Rules::of_rung(3) };
    rung("leases by order", rules, without_sessions(), &[HOLDER_ONLY], &[HOLDER_ONLY]);
}

#[test]
fn a_fence_after_the_end_of_the_lease_is_none() {
    let rules = Rules { fence_ticks: rules::LEASE + 1, ..Rules::all() };
    rung("late fence", rules, Bounds::small(), &P1_TO_P4, &[ONE_RUNNER]);
}

#[test]
fn a_lease_that_counts_from_the_answer_to_a_beat_outlasts_the_routers() {
    let bounds = Bounds { slow_beats: true, ..short() };
    let rules = Rules { counts_from_sending: false, ..Rules::all() };
    rung("lease from the answer", rules, bounds, &P1_TO_P4, &[ONE_RUNNER]);
}

#[test]
fn a_clock_that_sleeps_with_its_machine_fences_too_late() {
    let rules = Rules { boot_time: false, ..Rules::all() };
    rung("sleeping clock", rules, Bounds { sleep: true, ..Bounds::small() }, &P1_TO_P4, &[ONE_RUNNER]);
}

#[test]
fn leases_that_expire_by_redis_clock_expire_when_it_jumps() {
    let rules = Rules { own_observation: false, ..Rules::all() };
    rung("expiry by Redis' clock", rules, Bounds::small(), &P1_TO_P4, &[ONE_RUNNER]);
}

/// Each of the two is enough on one Redis.
#[test]
fn an_expire_that_neither_looks_at_the_beat_nor_counts_to_the_question_ends_a_lease_that_was_renewed() {
    let bounds = Bounds { slow_looks: true, ..short() };
    let one = Rules { counts_to_asking: false, ..Rules::of_the_router() };
    rung("counts to the answer", one, bounds, &P1_TO_P4, &[]);
    let other = Rules { expire_looks_at_beat: false, ..Rules::of_the_router() };
    rung("does not look", other, bounds, &P1_TO_P4, &[]);
    let rules = Rules { expire_looks_at_beat: false, ..one };
    rung("expire does not look", rules, bounds, &P1_TO_P4, &[ONE_RUNNER]);
}

/// A beat that was seen, lost, and raised again looks as if it had never moved.
#[test]
fn pods_that_pause_after_a_failover_and_forget_nothing_are_taken_in_by_a_beat_raised_again() {
    let rules = Rules { after_failover: AfterFailover::Pause, ..Rules::all() };
    rung("pause after a failover", rules, without_sessions(), &P1_TO_P4, &[ONE_RUNNER]);
}

/// The beat that was renewed between a slow look and its `expire` is lost with the primary: then it seems to be unchanged.
#[test]
fn a_lease_that_counts_to_the_answer_of_a_look_expires_too_soon_across_a_failover() {
    let bounds = Bounds { slow_looks: true, ..without_sessions() };
    let rules = Rules { counts_to_asking: false, ..Rules::all() };
    rung("look counts to its answer", rules, bounds, &P1_TO_P4, &[ONE_RUNNER]);
}

#[test]
fn without_the_record_of_an_end_a_second_publication_runs_the_job_again() {
    let rules = Rules { ended_kept: false, ..Rules::all() };
    rung("ends not kept", rules, Bounds::small(), &[END_IS_FINAL], &[END_IS_FINAL]);
}

#[test]
fn a_finish_that_may_not_be_repeated_is_told_twice() {
    let rules = Rules { finish_idempotent: false, ..Rules::all() };
    rung("finish not idempotent", rules, Bounds::small(), &ALL, &[END_IS_FINAL]);
}

#[test]
fn a_start_that_does_not_look_starts_a_canceled_job() {
    let rules = Rules { start_looks_at_state: false, ..Rules::all() };
    let expected = [ONE_RUNNER, CANCELED_IS_NOT_STARTED];
    rung("start does not look", rules, Bounds::small(), &expected, &expected);
}

/// `Welcome` says of a job that it was started, as `Start` does: it needs the same barrier.
#[test]
fn without_a_barrier_before_welcome_a_lost_start_runs_beside_another_runner() {
    let rules = Rules { barrier_welcome: false, ..Rules::all() };
    let expected = [ONE_RUNNER, CANCELED_IS_NOT_STARTED];
    rung("no barrier before Welcome", rules, with_failover(), &expected, &expected);
}

#[test]
fn without_a_barrier_before_its_acknowledgement_a_finish_is_lost_with_the_primary() {
    let rules = Rules { barrier_finish: false, ..Rules::all() };
    rung("no barrier before FinishedAck", rules, with_failover(), &ALL, &[FINISH_KEPT]);
}

#[test]
fn from_every_state_the_job_can_end_with_no_help_of_runners_or_rails() {
    let by_pods = |action| {
        use world::Action::*;
        matches!(action, Take { .. } | GiveBack { .. } | Bury | GraceOver | Expire { .. } | Look { .. } | Tick)
    };
    // The first delivery that fails is the end, so that a queued job needs one more lease; they are counted here.
    let bounds = Bounds { leases: 3, give_back_limit: 0, reconnect: false, ..Bounds::small() };
    let graph = Graph::of(&Protocol { rules: Rules::of_the_router(), bounds }, by_pods);
    let mut stuck = graph.without_end();
    stuck.retain(|world| world.redis.state.is_some() && world.leases < bounds.leases);
    println!("{} states", graph.len());
    assert!(stuck.is_empty(), "{} states, such as {:?}", stuck.len(), stuck[0]);
}

#[tokio::test]
async fn every_call_in_every_state_does_in_redis_what_the_model_says() {
    let bounds = Bounds { leases: 3, beats: 2, ..Bounds::small() };
    let mut replay = Replay::new(bounds).await;
    let (mut lives, mut compared) = (0, 0);
    let states = states(&bounds);
    for (way, record) in &states {
        // What changes nothing is called in one life, all else in a life of its own.
        let changes = |call: &record::Call| {
            let mut next = *record;
            next.call(&Rules::all(), &bounds, *call);
            next != *record
        };
        let (moves, still): (Vec<_>, Vec<_>) = calls(&bounds, way).into_iter().partition(changes);
        for calls in std::iter::once(still).chain(moves.into_iter().map(|call| vec![call])) {
            replay.next_job().await;
            replay.go(way).await;
            let mut record = *record;
            for call in calls {
                replay.step(&mut record, call).await;
                compared += 1;
            }
            lives += 1;
        }
    }
    println!("{} states, {compared} calls compared in {lives} lives", states.len());
}

#[tokio::test]
async fn random_histories_of_the_model_go_the_same_way_in_redis() {
    let seed = std::env::var("SEED").ok().map_or_else(rand::random, |seed| seed.parse().expect("a number"));
    println!("SEED={seed}"); // shown when the test fails
    let mut rng = StdRng::seed_from_u64(seed);
    let mut compared = 0;
    for max_attempts in [1, 2] {
        let bounds = Bounds { leases: 4, beats: 4, max_attempts, give_back_limit: 2, ..Bounds::small() };
        let protocol = Protocol { rules: Rules::of_the_router(), bounds };
        let mut replay = Replay::new(bounds).await;
        for _ in 0..HISTORIES {
            replay.next_job().await;
            let mut world = protocol.init_states().remove(0);
            for _ in 0..rng.random_range(10..80) {
                let mut actions = Vec::new();
                protocol.actions(&world, &mut actions);
                // What ends the job at once is drawn less often, or histories would be short.
                let ends = |action: &world::Action| matches!(action, world::Action::Cancel);
                actions.retain(|action| !ends(action) || rng.random_ratio(1, 8));
                let action = *actions.choose(&mut rng).expect("time passes at least");
                if let Some(call) = protocol.call_of(&world, action) {
                    let mut record = world.redis;
                    replay.step(&mut record, call).await;
                    compared += 1;
                }
                world = protocol.next_state(&world, action).unwrap_or(world);
            }
        }
    }
    println!("{compared} calls compared");
}
