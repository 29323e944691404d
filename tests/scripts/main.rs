//! Everything in `lua/` and the edge to Redis, against a real server and no pod: each move, its repeats, its model.
#![allow(unreachable_pub, reason = "its modules are its own")]

mod edge;
mod flow;
mod interrupted;
mod model;
mod moves;
mod predicate;
mod protocol;
mod rebuild;
mod scores;
mod simulation;

#[path = "../support/mod.rs"]
mod support;
