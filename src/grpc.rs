//! The edge to runners: gRPC sessions in, messages for the stages out. A GitLab Runner's held calls are a session too.
//!
//! Arrives: bytes from anybody. Leaves: an admitted session, its messages checked and typed, on the
//! bounded channels of [`Doors`]; and what the stages put into its [`Outbox`].
//!
//! What must stay true:
//!
//! - Nothing is kept for a caller before its token is known, but a connection and one pending stream, both with a
//!   deadline and a cap.
//! - A session is driven by its response stream: no task and no buffer beside it, so a runner that does not read
//!   is not read from either.
//! - A stage never waits for a runner: an outbox that is full closes its session.
//! - A held call is answered once: with the one job that was pushed to it, or empty. A job that meets no call goes back.
//! - The end of a session is told, whatever ends it; a runner that does not read is told twice, as its stream may end
//!   late or never.

mod admin;
mod calls;
mod connection;
mod convert;
mod get_job;
mod info;
mod log_in;
mod outbox;
mod server;
mod session;
mod tls;

pub use admin::{Question, admin_service};
pub use outbox::{Door, Outbox, SessionId};
pub use server::{Limits, serve};
pub use session::{Answer, Beat, Closed, Doors, Finished, Hello, Knock, Slots, Spoken};
pub use tls::{Tls, TlsError, TlsFiles};
