//! Walks all states of a configuration, and finds the shortest way to a broken one.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use stateright::{Checker, CheckerBuilder, HasDiscoveries, Model};

use super::model::Protocol;
use super::world::Action;

/// What came of a configuration.
#[derive(Debug)]
pub struct Found {
    pub states: usize,
    pub depth: usize,
    pub took: Duration,
    /// The promises that can be broken.
    pub broken: BTreeSet<&'static str>,
}

/// Every state within the bounds. States after a broken one are left out.
pub fn exhaust(protocol: Protocol) -> Found {
    let began = Instant::now();
    let checker = protocol.checker().spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    Found { states, depth, took: began.elapsed(), broken: checker.discoveries().into_keys().collect() }
}

/// The shortest history that breaks a promise, which can be broken. A search ends at the first block of states that has one, and
/// keeps the last of that block; so search below what was found until there is none.
pub fn shortest(protocol: Protocol, promise: &'static str) -> Vec<Action> {
    let mut found = search(protocol.checker(), promise).expect("it can be broken");
    while let Some(shorter) = search(protocol.checker().target_max_depth(found.len() + 1), promise) {
        found = shorter;
    }
    found
}

fn search(builder: CheckerBuilder<Protocol>, promise: &'static str) -> Option<Vec<Action>> {
    let checker = builder.finish_when(HasDiscoveries::AnyOf(BTreeSet::from([promise]))).spawn_bfs().join();
    checker.discovery(promise).map(|path| path.into_actions())
}
