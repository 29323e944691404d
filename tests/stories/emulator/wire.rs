//! That the double's connections fail and come back as grpc-go's do: against servers that answer with their name.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use job_router::proto::gitlab::job_router_server::{JobRouter, JobRouterServer};
use job_router::proto::gitlab::{GetJobRequest, GetJobResponse};
use job_router::redis::ReservedPort;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use super::connections::Connections;
use crate::support::net::Balancer;
use crate::support::pods::LIMIT;

/// A server.
struct Named {
    name: &'static str,
    /// A call to hold has come; it has gone.
    held: CancellationToken,
    gone: CancellationToken,
}

#[tonic::async_trait]
impl JobRouter for Named {
    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let job_response = match &request.get_ref().job_request[..] {
            b"hold" => {
                let _gone = self.gone.clone().drop_guard();
                self.held.cancel();
                std::future::pending().await
            }
            b"refuse" => return Err(Status::permission_denied("nobody")),
            b"large" => vec![b'x'; 4 << 20].into(),
            _ => self.name.into(),
        };
        Ok(Response::new(GetJobResponse { job_response }))
    }
}

/// A server of that name: its address, and when a call that it holds comes and goes.
async fn serve(name: &'static str) -> (SocketAddr, CancellationToken, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (held, gone) = <(CancellationToken, CancellationToken)>::default();
    let server = JobRouterServer::new(Named { name, held: held.clone(), gone: gone.clone() });
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(server).serve_with_incoming(incoming));
    (address, held, gone)
}

/// Connections to these addresses under one name.
fn to(addresses: &[SocketAddr]) -> Arc<Connections> {
    let names = BTreeMap::from([("router:80".to_owned(), addresses.to_vec())]);
    Arc::new(Connections::new(names, CancellationToken::new()))
}

async fn say(connections: &Connections, what: &'static str) -> Result<String, Code> {
    let request = || Request::new(GetJobRequest { job_request: what.into() });
    let call = connections.get_job("grpc://router:80", "token", request);
    let answer = tokio::time::timeout(LIMIT, call).await.expect("in time")?;
    Ok(String::from_utf8(answer.into_inner().job_response.into()).expect("a name"))
}

#[tokio::test]
async fn calls_go_to_the_servers_that_are_up_in_turn() {
    let dead = ReservedPort::new().expect("a port");
    let mut addresses = vec![SocketAddr::from(([127, 0, 0, 1], dead.get()))];
    for name in ["a", "b", "c"] {
        addresses.push(serve(name).await.0);
    }
    let connections = to(&addresses);
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 3 {
        seen.insert(say(&connections, "who").await.expect("a server that is up"));
    }
    let mut next = Vec::new();
    for _ in 0..6 {
        next.push(say(&connections, "who").await.expect("a server that is up"));
    }
    assert_eq!(next[..3], next[3..], "in turn");
    next.sort_unstable();
    assert_eq!(next, ["a", "a", "b", "b", "c", "c"]);
}

#[tokio::test]
async fn where_nobody_listens_a_call_is_unavailable_at_once() {
    let dead = ReservedPort::new().expect("a port");
    let connections = to(&[SocketAddr::from(([127, 0, 0, 1], dead.get()))]);
    for _ in 0..100 {
        assert_eq!(say(&connections, "who").await, Err(Code::Unavailable));
    }
}

#[tokio::test]
async fn a_call_whose_connection_breaks_is_unavailable_and_the_next_has_a_new_one() {
    let (address, held, _) = serve("a").await;
    let balancer = Balancer::new(&[&format!("http://{address}")]).await;
    let connections = to(&[balancer.url.trim_start_matches("http://").parse().expect("an address")]);
    let (call, ()) = tokio::join!(say(&connections, "hold"), async {
        held.cancelled().await;
        balancer.cut();
    });
    assert_eq!(call, Err(Code::Unavailable));
    assert_eq!(say(&connections, "who").await.as_deref(), Ok("a"));
}

#[tokio::test]
async fn what_the_server_refuses_and_what_is_too_large_is_told_by_its_code() {
    let connections = to(&[serve("a").await.0]);
    assert_eq!(say(&connections, "refuse").await, Err(Code::PermissionDenied));
    let too_large = say(&connections, "large").await.expect_err("4 MiB and a few bytes");
    assert_eq!(too_large, Code::OutOfRange);
}

#[tokio::test]
async fn a_call_that_is_dropped_is_cancelled_at_the_server() {
    let (address, held, gone) = serve("a").await;
    let connections = to(&[address]);
    tokio::select! {
        answer = say(&connections, "hold") => panic!("{answer:?}"),
        () = held.cancelled() => {}
    }
    tokio::time::timeout(LIMIT, gone.cancelled()).await.expect("it is told");
    assert_eq!(say(&connections, "who").await.as_deref(), Ok("a"), "and the connection is still good");
}
