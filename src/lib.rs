//! A push-based CI job router: Redis streams in, gRPC out.
//!
//! `README.md` runs it, `ARCHITECTURE.md` explains it. The modules form four layers; imports point down
//! (`tests/project/tidy.rs` checks it):
//!
//! | layer | modules |
//! | --- | --- |
//! | words | [`job`], [`tags`], [`runner`], [`flow`], [`fairness`], [`pause`], [`clock`], [`contract`], [`explain`], [`simulation`] |
//! | edges | [`config`], [`telemetry`], [`redis`], [`grpc`], [`proto`] |
//! | stages | [`stages`], one module for each thing that happens to a job |
//! | wiring | [`dispatcher`], `main` and its subcommands |
//!
//! [`client`] is the runner's side: a library to build a runner on, beside the router, not in its layers.

pub mod client;
pub mod clock;
pub mod config;
pub mod contract;
pub mod dispatcher;
pub mod explain;
pub mod fairness;
pub mod flow;
pub mod grpc;
pub mod job;
pub mod pause;
pub mod proto;
pub mod redis;
pub mod runner;
pub mod simulation;
pub mod stages;
pub mod tags;
pub mod telemetry;
