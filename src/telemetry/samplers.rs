//! Two small loops that the dispatcher runs beside its stages.

use std::time::Duration;

use metrics::Histogram;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Registry;

/// How often recorded values are sorted into buckets: at 10,000 values a second, 5 s are about 1 MB.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// How often the event loop is probed: often enough to meet a stall of 100 ms, at no cost that shows.
const PROBE_EVERY: Duration = Duration::from_millis(100);

/// Keeps `registry` from growing, until `shutdown`.
pub async fn run_upkeep(registry: &Registry, shutdown: CancellationToken) {
    let upkeep = async {
        loop {
            sleep(UPKEEP_EVERY).await;
            registry.run_upkeep();
        }
    };
    shutdown.run_until_cancelled(upkeep).await;
}

/// Records how late its own timer fires, until `shutdown`. A task that blocks its thread shows here, but only once
/// all threads are blocked or the one that drives the timers is.
pub async fn run_event_loop_probe(lag: &Histogram, shutdown: CancellationToken) {
    let probe = async {
        loop {
            let due = Instant::now() + PROBE_EVERY;
            sleep_until(due).await;
            lag.record(due.elapsed());
        }
    };
    shutdown.run_until_cancelled(probe).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stalled_event_loop_shows_as_lag() {
        let registry = Registry::new();
        let shutdown = CancellationToken::new();
        let probe = run_event_loop_probe(&registry.metrics().event_loop_lag_seconds, shutdown.clone());
        let stall = async {
            tokio::task::yield_now().await; // the probe sets its timer
            tokio::time::advance(PROBE_EVERY + Duration::from_secs(2)).await;
            tokio::task::yield_now().await; // it fires
            shutdown.cancel();
        };
        tokio::join!(probe, stall);
        let text = registry.render();
        let bucket = |le: &str| format!("job_router_event_loop_lag_seconds_bucket{{le=\"{le}\"}}");
        assert!(text.contains(&format!("{} 0", bucket("1"))), "{text}");
        assert!(text.contains(&format!("{} 1", bucket("5"))), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn both_loops_end_at_shutdown() {
        let registry = Registry::new();
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let both = async {
            run_upkeep(&registry, shutdown.clone()).await;
            run_event_loop_probe(&registry.metrics().event_loop_lag_seconds, shutdown.clone()).await;
        };
        tokio::time::timeout(Duration::from_secs(60), both).await.expect("both ended");
    }
}
