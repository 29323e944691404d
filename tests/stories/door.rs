//! Hostile and odd callers at the native door.

use std::time::{Duration, Instant};

use crate::support::pods::{Installation, LIMIT, TestPod, token};
use crate::support::raw::{self, Raw};
use job_router::job::LeaseId;
use job_router::proto::router_message::Kind as Down;
use job_router::proto::runner_message::Kind as Up;
use job_router::proto::{self, Hello};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tonic::Code;

async fn installation() -> (Installation, TestPod) {
    let mut installation = Installation::new().await;
    installation.config.hello_timeout = Duration::from_millis(300);
    installation.config.accept_timeout = Duration::from_millis(500);
    installation.config.max_streams_per_connection = 3;
    installation.config.max_slots_per_session = 100;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    installation.register(2, json!({})).await;
    (installation, pod)
}

async fn refusal(mut raw: Raw) -> Code {
    raw.end().await.expect_err("it is refused").code()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_comes_in_without_a_token_and_a_proper_hello() {
    let (_installation, pod) = installation().await;
    let bearer = format!("Bearer {}", token(1));
    let long = "x".repeat(600);
    for bad in [None, Some(""), Some("Bearer "), Some("Basic dTpw"), Some(token(1).as_str()), Some(long.as_str())] {
        let refused = match Raw::stream(raw::channel(&pod.url).await, bad).await {
            Ok(raw) => refusal(raw).await,
            Err(status) => status.code(),
        };
        assert_eq!(refused, Code::Unauthenticated, "{bad:?}");
    }
    assert_eq!(refusal(Raw::greet(&pod.url, 99, raw::hello("s", 1)).await).await, Code::Unauthenticated);

    let silent = Raw::stream(raw::channel(&pod.url).await, Some(&bearer)).await.expect("a stream");
    assert_eq!(refusal(silent).await, Code::DeadlineExceeded);
    // 100 slots, and 1,024 ends that are not acknowledged yet.
    let many = vec![proto::Lease { job_id: 1, lease_id: "0".repeat(32) }; 1_125];
    let bad: [(Hello, Code); 7] = [
        (raw::hello("", 1), Code::InvalidArgument),
        (raw::hello("two words", 1), Code::InvalidArgument),
        (raw::hello("s", 101), Code::InvalidArgument),
        (Hello { version: "x".repeat(65), ..raw::hello("s", 1) }, Code::InvalidArgument),
        (Hello { features: vec!["x".repeat(256)], ..raw::hello("s", 1) }, Code::InvalidArgument),
        (Hello { running: many, ..raw::hello("s", 1) }, Code::InvalidArgument),
        (Hello { version: "x".repeat(5 << 20), ..raw::hello("s", 1) }, Code::OutOfRange),
    ];
    for (number, (hello, code)) in bad.into_iter().enumerate() {
        assert_eq!(refusal(Raw::greet(&pod.url, 1, hello).await).await, code, "number {number}");
    }
    let early = Raw::stream(raw::channel(&pod.url).await, Some(&bearer)).await.expect("a stream");
    early.say(raw::slots(1, 0)).await;
    assert_eq!(refusal(early).await, Code::InvalidArgument);
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_the_first_message_out_of_its_limits() {
    let (_installation, pod) = installation().await;
    let bad = proto::Lease { job_id: 1, lease_id: "no".to_owned() };
    let said: [Up; 7] = [
        Up::Hello(raw::hello("s", 1)),
        raw::slots(101, 0),
        raw::accepted(&bad),
        raw::declined(&bad),
        raw::beat(1, std::slice::from_ref(&bad)),
        raw::finished(&bad),
        Up::Accepted(proto::Accepted { lease: None }),
    ];
    for kind in said {
        let (raw, _) = Raw::open(&pod.url, 1, raw::hello("s", 1)).await;
        raw.say(kind.clone()).await;
        assert_eq!(refusal(raw).await, Code::InvalidArgument, "{kind:?}");
    }
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_has_only_so_many_streams() {
    let (_installation, pod) = installation().await;
    let channel = raw::channel(&pod.url).await;
    let bearer = format!("Bearer {}", token(1));
    let mut open = Vec::new();
    for n in 0..3 {
        let mut raw = Raw::stream(channel.clone(), Some(&bearer)).await.expect("a stream");
        raw.say(Up::Hello(raw::hello(&format!("s_{n}"), 1))).await;
        assert!(matches!(raw.next().await, Ok(Some(Down::Welcome(_)))));
        open.push(raw);
    }
    let refused = Raw::stream(channel.clone(), Some(&bearer)).await.err().expect("one too many");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    open.pop();
    // Its place is free again, once the router knows.
    let since = Instant::now();
    while Raw::stream(channel.clone(), Some(&bearer)).await.is_err() {
        assert!(since.elapsed() < LIMIT);
        tokio::task::yield_now().await;
    }
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_failed_log_ins_close_the_door_to_their_address() {
    let mut installation = Installation::new().await;
    installation.config.auth_failures_per_minute = 5;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let mut codes = Vec::new();
    for _ in 0..10 {
        let raw = Raw::stream(raw::channel(&pod.url).await, Some("Bearer wrong")).await;
        codes.push(match raw {
            Ok(raw) => {
                raw.say(Up::Hello(raw::hello("s", 1))).await;
                refusal(raw).await
            }
            Err(status) => status.code(),
        });
    }
    assert_eq!(codes.iter().filter(|code| **code == Code::Unauthenticated).count(), 6, "{codes:?}");
    assert_eq!(codes.last(), Some(&Code::ResourceExhausted));
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_let_in_lately_is_let_in_again_while_its_address_is_refused() {
    let mut installation = Installation::new().await;
    installation.config.auth_failures_per_minute = 5;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    installation.register(2, json!({})).await;
    let (known, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 1)).await;
    drop(known);
    let refused = async |token: &str| {
        let bearer = format!("Bearer {token}");
        match Raw::stream(raw::channel(&pod.url).await, Some(&bearer)).await {
            Ok(raw) => {
                raw.say(Up::Hello(raw::hello("s", 1))).await;
                refusal(raw).await
            }
            Err(status) => status.code(),
        }
    };
    installation
        .until("the address is refused", async || (refused("wrong").await == Code::ResourceExhausted).then_some(()))
        .await;
    assert_eq!(refused(&token(2)).await, Code::ResourceExhausted, "it was never here");
    Raw::open(&pod.url, 1, raw::hello("s_1", 1)).await;
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_log_in_counts_also_when_nobody_waits_for_its_refusal() {
    let (mut installation, _redis) = Installation::alone().await;
    installation.config.auth_failures_per_minute = 5;
    installation.config.max_sessions = 20;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    installation.command("CLIENT PAUSE", &["1000", "ALL"]).await;
    for _ in 0..10 {
        let raw = Raw::greet(&pod.url, 99, raw::hello("s", 1)).await;
        raw.until_heard().await;
    }
    Raw::until_others_have_left(&pod.url, 20, 0).await;
    let bearer = format!("Bearer {}", token(1));
    installation
        .until("the address is refused", async || {
            let stream = Raw::stream(raw::channel(&pod.url).await, Some(&bearer)).await;
            stream.is_err_and(|status| status.code() == Code::ResourceExhausted).then_some(())
        })
        .await;
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_that_a_session_does_not_hold_cost_redis_nothing() {
    let (installation, _redis) = Installation::alone().await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let (mut runner, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 1)).await;
    installation.job(1, json!({})).await;
    let assign = runner.assign().await;
    let own = runner.accept(&assign).await;
    let made_up = || proto::Lease { job_id: 1, lease_id: LeaseId::random(0).to_string() };
    let mut made_up: Vec<_> = (1..10_000).map(|_| made_up()).collect();
    let said = [made_up.iter().cloned().chain([own.clone()]).collect(), vec![own.clone(); 10_000]];
    let before = installation.scripts_run().await;
    let mut gone = Vec::new();
    for (number, leases) in said.iter().enumerate() {
        runner.say(raw::beat(1 + number as u64, leases)).await;
        gone.push(runner.until(|kind| if let Down::BeatAck(ack) = kind { Some(ack.gone.clone()) } else { None }).await);
    }
    let calls = installation.scripts_run().await - before;
    assert!(calls < 50, "{calls} scripts; a pod by itself runs a few in a second");
    let by_id = |lease: &proto::Lease| lease.lease_id.clone();
    gone[0].sort_by_key(by_id);
    made_up.sort_by_key(by_id);
    assert!(gone[0] == made_up, "all but its own are gone at once");
    assert!(gone[1].is_empty());
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_of_other_runners_move_nothing() {
    let (installation, pod) = installation().await;
    let (mut honest, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 2)).await;
    installation.job(1, json!({})).await;
    installation.job(2, json!({})).await;
    let running = honest.assign().await;
    let running = honest.accept(&running).await;
    let assigned = honest.assign().await.lease.expect("a lease");
    let (mut thief, welcome) = Raw::open(&pod.url, 2, raw::hello("s_2", 0)).await;
    assert!(welcome.resumed.is_empty());
    for (number, lease) in [&running, &assigned].into_iter().enumerate() {
        let wrong = proto::Lease { job_id: lease.job_id + 1, ..lease.clone() };
        for lease in [lease, &wrong] {
            thief.say(raw::accepted(lease)).await;
            thief.say(raw::declined(lease)).await;
        }
        thief.say(raw::finished(&wrong)).await;
        let ack = thief.until(|kind| if let Down::FinishedAck(ack) = kind { Some(ack.clone()) } else { None }).await;
        assert!(!ack.recorded);
        thief.say(raw::beat(10 + number as u64, std::slice::from_ref(&wrong))).await;
        let ack = thief.until(|kind| if let Down::BeatAck(ack) = kind { Some(ack.clone()) } else { None }).await;
        assert_eq!(ack.gone, [wrong]);
    }
    assert!(honest.so_far(1).await.is_empty());
    assert_eq!(installation.story_of(1).await, ["queued", "assigned", "running"]);
    let told = installation.story_of(2).await;
    assert_eq!(told[..2], ["queued", "assigned"]);
    assert!(!told.contains(&"running".to_owned()), "{told:?}");
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_finishes_what_it_did_not_accept_gives_it_back() {
    let (installation, pod) = installation().await;
    let (mut hasty, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 1)).await;
    installation.job(1, json!({})).await;
    let lease = hasty.assign().await.lease.expect("a lease");
    hasty.say(raw::finished(&lease)).await;
    let ack = hasty.until(|kind| if let Down::FinishedAck(ack) = kind { Some(ack.clone()) } else { None }).await;
    assert!(!ack.recorded);
    installation.until_events("job.requeued", 1).await;
    let (mut other, _) = Raw::open(&pod.url, 1, raw::hello("s_2", 1)).await;
    let assign = other.assign().await;
    other.accept(&assign).await;
    // Accepting twice starts once.
    other.say(raw::accepted(assign.lease.as_ref().expect("a lease"))).await;
    assert!(other.so_far(1).await.is_empty());
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_session_of_a_manager_wins_and_takes_nothing_from_others() {
    let (installation, pod) = installation().await;
    let (mut old, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 1)).await;
    installation.job(1, json!({})).await;
    old.assign().await;
    let (mut new, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 1)).await;
    assert_eq!(old.end().await.expect_err("it is replaced").code(), Code::Aborted);
    assert_eq!(new.assign().await.lease.expect("a lease").job_id, 1);
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_connection_is_closed() {
    let (_installation, pod) = installation().await;
    let mut tcp = tokio::net::TcpStream::connect(pod.url.trim_start_matches("http://")).await.expect("connects");
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(3), tcp.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "it is still open");
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_never_reads_is_closed_and_its_jobs_go_elsewhere() {
    let (installation, pod) = installation().await;
    let (deaf, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 100)).await;
    let payload = json!({"text": "x".repeat(200_000)});
    for id in 1..=30 {
        installation.job(id, json!({"payload": payload})).await;
    }
    installation.until_events("job.assigned", 30).await;
    // It goes on asking, and never hears.
    for sequence in 1..=2_000 {
        let asked = tokio::time::timeout(Duration::from_millis(100), deaf.say(raw::beat(sequence, &[]))).await;
        if asked.is_err() {
            break;
        }
    }
    let (mut other, _) = Raw::open(&pod.url, 1, raw::hello("s_2", 30)).await;
    let mut got = Vec::new();
    for _ in 0..30 {
        got.push(other.assign().await.lease.expect("a lease").job_id);
    }
    got.sort_unstable();
    assert_eq!(got, (1..=30).collect::<Vec<_>>());
    let since = Instant::now();
    pod.end().await;
    assert!(since.elapsed() < Duration::from_secs(5), "it does not hold up the drain: {:?}", since.elapsed());
    drop(deaf);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_drain_nothing_is_assigned_and_what_was_running_is_resumed_elsewhere() {
    let (installation, pod) = installation().await;
    let other = installation.pod("b").await;
    let (mut runner, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 3)).await;
    installation.job(1, json!({})).await;
    let assign = runner.assign().await;
    let lease = runner.accept(&assign).await;
    let stopping = tokio::spawn(pod.stop());
    runner.until(|kind| matches!(kind, Down::Drain(_)).then_some(())).await;
    installation.job(2, json!({})).await;
    installation.until_events("job.queued", 2).await;
    assert!(!runner.so_far(1).await.iter().any(|kind| matches!(kind, Down::Assign(_))));
    let again = Hello { running: vec![lease.clone()], ..raw::hello("s_1", 2) };
    let (mut runner, welcome) = Raw::open(&other.url, 1, again).await;
    assert_eq!(welcome.resumed[0].lease.as_ref(), Some(&lease));
    assert_eq!(runner.assign().await.lease.expect("a lease").job_id, 2);
    stopping.await.expect("no panic");
    other.end().await;
}
