//! `job-router simulate`, as people and scripts meet it. Needs no Redis.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

const DRAWN: [&str; 6] = ["--jobs=2000", "--tenants=100", "--flood-jobs=500", "--slots=10", "--busiest=2", "--json"];

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_job-router"));
    command.arg("simulate").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(args: &[&str], stdin: &str) -> Output {
    let mut child = command(args).spawn().expect("the binary starts");
    // One that reads nothing may be gone by now.
    let _ = child.stdin.take().expect("it is piped").write_all(stdin.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn line(tenant: &str, project: u64, queued_at_ms: u64) -> String {
    let job = serde_json::json!({
        "tenant": tenant, "project_id": project, "queued_at_ms": queued_at_ms, "duration_ms": 1_000,
    });
    format!("{job}\n")
}

#[test]
fn a_seed_gives_a_day_and_the_day_its_waits() {
    let first = run(&DRAWN, "");
    assert!(first.status.success() && first.stderr.is_empty(), "{first:?}");
    assert_eq!(first.stdout, run(&DRAWN, "").stdout);
    assert_ne!(first.stdout, run(&[&DRAWN[..], &["--seed=2"]].concat(), "").stdout);
    let report = json(&first);
    let groups: Vec<&str> = report["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert_eq!(groups, ["flood", "tenant-1", "quiet", "all"]);
    let quiet = &report["groups"][2];
    let p99 = |policy: &str| quiet["waits_ms"][policy]["p99"].as_u64().unwrap();
    assert!(2 * p99("job-router") < p99("gitlab").min(p99("fifo")), "{quiet}");
    assert_eq!(report["jobs"], 2_500);
    assert!(report["jains_index"]["job-router"].as_f64().unwrap() > report["jains_index"]["fifo"].as_f64().unwrap());
}

#[test]
fn the_table_has_a_column_for_each_policy_asked_for_and_the_plot_says_what_it_shows() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("waits.svg");
    let args = ["--jobs=500", "--slots=2", "--policy=fifo,job-router", "--plot", file.to_str().unwrap()];
    let output = run(&args, "");
    assert!(output.status.success(), "{output:?}");
    let table = text(&output.stdout);
    for part in ["TENANT", "P99 s", "fifo", "job-router", "quiet (", "all (", "Jain's index: fifo 0.", "2 slots, "] {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert!(!table.contains("gitlab"), "{table}");
    let svg = std::fs::read_to_string(file).unwrap();
    for part in ["<svg ", "quiet tenants", "queued, hour of the day", "minutes", "fifo", "job-router", "</svg>"] {
        assert!(svg.contains(part), "{part}: {svg}");
    }
}

#[test]
fn a_recording_goes_on_after_bad_lines_and_names_them() {
    let lines = [line("a", 1, 5_000), "{\"tenant\":\"hunter2\"}\n".into(), line("b", 2, 5_000), line("b", 1, 5_000)];
    let output = run(&["--slots=1", "--busiest=1", "--json", "-"], &lines.concat());
    assert_eq!(output.status.code(), Some(65), "{output:?}");
    let told = text(&output.stderr);
    assert!(told.contains("stdin:2: job.project_id: is required\n"), "{told}");
    assert!(told.contains("stdin:4: job.tenant: must be that of the project's other jobs\n"), "{told}");
    assert!(told.contains("2 of the lines of stdin were refused") && !told.contains("hunter2"), "{told}");
    let report = json(&output);
    assert_eq!((&report["jobs"], &report["groups"][2]["waits_ms"]["fifo"]["max"]), (&2.into(), &1_000.into()));

    let output = run(&["--slots=1", "-"], "\n");
    assert_eq!(output.status.code(), Some(65), "{output:?}");
    assert!(text(&output.stderr).contains("stdin has no job to simulate"), "{output:?}");
}

#[test]
fn weights_and_caps_are_our_policys_and_must_name_somebody() {
    let lines: String = (0..20).map(|n| line(["a", "b"][n as usize % 2], n % 2 + 1, 0)).collect();
    let capped = json(&run(&["--slots=4", "--json", "--tenant-cap=a=1", "--weight=b=2", "-"], &lines));
    let longest = |policy: &str| capped["groups"][0]["waits_ms"][policy]["max"].as_u64().unwrap();
    assert_eq!(capped["groups"][0]["name"], "a");
    assert_eq!((longest("job-router"), longest("fifo")), (9_000, 4_000));

    for (args, told) in [
        (&["--slots=1", "--weight=c=2", "-"][..], "--weight: the day has no job of tenant \"c\""),
        (&["--slots=1", "--project-cap=3=2", "-"], "--project-cap: the day has no job of project \"3\""),
        (&["--slots=1", "--tenant-cap=a=0", "-"], "must be a name, `=`, and a whole number from 1"),
        (&["-"], "--slots is needed: a recording does not say how many jobs ran at once"),
        (&["--seed=2", "-"], "cannot be used with"),
    ] {
        let output = run(args, &lines);
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        assert!(text(&output.stderr).contains(told), "{output:?}");
    }
}

#[test]
fn ctrl_c_ends_it_while_it_reads() {
    let mut child = command(&["--slots=1", "-"]).spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    // Told of the first line, it listens by now.
    stdin.write_all(b"{}\n").unwrap();
    let mut told = std::io::BufReader::new(child.stderr.take().expect("it is piped"));
    let mut first = String::new();
    std::io::BufRead::read_line(&mut told, &mut first).unwrap();
    assert_eq!(first, "stdin:1: job.tenant: is required\n");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut told, &mut rest).unwrap();
    assert_eq!(rest, "job-router: interrupted\n");
    drop(stdin);
}
