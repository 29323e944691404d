//! Every (state, event) through the table in Rust and through the scripts in Redis: the same moves.

use std::time::Duration;

use crate::support::{World, instance_lane, job, name, offers};
use job_router::flow::{Event, State};
use job_router::job::{JobId, Lease, LeaseId, OfferId, RunnerId};
use job_router::redis::scripts::Outcome;
use job_router::redis::{Expired, Renewed, Report, Return};
use job_router::runner::Scope;

const LONG: Duration = Duration::from_secs(3600);
const STATES: [State; 5] = [State::Queued, State::Assigned, State::Running, State::Canceling, State::Ended];
const EVENTS: [Event; 12] = [
    Event::Take,
    Event::Start,
    Event::RunByRails,
    Event::Beat,
    Event::GiveBack { limit_reached: false },
    Event::GiveBack { limit_reached: true },
    Event::Cancel,
    Event::Finish,
    Event::FinishByRails,
    Event::Expire { attempts_left: true },
    Event::Expire { attempts_left: false },
    Event::PodGone,
];

/// Job 1 in a state, and the lease it was last under: a queued one has been given back.
async fn world_in(state: State, event: Event) -> (World, Lease) {
    let world = World::with_scopes(&[Scope::Instance]).await;
    let mut job = job(1);
    job.max_attempts = if event == (Event::Expire { attempts_left: true }) { 2 } else { 1 };
    world.queue(job).await;
    let taken = world.partition.take(&name("pod"), LONG, 0, &[instance_lane()], &offers(1)).await.expect("takes").jobs;
    let lease = taken[0].lease;
    let path: &[Event] = match state {
        State::Queued => &[Event::GiveBack { limit_reached: false }],
        State::Assigned => &[],
        State::Running => &[Event::Start],
        State::Canceling => &[Event::Start, Event::Cancel],
        State::Ended => &[Event::Start, Event::Finish],
    };
    for event in path {
        assert!(apply(&world, *event, lease).await, "{event:?} leads to {state:?}");
    }
    (world, lease)
}

/// Lets it happen; answers whether the script says that it was legal.
async fn apply(world: &World, event: Event, lease: Lease) -> bool {
    let (partition, pod) = (&world.partition, name("pod"));
    let report = |lease_id: Option<LeaseId>| Report {
        job_id: lease.job_id,
        lease_id,
        status: "failed",
        exit_code: 1,
        failure_reason: "script_failure".into(),
    };
    match event {
        Event::Take => {
            let taken = partition.take(&pod, LONG, 0, &[instance_lane()], &offers(1)).await.expect("takes").jobs;
            !taken.is_empty()
        }
        Event::Start => {
            let started = partition.start(LONG, &[lease]).await.expect("starts");
            started[0].outcome() == Outcome::Ok
        }
        Event::RunByRails => {
            let (offer, runner) = (OfferId::random(0), (RunnerId(1), name("s_1")));
            ok(&[partition.acknowledge(&pod, LONG, lease.job_id, offer, Some(&runner)).await.expect("acknowledges")])
        }
        Event::Beat => partition.renew(&pod, LONG, &[lease]).await.expect("renews") != [Renewed::NotYours],
        Event::GiveBack { limit_reached } => {
            let back = Return { lease, reason: "declined", failed_delivery: true };
            let limit = if limit_reached { 0 } else { 3 };
            ok(&partition.give_back(&pod, limit, LONG, &[back]).await.expect("gives back").0)
        }
        Event::Cancel => ok(&[partition.cancel(lease.job_id, "no need", LONG, LONG).await.expect("cancels")]),
        Event::Finish => ok(&partition.finish(LONG, &[report(Some(lease.lease_id))]).await.expect("finishes")),
        Event::FinishByRails => ok(&partition.finish(LONG, &[report(None)]).await.expect("finishes")),
        Event::Expire { .. } => {
            let beat = world.fields(1).await.get("beat").cloned().unwrap_or_default();
            partition.expire(&pod, LONG, &[(lease, beat)]).await.expect("expires").0 != [Expired::Not]
        }
        Event::PodGone => partition.bury(&pod, None).await.expect("buries") == Some(1),
    }
}

fn ok(outcomes: &[Outcome]) -> bool {
    outcomes == [Outcome::Ok]
}

/// The state of job 1 as Redis has it.
async fn state_in(world: &World) -> State {
    let fields = world.fields(1).await;
    let word = fields.get("state").map(String::as_str);
    let ended = world.snapshot().await.contains_key("ended:1");
    assert_eq!(word.is_none(), ended, "live or ended, never both or neither");
    STATES.into_iter().find(|state| state.word() == word).expect("a state")
}

#[tokio::test]
async fn every_event_in_every_state_does_in_redis_what_the_table_says() {
    for state in STATES {
        for event in EVENTS {
            let (world, lease) = world_in(state, event).await;
            assert_eq!(state_in(&world).await, state);
            let (before, events) = (world.snapshot().await, world.events().await.len());
            let legal = apply(&world, event, lease).await;
            let next = state.next(event);
            assert_eq!(legal, next.is_some(), "{state:?}, {event:?}: the script says {legal}");
            assert_eq!(state_in(&world).await, next.unwrap_or(state), "{state:?}, {event:?}");

            let moved = next.is_some_and(|next| next != state);
            let told = world.events().await.len() - events;
            // A cancel of a running job is told when it has stopped.
            let handed_out = usize::from((state, event) == (State::Queued, Event::RunByRails)); // told of first
            assert_eq!(
                told,
                usize::from(moved && next != Some(State::Canceling)) + handed_out,
                "{state:?}, {event:?}: told"
            );
            // A beat counts itself, a take that finds nothing waits, a pod that leaves is forgotten.
            if !moved && !matches!(event, Event::Beat | Event::Take | Event::PodGone) {
                assert_eq!(world.snapshot().await, before, "{state:?}, {event:?}: nothing changes");
            }
        }
    }
}

#[tokio::test]
async fn every_event_of_a_wrong_lease_changes_nothing_in_any_state() {
    let of_a_runner = [
        Event::Start,
        Event::Beat,
        Event::GiveBack { limit_reached: true },
        Event::Finish,
        Event::Expire { attempts_left: true },
    ];
    for state in STATES {
        for event in of_a_runner {
            let (world, lease) = world_in(state, event).await;
            let before = world.snapshot().await;
            let wrong = Lease { job_id: JobId(1), lease_id: LeaseId::random(0) };
            assert_ne!(wrong, lease);
            assert!(!apply(&world, event, wrong).await, "{state:?}, {event:?}");
            assert_eq!(world.snapshot().await, before, "{state:?}, {event:?}");
        }
    }
}

#[test]
fn the_end_is_final_and_can_be_reached_from_everywhere() {
    for event in EVENTS {
        assert!(matches!(State::Ended.next(event), None | Some(State::Ended)), "{event:?}");
    }
    for state in STATES {
        let ends = |event: &Event| state.next(*event) == Some(State::Ended);
        assert!(EVENTS.iter().any(ends), "{state:?}");
    }
}
