//! The shell executor against a real bash.

use std::path::Path;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::client::Status;
use crate::job::{JobId, Lease, LeaseId};

/// Generous: the machine may be busy; a test that waits this long has failed.
const LIMIT: Duration = Duration::from_secs(20);

struct Bench {
    logs: TempDir,
    cancel: CancellationToken,
    kill: CancellationToken,
    timeout: Duration,
}

impl Bench {
    fn new() -> Self {
        let kill = CancellationToken::new();
        let logs = tempfile::tempdir().expect("a directory");
        Self { logs, cancel: kill.child_token(), kill, timeout: Duration::MAX }
    }

    fn context(&self, payload: &Value) -> JobContext {
        let assignment = Assignment {
            lease: Lease { job_id: JobId(42), lease_id: LeaseId::random(0) },
            payload: payload.to_string().into(),
            attempt: 1,
            traceparent: String::new(),
            timeout: self.timeout,
        };
        JobContext { assignment, cancel: self.cancel.clone(), kill: self.kill.clone() }
    }

    async fn run(&self, payload: Value) -> (Outcome, String) {
        let shell = Shell::new(LogTo::Dir(self.logs.path().to_owned()));
        let outcome = tokio::time::timeout(LIMIT, shell.run(self.context(&payload))).await.expect("ends in time");
        let log = std::fs::read(self.logs.path().join("job-42-1.log")).expect("a log");
        (outcome, String::from_utf8_lossy(&log).into_owned())
    }

    async fn run_script(&self, lines: &[&str]) -> (Outcome, String) {
        self.run(json!({"steps": [{"name": "script", "script": lines}]})).await
    }
}

fn script_failure(code: i32) -> Outcome {
    Outcome::failed(code, Reason::SCRIPT_FAILURE)
}

async fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < limit, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether the process is gone, or dead and only not yet waited for by its parent.
fn is_gone(pid: &str) -> bool {
    match std::fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat")) {
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    }
}

#[tokio::test]
async fn a_job_runs_its_lines_and_shows_them() {
    let (outcome, log) = Bench::new().run_script(&["echo hi", "echo \"$CI in $PWD\"; cat"]).await;
    assert_eq!(outcome, Outcome::success());
    assert!(log.contains("$ echo hi\nhi\n") && log.contains("true in /") && log.contains("/build\n"), "{log}");
}

#[tokio::test]
async fn the_first_failing_line_ends_the_step_with_its_exit_code() {
    let bench = Bench::new();
    let (outcome, log) = bench.run_script(&["false | true", "echo not reached"]).await;
    assert_eq!(outcome, script_failure(1), "pipefail");
    assert!(!log.contains("\nnot reached"), "{log}");
    assert_eq!(bench.run_script(&["exit 7"]).await.0, script_failure(7));
    assert_eq!(bench.run_script(&["kill -9 $$"]).await.0, script_failure(137));
}

#[tokio::test]
async fn steps_run_when_they_ask_to() {
    let step = |name: &str, line: &str, when: &str, allow: bool| json!({"name": name, "script": [line], "when": when, "allow_failure": allow});
    let (outcome, log) = Bench::new()
        .run(json!({"steps": [
            step("a", "exit 3", "on_success", true),
            step("b", "echo b-ran; exit 4", "on_success", false),
            step("c", "echo c-ran", "on_success", false),
            step("d", "echo d-ran; exit 5", "on_failure", false),
            step("e", "echo e-ran", "always", false),
        ]}))
        .await;
    assert_eq!(outcome, script_failure(4), "the first failure that is not allowed");
    let ran = |name: &str| log.contains(&format!("\n{name}-ran"));
    assert_eq!([ran("b"), ran("c"), ran("d"), ran("e")], [true, false, true, true], "{log}");
}

#[tokio::test]
async fn an_allowed_failure_leaves_a_success() {
    let steps = json!({"steps": [{"name": "x", "script": ["exit 1"], "allow_failure": true}]});
    assert_eq!(Bench::new().run(steps).await.0, Outcome::success());
}

#[tokio::test]
async fn variables_arrive_and_masked_ones_are_not_shown() {
    let (outcome, log) = Bench::new()
        .run(json!({
            "steps": [{"script": ["printf 'hun'; sleep 0.05; echo 'ter22'", "echo $GREETING; cat $NOTE", "env | grep -c ^SECRET=hunter22"]}],
            "variables": [
                {"key": "SECRET", "value": "hunter22", "masked": true},
                {"key": "GREETING", "value": "it's $HOME", "public": true},
                {"key": "NOTE", "value": "from a file\n", "file": true},
            ]}))
        .await;
    assert_eq!(outcome, Outcome::success(), "{log}");
    assert!(log.contains("\n[MASKED]\n") && !log.contains("hunter22"), "{log}");
    assert!(log.contains("it's $HOME\n") && log.contains("from a file\n"), "{log}");
}

#[tokio::test]
async fn a_timeout_kills_the_group_with_its_grandchildren() {
    let bench = Bench { timeout: Duration::from_millis(300), ..Bench::new() };
    let (outcome, log) = bench.run_script(&["(bash -c 'echo pid $$; sleep 600; true' & wait)"]).await;
    assert_eq!(outcome, Outcome::failed(1, Reason::JOB_EXECUTION_TIMEOUT));
    let pid = log.lines().find_map(|line| line.strip_prefix("pid ")).expect("a grandchild").to_owned();
    wait_for("the grandchild is gone", || is_gone(&pid)).await;
}

#[tokio::test]
async fn a_process_left_behind_is_gone_though_the_script_succeeded() {
    let (outcome, log) = Bench::new().run_script(&["sleep 600 & echo pid $!"]).await;
    assert_eq!(outcome, Outcome::success());
    let pid = log.lines().find_map(|line| line.strip_prefix("pid ")).expect("a child").to_owned();
    wait_for("the child is gone", || is_gone(&pid)).await;
}

#[tokio::test]
async fn a_cancel_lets_the_script_clean_up() {
    let bench = Bench::new();
    let mark = bench.logs.path().join("started");
    let touch = format!("trap 'echo cleaned up; exit 0' TERM; touch {}; sleep 600 & wait", mark.display());
    let cancel = async {
        wait_for("the script runs", || mark.exists()).await;
        bench.cancel.cancel();
    };
    let script = [touch.as_str()];
    let ((outcome, log), ()) = tokio::join!(bench.run_script(&script), cancel);
    assert_eq!(outcome.status, Status::Canceled);
    assert!(log.contains("\ncleaned up\n"), "{log}");
}

#[tokio::test]
async fn a_kill_does_not_wait_for_a_script_that_ignores_signals() {
    let bench = Bench::new();
    let mark = bench.logs.path().join("started");
    let stubborn = format!("trap '' TERM INT; touch {}; while :; do sleep 600; done", mark.display());
    let kill = async {
        wait_for("the script runs", || mark.exists()).await;
        bench.kill.cancel();
        Instant::now()
    };
    let script = [stubborn.as_str()];
    let (_, killed_at) = tokio::join!(bench.run_script(&script), kill);
    assert!(killed_at.elapsed() < process::TERM_GRACE, "killed without the grace of a cancel");
}

#[tokio::test]
async fn a_dropped_job_is_gone_with_its_directory() {
    let bench = Bench::new();
    let mark = bench.logs.path().join("pid");
    let line = format!("echo $$ $PWD > {0}.new; mv {0}.new {0}; sleep 600", mark.display());
    let shell = Shell::new(LogTo::Nowhere);
    let context = bench.context(&json!({"steps": [{"script": [line]}]}));
    tokio::select! {
        _ = shell.run(context) => panic!("it sleeps"),
        () = wait_for("the script runs", || mark.exists()) => {}
    }
    let noted = std::fs::read_to_string(&mark).expect("noted");
    let (pid, dir) = noted.trim().split_once(' ').expect("two words");
    wait_for("the process is gone", || is_gone(pid)).await;
    assert!(!Path::new(dir).exists());
}

#[tokio::test]
async fn output_past_the_limit_is_dropped_with_a_notice_and_blocks_nobody() {
    let (outcome, log) = Bench::new().run_script(&["head -c 9000000 /dev/zero | tr '\\0' 'x'", "exit 3"]).await;
    assert_eq!(outcome, script_failure(3));
    assert!(log.len() < (4 << 20) + 200 && log.ends_with("the rest is dropped\n"), "{}", log.len());
}

#[tokio::test]
async fn a_payload_for_another_kind_of_runner_is_declined() {
    let (shell, bench) = (Shell::new(LogTo::Nowhere), Bench::new());
    let verdict = |payload: Value| shell.accept(&bench.context(&payload).assignment);
    assert_eq!(verdict(json!({"steps": []})), Ok(()));
    for unsupported in [json!({}), json!([1]), json!({"steps": [], "variables": [{"key": "../x", "file": true}]})] {
        assert_eq!(verdict(unsupported), Err(Reason::UNSUPPORTED));
    }
}
