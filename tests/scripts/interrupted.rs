//! Every script is cut off at every command it calls, and called again: then all is as if it had never been cut off.
//!
//! Redis keeps what a script wrote before an error. So a script either fails before it writes, or writes in an order in
//! which the same call completes it. What may differ all the same, [`State`] says.
mod calls;
mod server;
mod situations;
mod state;

use std::collections::BTreeSet;

use crate::support::World;
use calls::{Answer, Call};
use job_router::job::Lease;
use job_router::redis::Refusal;
use job_router::redis::scripts::ALL;
use server::{Saved, Server};
use situations::{Situation, ends, losses, operators, queues, takes};
use state::State;

/// A call that was made without an error, and once more.
struct Whole {
    before: State,
    first: (Answer, State),
    second: (Answer, State),
    calls: u64,
}

struct Stage {
    world: World,
    saved: Saved,
    call: Call,
    name: String,
}

impl Stage {
    async fn set(server: &Server, situation: &Situation) -> Self {
        let world = server.world().await;
        let call = (situation.make)(&world).await;
        let name = format!("{}, {}", call.script(), situation.name);
        Self { world, saved: server.save().await, call, name }
    }

    async fn whole(&self, server: &Server) -> Whole {
        server.restore(&self.saved, 0).await;
        let before = State::read(server).await;
        let first = self.call.make(&self.world).await.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let calls = server.calls().await;
        let first = (first, State::read(server).await);
        let second = self.call.make(&self.world).await.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let second = (second, State::read(server).await);
        Whole { before, first, second, calls }
    }

    /// The call is cut off at its `at`th command, and made again.
    async fn cut_off(&self, server: &Server, whole: &Whole, at: u64, found: &mut Vec<String>) {
        server.restore(&self.saved, at).await;
        let error = self.call.make(&self.world).await.expect_err("it is cut off").to_string();
        let command = error.split("injected at ").nth(1).and_then(|rest| rest.split(' ').next()).expect("ours");
        let cut = format!("{} at {at} of {}, {command}", self.name, whole.calls);
        server.fail_at(&self.saved, 0).await;
        let answer = match self.call.make(&self.world).await {
            Ok(answer) => answer,
            Err(error) => return found.push(format!("{cut}: the same call again: {error}")),
        };
        let parts = answer.parts.iter().zip(whole.first.0.parts.iter().zip(&whole.second.0.parts));
        let promised = answer.parts.len() == whole.first.0.parts.len()
            && parts.clone().all(|(part, (first, second))| [first, second].contains(&part));
        if !promised {
            found.push(format!("{cut}: answered {:?} and not {:?}", answer.parts, whole.first.0.parts));
        }
        if whole.first.0.wakes.iter().any(|lane| !answer.wakes.contains(lane)) {
            found.push(format!("{cut}: wakes {:?} and not {:?}", answer.wakes, whole.first.0.wakes));
        }
        let mut differences = State::read(server).await.differences(&whole.first.1);
        // A pod that is told to ask a lane again comes to stand in line there by that.
        let asks_again =
            |what: &String| answer.wakes.iter().any(|lane| what.starts_with(&format!("- waiting:{lane}: ")));
        differences.retain(|what| !asks_again(what));
        if !differences.is_empty() {
            found.push(format!("{cut}:\n      {}", differences.join("\n      ")));
        }
    }
}

#[tokio::test]
async fn what_is_cut_off_and_never_called_again_is_completed_when_its_deadline_is_over() {
    let server = Server::start().await;
    for situation in ends::that_lose_their_caller() {
        let stage = Stage::set(&server, &situation).await;
        let whole = stage.whole(&server).await;
        let (lease, beat) = match &stage.call {
            Call::GiveBack(_, backs) => (backs[0].lease, ""),
            Call::Finish(reports) => {
                let lease_id = reports[0].lease_id.expect("its runner's");
                (Lease { job_id: reports[0].job_id, lease_id }, "0")
            }
            other => panic!("{other:?} is none of them"),
        };
        for at in 1..=whole.calls {
            server.restore(&stage.saved, at).await;
            stage.call.make(&stage.world).await.expect_err("it is cut off");
            server.fail_at(&stage.saved, 0).await;
            Call::Expire(vec![(lease, beat.to_owned())]).make(&stage.world).await.expect("expires");
            let state = State::read(&server).await;
            let (name, there) = (&stage.name, |key: &str| state.has(key));
            assert!(there("job:1") != there("ended:1"), "{name} at {at}: it lives or has ended");
            assert_eq!(there("job:1"), there("buckets"), "{name} at {at}: it is queued, for whom it may concern");
            assert_eq!(
                there("job:1"),
                there(&format!("lane:{}", crate::support::instance_lane())),
                "{name} at {at}: in its lane"
            );
            assert!(!there("deadlines") && !there("running:ns%3A1"), "{name} at {at}: nobody has it");
        }
    }
}

/// Memory that a full Redis has left, in bytes: none; and so little that some calls fill it on their way.
const LEFT: [u64; 9] = [0, 500, 1_000, 2_000, 3_000, 4_000, 6_000, 8_000, 12_000];

#[derive(Debug, Default)]
struct Full {
    refused: u32,
    completed: u32,
    /// Of the completed ones.
    filled_on_the_way: u32,
}

impl Stage {
    /// The call is made while Redis has so much memory left.
    async fn full(&self, server: &Server, whole: &Whole, left: u64, count: &mut Full) {
        server.restore(&self.saved, 0).await;
        let limit = if left == 0 { 1 } else { server.used_memory().await + left };
        server.limit_memory(limit).await;
        let answer = self.call.make(&self.world).await;
        let is_full = server.used_memory().await > limit;
        server.limit_memory(0).await;
        let state = State::read(server).await;
        let script = ALL.iter().find(|script| script.name() == self.call.script()).expect("a script");
        match answer {
            Ok(answer) => {
                assert_eq!(answer, whole.first.0, "{}", self.name);
                assert_eq!(state, whole.first.1, "{}", self.name);
                assert!(left > 0 || script.flags().contains("allow-oom"), "{} fills a full Redis", self.name);
                count.completed += 1;
                count.filled_on_the_way += u32::from(left > 0 && is_full);
            }
            Err(error) => {
                assert_eq!(error.refusal(), Some(Refusal::Oom), "{}: {error}", self.name);
                // Opening a scope is several calls, of which the last may be the one.
                assert!(state == whole.before || matches!(self.call, Call::Scope(_)), "{}", self.name);
                assert!(!script.flags().contains("allow-oom"), "{} is refused", self.name);
                count.refused += 1;
            }
        }
    }
}

#[tokio::test]
async fn a_script_on_a_full_redis_is_refused_before_it_writes_or_completes() {
    let server = Server::start().await;
    let (mut count, mut scripts) = (Full::default(), BTreeSet::from(["due", "barrier"])); // one writes nothing, the other one key
    for situation in &[queues::all(), takes::all(), ends::all(), operators::all(), losses::all()].concat() {
        let stage = Stage::set(&server, situation).await;
        let whole = stage.whole(&server).await;
        scripts.insert(stage.call.script());
        for left in LEFT {
            stage.full(&server, &whole, left, &mut count).await;
        }
    }
    println!("{count:?}");
    let writing = ALL.iter().filter(|script| !script.flags().contains("no-writes")).map(|script| script.name());
    assert_eq!(scripts, writing.collect(), "every script that writes is in some situation");
    assert!(count.refused > 50 && count.filled_on_the_way > 50, "it was a real test: {count:?}");
}

async fn check(situations: Vec<Situation>) {
    let server = Server::start().await;
    let (mut tried, mut found) = (0, Vec::new());
    for situation in &situations {
        let stage = Stage::set(&server, situation).await;
        let whole = stage.whole(&server).await;
        for at in 1..=whole.calls {
            stage.cut_off(&server, &whole, at, &mut found).await;
            tried += 1;
        }
    }
    println!("{} situations, {tried} interruptions", situations.len());
    assert!(found.is_empty(), "{} of {tried}:\n{}", found.len(), found.join("\n"));
}

#[tokio::test]
async fn what_queues_jobs_is_completed_by_the_same_call() {
    Box::pin(check(queues::all())).await;
}

#[tokio::test]
async fn a_take_is_completed_by_the_same_call() {
    Box::pin(check(takes::all())).await;
}

#[tokio::test]
async fn what_starts_ends_and_returns_jobs_is_completed_by_the_same_call() {
    Box::pin(check(ends::all())).await;
}

#[tokio::test]
async fn what_operators_and_clocks_do_is_completed_by_the_same_call() {
    Box::pin(check(operators::all())).await;
}

#[tokio::test]
async fn what_a_redis_that_lost_its_data_hears_is_completed_by_the_same_call() {
    Box::pin(check(losses::all())).await;
}
