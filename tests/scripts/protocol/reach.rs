//! From where the end can be reached, and by whose steps: what a checker of single states cannot say.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use job_router::flow::State;
use stateright::Model;

use super::model::Protocol;
use super::world::{Action, World};

/// All states within the bounds, and the steps between them that count.
pub struct Graph {
    states: Vec<World>,
    /// To each state, those one counted step before it.
    before: Vec<Vec<u32>>,
}

// === impl Graph ===

impl Graph {
    /// Walks everything; of the steps those `counted` are kept.
    pub fn of(protocol: &Protocol, counted: impl Fn(Action) -> bool) -> Self {
        let mut graph = Self { states: protocol.init_states(), before: vec![Vec::new()] };
        let mut known: HashMap<u64, u32> = graph.states.iter().map(|world| (hash_of(world), 0)).collect();
        let (mut at, mut actions) = (0, Vec::new());
        while at < graph.states.len() {
            let world = graph.states[at];
            protocol.actions(&world, &mut actions);
            for action in actions.drain(..) {
                let Some(next) = protocol.next_state(&world, action) else { continue };
                let number = *known.entry(hash_of(&next)).or_insert_with(|| {
                    graph.states.push(next);
                    graph.before.push(Vec::new());
                    graph.states.len() as u32 - 1
                });
                if counted(action) {
                    graph.before[number as usize].push(at as u32);
                }
            }
            at += 1;
        }
        graph
    }

    /// How many states there are.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// The states that no counted steps lead to the job's end from.
    pub fn without_end(&self) -> Vec<&World> {
        let mut ends = vec![false; self.states.len()];
        let ended = |(_, world): &(usize, &World)| world.redis.state == Some(State::Ended);
        let mut todo: Vec<u32> =
            self.states.iter().enumerate().filter(ended).map(|(number, _)| number as u32).collect();
        while let Some(number) = todo.pop() {
            if !std::mem::replace(&mut ends[number as usize], true) {
                todo.extend(&self.before[number as usize]);
            }
        }
        self.states.iter().zip(ends).filter(|(_, ends)| !ends).map(|(world, _)| world).collect()
    }
}

/// 64 bits: two of a million states fall together with a chance of 1 in 37 million.
fn hash_of(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}
