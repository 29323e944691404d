//! Deployments that roll and pods that are lost under load: what must hold whatever the machine does meanwhile.

use std::process::Command;

use serde_json::Value;

/// Runs a benchmark; the line of JSON that it ends with, which is printed too.
fn bench(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_job-router")).arg("bench").args(args).arg("--json").output();
    let output = output.expect("the binary starts");
    // A job lost or run twice is an error of the benchmark.
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let line = text.lines().last().expect("a line");
    println!("{line}");
    serde_json::from_str(line).expect("JSON")
}

fn number(figures: &Value, pointer: &str) -> f64 {
    figures.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {pointer}: {figures}"))
}

#[test]
fn a_roll_of_three_pods_to_another_version_under_load_loses_and_doubles_nothing_and_cuts_no_runner_off() {
    let figures = bench(&["roll", "--runners", "50", "--rate", "60", "--jobs", "1200"]);
    assert_eq!((&figures["lost"], &figures["doubled"]), (&0.into(), &0.into()), "{figures}");
    assert_eq!(figures["script_versions"], 2, "two versions were side by side: {figures}");
    assert!(number(&figures, "/jobs_in_roll") > 20.0, "{figures}");
    // Meant to be 500 at five times the rate; the machine may do something else too. A drain timeout is 25 s.
    assert!(number(&figures, "/publish_to_runner_in_roll_ms/p99") < 10_000.0, "{figures}");
    assert!(number(&figures, "/longest_without_session_ms") < 10_000.0, "{figures}");
}

#[test]
fn all_runners_of_a_killed_pod_have_jobs_on_another_soon() {
    let figures = bench(&["reconnect", "--runners", "100"]);
    assert_eq!((&figures["lost"], &figures["doubled"]), (&0.into(), &0.into()), "{figures}");
    // Meant to be 10 s for many times as many.
    assert!(number(&figures, "/kill_to_running_ms/max") < 12_000.0, "{figures}");
}
