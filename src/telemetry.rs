//! What the router says about itself: logs, metrics, and whether it is well.
//!
//! Arrives: events from all over the crate. Leaves: log lines on stderr, and over HTTP `/metrics`, `/livez` and
//! `/readyz`. Nothing here may slow a job down: metrics are cached handles, and nothing asks Redis.
//!
//! All metrics are declared in [`metrics`](mod@metrics), their label values in [`labels`]; nobody else names one.

pub mod admin;
mod docs;
pub mod labels;
pub mod logging;
pub mod metrics;
pub mod readiness;
pub mod registry;
pub mod samplers;

pub use docs::metrics_markdown;
pub use metrics::Metrics;
pub use readiness::Readiness;
pub use registry::Registry;

use std::sync::LazyLock;

/// The registry of this process. Made at the first use, so no order of start-up can lose a count.
pub fn registry() -> &'static Registry {
    static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);
    &REGISTRY
}

/// The metrics of this process: `metrics().jobs_queued_total.increment(1)`.
pub fn metrics() -> &'static Metrics {
    registry().metrics()
}
