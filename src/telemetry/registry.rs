//! Where metrics are kept: handles in, the Prometheus text format out.
//!
//! Each registry is a world of its own: tests make their own and run in parallel. There is no global recorder, so
//! that a metric which is not declared in [`metrics`](mod@super::metrics) cannot exist.

use std::marker::PhantomData;

use metrics::{Counter, Gauge, Histogram, with_local_recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::labels::Label;
use super::metrics::{Buckets, DECLARED, Metrics};

/// One metric as it is declared.
#[derive(Debug)]
pub struct Declared {
    /// Its full name.
    pub name: &'static str,
    /// What it counts; may have spaces around.
    pub help: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its label, if it has one.
    pub label: Option<LabelValues>,
    /// The buckets of a histogram.
    pub buckets: Option<&'static Buckets>,
}

/// What a metric is to Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts values in buckets.
    Histogram,
}

/// A label and all its values.
#[derive(Debug, Clone, Copy)]
pub struct LabelValues {
    /// The label's name.
    pub name: &'static str,
    /// Its values.
    pub values: fn() -> Vec<&'static str>,
}

/// What a metric's field in [`Metrics`] may be.
pub trait Handle: Sized {
    /// What it is to Prometheus.
    const KIND: Kind;
    /// Its label.
    const LABEL: Option<LabelValues> = None;

    /// Registers it with the recorder that is current here.
    fn register(name: &'static str) -> Self;
}

/// A [`Handle`] that takes a label.
pub trait Labeled: Handle {
    /// Registers it with a label.
    fn register_with(name: &'static str, label: &'static str, value: &'static str) -> Self;
}

/// A handle for each value of a label.
#[derive(Debug)]
pub struct By<L, H> {
    /// One for each of `L::ALL`, in its order.
    handles: Vec<H>,
    label: PhantomData<L>,
}

/// The metrics of one process, or of one test.
#[derive(Debug)]
pub struct Registry {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    metrics: Metrics,
    process: metrics_process::Collector,
}

/// For a histogram that is declared without buckets, which a test refuses: with none, it would become a summary.
const FALLBACK_BUCKETS: &[f64] = &[0.001, 0.01, 0.1, 1.0, 10.0];

// === impl Handle ===

macro_rules! handles {
    ($($type:ident by $register:ident,)*) => {$(
        impl Handle for $type {
            const KIND: Kind = Kind::$type;

            fn register(name: &'static str) -> Self {
                metrics::$register!(name)
            }
        }

        impl Labeled for $type {
            fn register_with(name: &'static str, label: &'static str, value: &'static str) -> Self {
                metrics::$register!(name, label => value)
            }
        }
    )*};
}

handles! {
    Counter by counter,
    Gauge by gauge,
    Histogram by histogram,
}

// === impl By ===

impl<L: Label, H> By<L, H> {
    /// The handle for that value.
    pub fn of(&self, value: L) -> &H {
        &self.handles[value.index()]
    }
}

impl<L: Label, H: Labeled> Handle for By<L, H> {
    const KIND: Kind = H::KIND;
    const LABEL: Option<LabelValues> =
        Some(LabelValues { name: L::NAME, values: || L::ALL.iter().map(|value| value.as_str()).collect() });

    fn register(name: &'static str) -> Self {
        let handles = L::ALL.iter().map(|value| H::register_with(name, L::NAME, value.as_str())).collect();
        Self { handles, label: PhantomData }
    }
}

// === impl Registry ===

impl Registry {
    /// A registry with every declared metric at 0.
    pub fn new() -> Self {
        // First for all, then for each by its full name: without buckets a histogram silently becomes a summary.
        let mut builder = PrometheusBuilder::new().set_buckets(FALLBACK_BUCKETS).expect("not empty");
        for Declared { name, buckets, .. } in DECLARED {
            if let Some(buckets) = buckets {
                let matcher = Matcher::Full((*name).to_owned());
                builder = builder.set_buckets_for_metric(matcher, buckets.bounds).expect("not empty");
            }
        }
        let recorder = builder.build_recorder();
        let process = metrics_process::Collector::default();
        let metrics = with_local_recorder(&recorder, || {
            DECLARED.iter().for_each(describe);
            process.describe();
            metrics::describe_gauge!("job_router_build_info", "1, with the version of this build as a label.");
            metrics::gauge!("job_router_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
            Metrics::register()
        });
        Self { handle: recorder.handle(), recorder, metrics, process }
    }

    /// The handles.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// All metrics in the Prometheus text format, those of the process as they are now.
    pub fn render(&self) -> String {
        with_local_recorder(&self.recorder, || self.process.collect());
        self.handle.render()
    }

    /// Sorts what was recorded into buckets. Until then each value takes memory: call it every few seconds.
    pub fn run_upkeep(&self) {
        self.handle.run_upkeep();
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

fn describe(declared: &Declared) {
    let help = declared.help.trim();
    match declared.kind {
        Kind::Counter => metrics::describe_counter!(declared.name, help),
        Kind::Gauge => metrics::describe_gauge!(declared.name, help),
        Kind::Histogram => metrics::describe_histogram!(declared.name, help),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::labels::{Ended, RedisCall};

    #[test]
    fn every_histogram_stays_a_histogram_with_its_own_buckets() {
        let registry = Registry::new();
        registry.metrics().queue_wait_seconds.record(Duration::from_millis(20));
        registry.metrics().redis_call_seconds.of(RedisCall::Take).record(Duration::from_micros(80));
        let text = registry.render();
        assert!(!text.contains(" summary\n"), "{text}");
        for line in [
            "# TYPE job_router_queue_wait_seconds histogram",
            r#"job_router_queue_wait_seconds_bucket{le="0.01"} 0"#,
            r#"job_router_queue_wait_seconds_bucket{le="0.05"} 1"#,
            r#"job_router_queue_wait_seconds_bucket{le="86400"} 1"#,
            r#"job_router_redis_call_seconds_bucket{call="take",le="0.00005"} 0"#,
            r#"job_router_redis_call_seconds_bucket{call="take",le="0.0001"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn every_metric_is_there_with_each_label_value_before_its_first_event() {
        let text = Registry::new().render();
        for declared in DECLARED {
            let count = if declared.kind == Kind::Histogram { "_count" } else { "" };
            let values = declared.label.map_or(vec![None], |label| {
                (label.values)().into_iter().map(|value| Some(format!("{{{}=\"{value}\"}}", label.name))).collect()
            });
            for value in values {
                let line = format!("{}{count}{} 0", declared.name, value.unwrap_or_default());
                assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
            }
            assert!(text.contains(&format!("# HELP {} {}", declared.name, declared.help.trim())), "{}", declared.name);
        }
        assert!(text.contains(concat!("job_router_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1")));
        assert!(text.contains("process_resident_memory_bytes "), "{text}");
    }

    #[test]
    fn a_count_lands_under_its_own_label_value() {
        let registry = Registry::new();
        registry.metrics().jobs_ended_total.of(Ended::RunnerLost).increment(3);
        let text = registry.render();
        assert!(text.contains(r#"job_router_jobs_ended_total{outcome="runner_lost"} 3"#), "{text}");
        assert!(text.contains(r#"job_router_jobs_ended_total{outcome="success"} 0"#), "{text}");
    }

    #[test]
    fn names_and_buckets_follow_the_rules() {
        for Declared { name, kind, buckets, help, .. } in DECLARED {
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert_eq!(*kind == Kind::Histogram, buckets.is_some(), "{name}");
            assert!(help.trim().ends_with('.'), "{name}");
            if let Some(buckets) = buckets {
                assert!(name.ends_with("_seconds") || name.ends_with("_bytes"), "{name}");
                assert!(buckets.bounds.is_sorted_by(|a, b| a < b), "{name}");
            }
        }
    }
}
