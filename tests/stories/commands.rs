//! The binary, as people and scripts meet it: against a Redis of its own, without a pod.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use job_router::contract::{Limits, Message, parse};
use job_router::redis::{Partition, PrivateRedis, PrivateRedisOptions, Redis, RedisSettings};
use job_router::runner::Scope;
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};

const GOOD: &str = r#"{"type":"job.pending","data":{"id":1,"project_id":7,"namespace_ids":[3],"payload":{"a":1}}}"#;
const BAD: &str =
    r#"{"type":"job.pending","data":{"id":2,"project_id":7,"namespace_ids":[3],"tags":"hunter2","payload":{}}}"#;
const CANCEL: &str = r#"{"type":"job.canceled","data":{"id":1,"tenant":"ns:3"}}"#;

fn redis() -> PrivateRedis {
    PrivateRedis::start(&PrivateRedisOptions::default()).expect("redis-server starts")
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_job-router"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("JOB_ROUTER_")) {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null());
    command
}

fn run(redis: &PrivateRedis, args: &[&str], stdin: &str) -> Output {
    let mut child = command(args)
        .env("JOB_ROUTER_REDIS_URL", redis.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // One that reads nothing may be gone by now.
    let _ = child.stdin.take().expect("it is piped").write_all(stdin.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// (type, data) of every entry of the inbox.
async fn inbox(redis: &PrivateRedis) -> Vec<(String, String)> {
    let redis = Redis::connect(&RedisSettings::new(redis.url())).await.expect("redis answers");
    let entries = redis.command("XRANGE", ["jr:inbox".into(), "-".into(), "+".into()]).await.expect("redis answers");
    let entries = entries.into_entries().expect("a stream");
    let field = |entry: &job_router::redis::Entry, name| text(entry.field(name).expect("every entry has it"));
    entries.iter().map(|entry| (field(entry, "type"), field(entry, "data"))).collect()
}

#[tokio::test]
async fn publish_sends_the_good_lines_in_order_and_names_the_bad_ones() {
    let redis = redis();
    let output = run(&redis, &["publish"], &format!("{GOOD}\n\n{BAD}\nno json\n{CANCEL}\n"));
    assert_eq!(output.status.code(), Some(65));
    assert!(text(&output.stdout).starts_with("published 2 (last id "), "{output:?}");
    let complaints = text(&output.stderr);
    assert!(complaints.contains("stdin:3: data.tags: "), "{complaints}");
    assert!(complaints.contains("stdin:4: line: "), "{complaints}");
    assert!(!complaints.contains("hunter2"), "{complaints}");
    let types: Vec<String> = inbox(&redis).await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(types, ["job.pending", "job.canceled"]);
}

#[tokio::test]
async fn publish_goes_on_after_a_line_that_is_no_utf_8() {
    let redis = redis();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, [GOOD.as_bytes(), b"\n{\"\xff\"}\n", CANCEL.as_bytes(), b"\r\n"].concat()).unwrap();
    let output = run(&redis, &["publish", file.path().to_str().unwrap()], "");
    assert_eq!(output.status.code(), Some(65), "{output:?}");
    assert!(text(&output.stderr).contains(":2: line: no UTF-8 at byte 3"), "{output:?}");
    assert_eq!(inbox(&redis).await.len(), 2);
}

#[tokio::test]
async fn publish_that_is_stopped_before_the_end_of_its_input_does_not_claim_to_be_done() {
    let redis = redis();
    let mut child = command(&["publish"])
        .env("JOB_ROUTER_REDIS_URL", redis.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().expect("it is piped");
    writeln!(stdin, "{GOOD}").unwrap();
    let watch = Redis::connect(&RedisSettings::new(redis.url())).await.expect("redis answers");
    let limit = Instant::now() + Duration::from_secs(30);
    while watch.command("XLEN", ["jr:inbox".into()]).await.expect("a reply").as_u64().expect("a length") == 0 {
        assert!(Instant::now() < limit, "the first line is not published");
        tokio::task::yield_now().await;
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    // Its input is open all the while: more lines may come.
    wait_until("it ends", || child.try_wait().unwrap().is_some());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("stopped before the end of stdin; publish again from line 2"), "{output:?}");
    drop(stdin);
}

#[tokio::test]
async fn publish_takes_a_file_and_leaves_the_judgement_to_the_router_if_asked() {
    let redis = redis();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, format!("{BAD}\n{GOOD}\n")).unwrap();
    let path = file.path().to_str().unwrap();
    let output = run(&redis, &["publish", "--unchecked", path], "");
    assert!(output.status.success(), "{output:?}");
    let sent: Vec<String> = inbox(&redis).await.into_iter().map(|(_, data)| data).collect();
    assert_eq!(sent.len(), 2);
    assert!(BAD.contains(&sent[0]) && GOOD.contains(&sent[1]), "{sent:?}");
}

#[tokio::test]
async fn publish_keeps_the_order_of_many_lines() {
    let redis = redis();
    let lines: String = (1..=3_000).map(|id| GOOD.replace("\"id\":1", &format!("\"id\":{id}")) + "\n").collect();
    assert!(run(&redis, &["publish"], &lines).status.success());
    let sent = inbox(&redis).await;
    assert_eq!(sent.len(), 3_000);
    for (id, (_, data)) in (1..).zip(sent) {
        assert!(data.contains(&format!("\"id\":{id},")), "{id}: {data}");
    }
}

#[tokio::test]
async fn explain_answers_for_a_job_nobody_knows_and_names_the_mistake_in_a_bad_question() {
    let redis = redis();
    assert!(run(&redis, &["publish"], GOOD).status.success());
    let output = run(&redis, &["explain", "1"], "");
    assert!(output.status.success(), "{output:?}");
    let told = text(&output.stdout);
    assert!(told.starts_with("job 1: it is not known: it was never published, or ended too long ago"), "{told}");
    assert!(told.contains("the 1 entry of the inbox that no pod has applied yet"), "{told}");
    let output = run(&redis, &["explain", "1", "--json", "--tenant", "ns:3"], "");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["v"], &json["reason"]), (&1.into(), &"unknown".into()));
    let output = run(&redis, &["explain", "1", "--tenant", &"x".repeat(65)], "");
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(
        text(&output.stderr).contains("--tenant must be 1 to 64 bytes without control characters; is text of 65 bytes")
    );
    let output = run(&redis, &["explain", "0"], "");
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(text(&output.stderr).contains("0 is not in 1..=9223372036854775807"), "{output:?}");
}

#[tokio::test]
async fn runner_add_prints_a_token_whose_hash_is_in_the_inbox_and_the_token_is_not() {
    let redis = redis();
    let output = run(&redis, &["runner-add", "--quiet", "--tags", "b,a", "--run-untagged", "--id", "9"], "");
    assert!(output.status.success(), "{output:?}");
    let token = text(&output.stdout).trim_end().to_owned();
    assert!(token.starts_with("jrt-") && token.len() == 36, "a token of another shape");
    let (kind, data) = inbox(&redis).await.pop().unwrap();
    assert_eq!(kind, "runner.upserted");
    assert!(!data.contains(&token));
    let data: serde_json::Value = serde_json::from_str(&data).unwrap();
    assert_eq!(data["token_sha256"], hex::encode(Sha256::digest(&token)));
    assert_eq!((&data["id"], &data["run_untagged"], &data["type"]), (&9.into(), &true.into(), &"instance".into()));
}

#[tokio::test]
async fn runner_add_writes_a_token_file_for_its_user_only_and_never_over_another() {
    let redis = redis();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let args = ["runner-add", "--token-file", path.to_str().unwrap()];
    let output = run(&redis, &args, "");
    assert!(output.status.success(), "{output:?}");
    let token = std::fs::read_to_string(&path).unwrap();
    assert!(!text(&output.stdout).contains(token.trim()));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(run(&redis, &args, "").status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), token);
    assert_eq!(inbox(&redis).await.len(), 1, "nothing is published whose token is lost");
}

#[test]
fn runner_add_leaves_no_token_behind_that_it_could_not_publish() {
    // Full: what adds is refused.
    let options = PrivateRedisOptions { config: vec!["maxmemory 1".to_owned()], ..PrivateRedisOptions::default() };
    let redis = PrivateRedis::start(&options).expect("redis-server starts");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let output = run(&redis, &["runner-add", "--token-file", path.to_str().unwrap()], "");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("cannot publish"), "{output:?}");
    assert!(!path.exists());
}

#[tokio::test]
async fn an_unknown_job_says_where_it_may_still_be() {
    let redis = redis();
    run(&redis, &["publish"], GOOD);
    let output = run(&redis, &["jobs", "show", "42"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("1 entries of jr:inbox"), "{output:?}");
    assert!(run(&redis, &["events", "--json"], "").status.success());
    assert_eq!(text(&run(&redis, &["lanes", "--json"], "").stdout), "[]\n");
}

#[tokio::test]
async fn a_queue_is_paused_is_listed_with_what_it_holds_up_and_is_resumed() {
    let redis = redis();
    let edge = Redis::connect(&RedisSettings::new(redis.url())).await.expect("redis answers");
    let partition = Partition::new(edge.clone(), "{jr:0}:");
    partition.scope(Scope::Instance, true).await.expect("opens");
    for id in 1..=3 {
        let data = format!(r#"{{"id":{id},"project_id":7,"namespace_ids":[3],"payload":{{}}}}"#);
        let fields = [("v", "1"), ("type", "job.pending"), ("data", &data)];
        let Ok(Message::JobPending(job)) = parse(&fields, &Limits::default()) else { panic!("a sound job") };
        partition.fan_out(&"pod".parse().unwrap(), &[(format!("{id}-0"), *job)], Duration::ZERO, &[]).await.unwrap();
    }
    let lanes: serde_json::Value = serde_json::from_slice(&run(&redis, &["lanes", "--json"], "").stdout).unwrap();
    let lane = lanes[0]["lane"].as_str().expect("its name").to_owned();
    let targets: [&[&str]; 4] = [&["all"], &["lane", &lane], &["tenant", "ns:3"], &["project", "7"]];
    for target in targets {
        let more = ["--note", "a \"reason\"", "--by", "ops", "--for", "2h"];
        let output = run(&redis, &[&["pause"], target, &more].concat(), "");
        assert!(text(&output.stdout).starts_with(&format!("paused {} until ", target.join(":"))), "{output:?}");
    }
    let output = run(&redis, &["paused", "--json"], "");
    let paused: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for (pause, target) in paused.as_array().expect("a list").iter().zip(targets) {
        assert_eq!(
            (&pause["target"], &pause["by"], &pause["queued"]),
            (&target.join(":").into(), &"ops".into(), &3.into())
        );
        let lasts = pause["until_ms"].as_u64().unwrap() - pause["since_ms"].as_u64().unwrap();
        assert!((7_190_000..=7_200_000).contains(&lasts), "{pause}");
    }
    assert_eq!(paused.as_array().expect("a list").len(), 4);
    let listed = text(&run(&redis, &["paused"], "").stdout);
    assert!(listed.contains("tenant:ns:3") && listed.contains(r#"a "reason""#), "{listed}");
    let lanes: serde_json::Value = serde_json::from_slice(&run(&redis, &["lanes", "--json"], "").stdout).unwrap();
    assert_eq!(lanes[0]["paused"], true);
    assert_eq!(lanes[0]["order"], "fair");
    assert_eq!(text(&run(&redis, &["lane-order", &lane, "fifo"], "").stdout), format!("{lane}: fifo now\n"));
    let lanes: serde_json::Value = serde_json::from_slice(&run(&redis, &["lanes", "--json"], "").stdout).unwrap();
    assert_eq!(lanes[0]["order"], "fifo");
    let told = text(&run(&redis, &["events"], "").stdout);
    assert!(told.contains("queue.paused") && told.contains("target=tenant:ns:3"), "{told}");
    for target in targets {
        let output = run(&redis, &[&["resume"], target].concat(), "");
        assert_eq!(text(&output.stdout), format!("resumed {}\n", target.join(":")));
        let output = run(&redis, &[&["resume"], target].concat(), "");
        assert_eq!(text(&output.stdout), format!("{} was not paused\n", target.join(":")));
    }
    assert_eq!(text(&run(&redis, &["paused", "--json"], "").stdout), "[]\n");

    let unknown = lane.replace("instance:", "group:9:");
    let output = run(&redis, &["pause", "lane", &unknown], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("there is no lane group:9:"), "{output:?}");
    let output = run(&redis, &["pause", "all", "--until", "2020-01-01T00:00:00Z"], "");
    assert_eq!(output.status.code(), Some(64), "{output:?}");
}

#[test]
fn mistakes_of_the_user_end_with_64_and_are_told_all_at_once() {
    let cases: [&[&str]; 16] = [
        &["serve", "--lease", "soon", "--grpc-listen", "here"],
        &["serve", "--no-such-flag"],
        &["no-such-command"],
        &["publish", "--redis-url", "nowhere"],
        &["runner-add", "--type", "group"],
        &["runner-add", "--priority", "101"],
        &["events", "--from", "yesterday"],
        &["runner", "--token-file", "t", "--log", "inof"],
        &["pause", "tenant"],
        &["pause", "all", "ns:3"],
        &["pause", "lane", "linux"],
        &["pause", "all", "--for", "a while"],
        &["pause", "all", "--note", "two\nlines"],
        &["resume", "project", "ns:3"],
        &["lane-order", "all", "lifo"],
        &["lane-order", "group:9:aaaaaaaaaaaaaaaaaaaaaa", "fifo"],
    ];
    for args in cases {
        let output = command(args).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{args:?}: {output:?}");
    }
    let output = command(cases[0]).env("JOB_ROUTER_LEAES", "1m").output().unwrap();
    let mistakes = text(&output.stderr);
    assert!(["--lease", "--grpc-listen", "LEAES"].iter().all(|name| mistakes.contains(name)), "{mistakes}");
}

#[test]
fn a_mistake_in_what_a_runner_is_told_ends_with_64() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "secret").unwrap();
    let cases: [&[&str]; 3] = [
        &["--url", "ftp://127.0.0.1:1"],
        &["--url", "http://127.0.0.1:1", "--ca-file", token.to_str().unwrap()],
        &["--features", "a,,b"],
    ];
    for args in cases {
        let runner = ["runner", "--token-file", token.to_str().unwrap()];
        let output = command(&[&runner, args].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{args:?}: {output:?}");
    }
}

#[test]
fn the_runners_variables_are_no_mistake_to_other_commands() {
    let redis = redis();
    let lanes = || {
        let mut lanes = command(&["lanes", "--json"]);
        lanes.env("JOB_ROUTER_REDIS_URL", redis.url()).env("JOB_ROUTER_URL", "http://127.0.0.1:7460");
        lanes
    };
    let output = lanes().env("JOB_ROUTER_TOKEN_FILE", "token").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = lanes().env("JOB_ROUTER_TOKENFILE", "token").output().unwrap();
    assert!(text(&output.stderr).contains("did you mean JOB_ROUTER_TOKEN_FILE?"), "{output:?}");
}

#[test]
fn what_cannot_be_reached_ends_with_1_and_says_what() {
    let output = command(&["lanes", "--redis-url", "redis://127.0.0.1:1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("redis://127.0.0.1:1"), "{output:?}");
    let output = command(&["serve", "--grpc-listen", "192.0.2.1:1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("grpc_listen"), "{output:?}");
}

#[test]
fn every_subcommand_teaches_with_an_example() {
    let commands: [&[&str]; 21] = [
        &[],
        &["serve"],
        &["dev"],
        &["publish"],
        &["runner-add"],
        &["runner"],
        &["jobs", "show"],
        &["events"],
        &["lanes"],
        &["pause"],
        &["resume"],
        &["paused"],
        &["lane-order"],
        &["demo"],
        &["bench"],
        &["bench", "latency"],
        &["bench", "backlog"],
        &["bench", "lanes"],
        &["bench", "fairness"],
        &["bench", "roll"],
        &["bench", "reconnect"],
    ];
    for args in commands {
        let output = command(&[args, &["--help"]].concat()).output().unwrap();
        assert!(output.status.success(), "{args:?}");
        assert!(text(&output.stdout).contains("Example"), "{args:?}");
    }
}

#[test]
fn each_benchmark_runs_every_job_once_and_ends_with_a_line_of_json() {
    let cases: [(&[&str], &[&str]); 5] = [
        (
            &["latency", "--rate", "200", "--jobs", "60", "--warm-up", "20"],
            &["/publish_to_runner_ms/p99", "/floor_ms/p50"],
        ),
        (&["throughput", "--jobs", "1000", "--slots", "20"], &["/jobs_per_s", "/redis_cpu_us_per_job"]),
        (&["backlog", "--sizes", "200,400", "--takes", "100", "--rounds", "1"], &["/take_us/200", "/ratio"]),
        (
            &["lanes", "--tenants", "2,20", "--lanes", "2,5", "--jobs", "200", "--takes", "100", "--rounds", "1"],
            &["/tenants_ratio", "/lanes_ratio", "/asked_ratio", "/lanes/take_us/5", "/match_us/5"],
        ),
        (
            &["fairness", "--flood", "800", "--projects", "1,20", "--share-jobs", "600", "--tenants", "2"],
            &["/quiet_p99_ms/20", "/drain_ratio_to_ideal", "/jain_equal", "/weighted/parts/2"],
        ),
    ];
    for (args, numbers) in cases {
        let output = command(&[&["bench"], args, &["--json"]].concat()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let result: serde_json::Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
        for number in numbers {
            assert!(result.pointer(number).and_then(|number| number.as_f64()).is_some_and(|n| n > 0.0), "{result}");
        }
        if !["backlog", "lanes"].contains(&args[0]) {
            assert_eq!((&result["lost"], &result["doubled"]), (&0.into(), &0.into()), "{result}");
        }
    }
}

#[test]
fn neither_an_interrupted_nor_a_killed_benchmark_leaves_a_process_behind() {
    for signal in [Signal::INT, Signal::KILL] {
        let mut bench = command(&["bench", "throughput", "--jobs", "1000000", "--json"]).spawn().unwrap();
        // Redis and its guard, a pod, two runners, the publisher.
        let mut children = Vec::new();
        wait_until("all of it runs", || {
            children = children_of(bench.id());
            children.len() >= 6
        });
        kill_process(Pid::from_child(&bench), signal).unwrap();
        wait_until("the benchmark ends", || bench.try_wait().unwrap().is_some());
        wait_until("its processes end", || !children.iter().any(|pid| is_alive(*pid)));
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn children_of(pid: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let children = threads.flatten().flat_map(|thread| std::fs::read_to_string(thread.path().join("children")));
    children.flat_map(|pids| pids.split_whitespace().flat_map(str::parse).collect::<Vec<u32>>()).collect()
}

/// Whether this process runs; one that nobody has waited for does not.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

#[test]
fn doctor_says_what_redis_would_lose_and_what_to_set() {
    let output = run(&redis(), &["doctor"], "");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stdout).contains("set: appendonly yes"), "{output:?}");
    let kept = PrivateRedis::start(&PrivateRedisOptions { append_only: true, ..Default::default() }).expect("starts");
    let output = run(&kept, &["doctor", "--json"], "");
    assert!(output.status.success(), "{output:?}");
    let servers: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(servers[0]["findings"][0]["set"], "maxmemory, below the memory of the machine");
}
