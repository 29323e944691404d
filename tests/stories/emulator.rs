//! GitLab Runner's process as a double, with a fake Rails: what an unmodified runner does with the router's answers.
//!
//! Arrives: an address book and a configuration as of `config.toml`. Leaves: calls to the router, and [`Notes`] of what became of
//! each. What is copied, by file: when a runner stops asking the router (`breaker`), or anybody (`health`); where it learns of the
//! router (`discovery`); the connections of grpc-go (`connections`); one request for a job (`client`); the feed loop and the workers
//! (`process`). `copies` and `wire` show that each is as strict as the real one.
//!
//! The constants are those of the real client, but `check_interval`, which a configuration sets there too. Left out: names are
//! resolved once, as stories give their pods lasting addresses; TLS and WebSocket; the output of jobs.

mod breaker;
mod client;
mod connections;
mod copies;
mod discovery;
mod health;
mod notes;
mod process;
mod rails;
mod wire;

pub use notes::Notes;
pub use process::{Config, Entry, Process};
pub use rails::Rails;
