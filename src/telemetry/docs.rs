//! `docs/metrics.md`, from what is declared.

use std::fmt::Write;

use super::metrics::{Buckets, DECLARED};
use super::registry::{Declared, Kind};

const HEAD: &str = "\
# Metrics

Served at `/metrics` on `admin_listen`, in the Prometheus text format. Written from `src/telemetry/metrics.rs`; do not
edit. Every metric is there from the start, with each value of its label at 0. Times are in seconds.

| metric | kind | label | what it says |
| --- | --- | --- | --- |
";

const TAIL: &str = "\
| `job_router_build_info` | gauge | `version` | Always 1; the version of this build. |
| `process_*` | | | The usual ones: CPU seconds, open and most file descriptors, resident and virtual memory, start \
time, threads. |
";

/// The text of `docs/metrics.md`.
pub fn metrics_markdown() -> String {
    let mut text = HEAD.to_owned();
    for declared in DECLARED {
        text += &row(declared);
    }
    text += TAIL;
    text += "\n## Buckets\n";
    let mut done: Vec<&Buckets> = Vec::new();
    for buckets in DECLARED.iter().filter_map(|declared| declared.buckets) {
        if !done.contains(&buckets) {
            done.push(buckets);
            text += &section(buckets);
        }
    }
    text
}

fn row(declared: &Declared) -> String {
    let kind = match declared.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    let label = declared.label.map_or(String::new(), |label| {
        let values: Vec<String> = (label.values)().iter().map(|value| format!("`{value}`")).collect();
        format!("`{}`: {}", label.name, values.join(", "))
    });
    format!("| `{}` | {kind} | {label} | {} |\n", declared.name, declared.help.trim())
}

fn section(buckets: &Buckets) -> String {
    let users: Vec<String> = DECLARED
        .iter()
        .filter(|declared| declared.buckets == Some(buckets))
        .map(|declared| format!("`{}`", declared.name))
        .collect();
    let bounds: Vec<String> = buckets.bounds.iter().map(f64::to_string).collect();
    let mut text = String::new();
    write!(text, "\n{}: {}.\nBecause: {}.\n", users.join(", "), bounds.join(", "), buckets.reason)
        .expect("a String takes all");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_what_the_declarations_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, metrics_markdown()).expect("docs/ is there");
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(found == metrics_markdown(), "write it anew: UPDATE_DOCS=1 cargo test --lib telemetry::docs");
    }
}
