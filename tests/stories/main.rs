//! What users see, over a real Redis, real gRPC and real processes: one file per subject.
#![allow(unreachable_pub, reason = "its modules are its own")]

mod affinity;
mod affinity_wait;
mod commands;
mod door;
mod emulator;
mod explain;
mod faults;
mod foreign;
mod gitlab;
mod gitlab_fleet;
mod health;
mod inbox;
mod jobs;
mod limits;
mod listing;
mod pauses;
mod policy;
mod processes;
mod rebuild;
mod redis;
mod replicas;
mod roll;
mod runner_faults;
mod simulate;
mod stuck;
mod sweep;
mod tls;

#[path = "../support/mod.rs"]
mod support;
