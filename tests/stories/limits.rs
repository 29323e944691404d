//! What a caller can use up: over each limit it is refused, in words, and counted by that limit.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use job_router::proto::Hello;
use job_router::proto::gitlab::GetJobRequest;
use job_router::proto::gitlab::job_router_client::JobRouterClient;
use job_router::proto::runner_message::Kind as Up;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tonic::{Code, Status};

use crate::support::pods::{Installation, LIMIT, TestPod, token};
use crate::support::raw::{self, Raw};

/// How many were refused for a limit. Other tests of this process count there too, so it is only known that it grows.
async fn refused(pod: &TestPod, limit: &str) -> u64 {
    let start = format!("job_router_refused_total{{limit=\"{limit}\"}} ");
    let (_, metrics) = pod.admin("/metrics").await;
    let line = metrics.lines().find_map(|line| line.strip_prefix(&start)).expect("each limit is there from the start");
    line.parse().expect("a number")
}

/// That what is done is counted.
async fn counted<T>(pod: &TestPod, limit: &str, done: impl Future<Output = T>) -> T {
    let before = refused(pod, limit).await;
    let outcome = done.await;
    assert!(refused(pod, limit).await > before, "{limit}");
    outcome
}

/// How a log-in with this token and Hello is refused.
async fn refusal(pod: &TestPod, token: &str, hello: Hello) -> Status {
    let bearer = format!("Bearer {token}");
    match Raw::stream(raw::channel(&pod.url).await, Some(&bearer)).await {
        Ok(mut raw) => {
            raw.say(Up::Hello(hello)).await;
            raw.end().await.expect_err("it is refused")
        }
        Err(status) => status,
    }
}

async fn connect_from(last: u8, pod: &TestPod) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0))).expect("an address of this host");
    socket.connect(pod.url.trim_start_matches("http://").parse().expect("an address")).await.expect("connects")
}

/// Until the other side closes it, having said no more than HTTP/2 does.
async fn until_closed(mut tcp: TcpStream) {
    let mut said = Vec::new();
    let _ = tokio::time::timeout(LIMIT, tcp.read_to_end(&mut said)).await.expect("it is closed"); // a reset is as good
    assert!(said.len() < 256, "{} bytes", said.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_too_many_is_closed_at_once_and_a_silent_one_in_time() {
    let mut installation = Installation::new().await;
    installation.config.hello_timeout = Duration::from_secs(1);
    installation.config.max_connections = 5;
    installation.config.max_connections_per_address = 3;
    let pod = installation.pod("a").await;
    let mut silent = Vec::new();
    for last in [2, 2, 2, 3, 3] {
        silent.push(connect_from(last, &pod).await);
    }
    counted(&pod, "connections", async { until_closed(connect_from(4, &pod).await).await }).await;
    drop(silent.pop());
    // Once the pod knows that there is room again, it is the address that has too many.
    installation
        .until("its place is free", async || {
            let before = refused(&pod, "connections_per_address").await;
            until_closed(connect_from(2, &pod).await).await;
            (refused(&pod, "connections_per_address").await > before).then_some(())
        })
        .await;
    counted(&pod, "hello_timeout", async { until_closed(silent.pop().expect("one of them")).await }).await;
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_streams_slots_and_messages_have_limits() {
    let mut installation = Installation::new().await;
    installation.config.hello_timeout = Duration::from_millis(500);
    installation.config.max_streams_per_connection = 2;
    installation.config.max_slots_per_session = 10;
    installation.config.max_sessions = 4;
    installation.config.max_sessions_per_token = 2;
    installation.config.gitlab_hold = Duration::from_secs(1);
    let pod = installation.pod("a").await;
    for id in 1..=3 {
        installation.register(id, json!({})).await;
    }

    let too_many = counted(&pod, "slots_per_session", refusal(&pod, &token(1), raw::hello("s", 11))).await;
    assert_eq!(too_many.code(), Code::InvalidArgument, "{too_many}");
    let large = Hello { version: "x".repeat(5 << 20), ..raw::hello("s", 1) };
    let too_large = counted(&pod, "message_bytes", refusal(&pod, &token(1), large)).await;
    assert_eq!(too_large.code(), Code::OutOfRange, "{too_large}");
    let mut client = JobRouterClient::new(raw::channel(&pod.url).await);
    let large = GetJobRequest { job_request: vec![b' '; 65 << 10].into() };
    let too_large = counted(&pod, "message_bytes", client.get_job(large)).await.expect_err("it is too large");
    assert_eq!(too_large.code(), Code::OutOfRange, "{too_large}");
    let bearer = format!("Bearer {}", token(1));
    let late = counted(&pod, "hello_timeout", async {
        let mut silent = Raw::stream(raw::channel(&pod.url).await, Some(&bearer)).await.expect("a stream");
        silent.end().await.expect_err("it says nothing")
    });
    assert_eq!(late.await.code(), Code::DeadlineExceeded);

    let channel = raw::channel(&pod.url).await;
    let two = futures::future::join_all([(); 2].map(|()| Raw::stream(channel.clone(), Some(&bearer)))).await;
    let third = counted(&pod, "streams_per_connection", Raw::stream(channel, Some(&bearer))).await;
    assert_eq!(third.err().expect("one too many").code(), Code::ResourceExhausted);
    drop(two);

    let mut sessions = Vec::new();
    for (id, system_id) in [(1, "a"), (1, "b"), (2, "a")] {
        // The places of those before are free once the pod knows that they have gone.
        let open = async || {
            let bearer = format!("Bearer {}", token(id));
            let mut raw = Raw::stream(raw::channel(&pod.url).await, Some(&bearer)).await.ok()?;
            raw.say(Up::Hello(raw::hello(system_id, 1))).await;
            matches!(raw.next().await, Ok(Some(_))).then_some(raw)
        };
        sessions.push(installation.until("it is let in", open).await);
    }
    let of_token = counted(&pod, "sessions_per_token", refusal(&pod, &token(1), raw::hello("c", 1))).await;
    assert_eq!((of_token.code(), of_token.message().contains("this token has 2")), (Code::ResourceExhausted, true));
    let (_fourth, _) = Raw::open(&pod.url, 2, raw::hello("b", 1)).await;
    let of_all = counted(&pod, "sessions", refusal(&pod, &token(3), raw::hello("a", 1))).await;
    assert_eq!((of_all.code(), of_all.message().contains("has 4 sessions")), (Code::ResourceExhausted, true));
    pod.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_log_ins_are_counted_by_token_and_by_address() {
    let mut installation = Installation::new().await;
    installation.config.auth_failures_per_minute = 5;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    for _ in 0..6 {
        assert_eq!(refusal(&pod, "wrong", raw::hello("s", 1)).await.code(), Code::Unauthenticated);
    }
    let of_token = counted(&pod, "auth_failures_of_token", refusal(&pod, "wrong", raw::hello("s", 1))).await;
    assert!(of_token.message().contains("with this token"), "{of_token}");
    let of_address = counted(&pod, "auth_failures_of_address", refusal(&pod, &token(1), raw::hello("s", 1))).await;
    assert!(of_address.message().contains("from this address"), "{of_address}");
    pod.end().await;
}
