//! What no compiler checks: documents, scripts' headers, layers.
#![allow(unreachable_pub, reason = "its modules are its own")]

mod docs;
mod tidy;
