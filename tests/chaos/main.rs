//! Kill anything, at any time: every published job ends exactly once, and a checker decides over what everybody noted.
//!
//! `make chaos SEED=7 MINUTES=10 TOPOLOGY=sentinel` runs longer; the same seed draws the same faults.

#![allow(unreachable_pub, reason = "all of it is for this binary")]

mod check;
mod clocks;
mod faults;
mod history;
mod moved;
mod planted;
mod points;
mod proxy;
mod rails;
mod rig;
mod runner;
mod servers;
mod spans;
#[path = "../support/mod.rs"]
mod support;
mod waits;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use check::Verdict;
use rig::Rig;
use serde_json::json;
use servers::Topology;

/// How many jobs Rails publishes.
const JOBS_PER_SECOND: u64 = 30;

struct Run {
    verdict: Verdict,
    report: serde_json::Value,
}

async fn run(topology: Topology, seed: u64, for_so_long: Duration) -> Run {
    let rig = Rig::start(topology, seed, JOBS_PER_SECOND).await;
    tokio::time::sleep(Duration::from_secs(1)).await; // jobs come
    let measured = rig.clone();
    tokio::task::spawn_blocking(move || measured.note_levels(false)).await.expect("no panic");
    let faults: BTreeMap<String, u64> = faults::run(&rig, seed, for_so_long).await;
    let (verdict, history) = rig.end().await;
    if let Some(path) = std::env::var_os("CHAOS_HISTORY") {
        let lines: String = history.iter().map(|record| format!("{} {:?}\n", record.at, record.what)).collect();
        std::fs::write(path, lines).expect("the history is written");
    }
    let report = json!({
        "seed": seed, "topology": topology.name(), "jobs": verdict.jobs, "in_doubt": verdict.in_doubt, "faults": faults, "lost": verdict.lost,
        "doubled": verdict.doubled, "done_after_cancel": verdict.done_after_cancel, "events_lost": verdict.events_lost,
        "order_broken": verdict.order_broken, "invented": verdict.invented, "leaked_keys": verdict.leaked_keys,
        "idle": verdict.idle, "grown": verdict.grown, "longest_gap_ms": verdict.longest_gap / 1_000,
    });
    println!("{report}");
    for wrong in &verdict.wrong {
        println!("{wrong}");
    }
    Run { verdict, report }
}

async fn a_short_run(topology: Topology, seed: u64) {
    let run = run(topology, seed, Duration::from_secs(25)).await;
    assert!(run.verdict.is_clean(), "{}\n{:#?}", run.report, run.verdict.wrong);
    let kinds = run.report["faults"].as_object().expect("by kind").len();
    assert!(run.verdict.jobs > 50 && kinds >= 5, "it was idle: {}", run.report);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_run_twice_on_one_redis() {
    a_short_run(Topology::One, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_run_twice_on_sentinel() {
    a_short_run(Topology::Sentinel, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_run_twice_on_a_cluster_whose_slots_move() {
    a_short_run(Topology::Cluster, 1).await;
}

/// Not a test of its own: `make chaos`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "as long as one likes"]
async fn a_run_as_long_as_one_likes() {
    let number = |name: &str, default: f64| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: must be a number")))
    };
    let topology = Topology::named(&std::env::var("TOPOLOGY").unwrap_or_else(|_| "one".to_owned()));
    let for_so_long = Duration::from_secs_f64(number("MINUTES", 1.0) * 60.0);
    let run = run(topology, number("SEED", 1.0) as u64, for_so_long).await;
    if let Some(path) = std::env::var_os("CHAOS_REPORT") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        writeln!(file.expect("the report opens"), "{}", run.report).expect("the report is written");
    }
    assert!(run.verdict.is_clean(), "{:#?}", run.verdict.wrong);
}

/// Not a test, a runner of the rig.
#[test]
#[ignore = "runs until it is killed"]
fn a_runner_of_the_rig() {
    runner::run();
}
