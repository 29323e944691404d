//! The admin server: `/livez`, `/readyz`, `/metrics` and the discovery of GitLab Runners, over plain HTTP, on a port of its own.
//!
//! It never asks Redis: a Redis that is away must not get pods killed, which would cut the runners they hold.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Readiness, Registry};

/// How long open requests have at shutdown: a scrape takes milliseconds, and a peer that stalls must not keep the pod.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// What the admin server shows.
#[derive(Debug, Clone)]
pub struct Admin {
    /// For `/readyz`.
    pub readiness: Arc<Readiness>,
    /// For `/metrics`.
    pub registry: &'static Registry,
    /// Where GitLab Runners find the router; none: it is not told here.
    pub gitlab_server_url: Option<String>,
}

/// The routes; the caller may merge more.
///
/// - `/livez`: 200 as long as the event loop turns.
/// - `/readyz`: 200 if new runners are welcome, else 503; with `?verbose`, a line for each check.
/// - `/metrics`: the Prometheus text format.
/// - `/api/v4/runners/router/discovery`: what a GitLab Runner asks Rails, where it is routed here.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/v4/runners/router/discovery", get(discovery))
        .with_state(admin)
}

/// Serves `router` until `shutdown`, which should come last: `/readyz` must say no all through a drain.
///
/// # Errors
///
/// Those of the listener.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> std::io::Result<()> {
    let server = axum::serve(listener, router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    tokio::select! {
        ended = server.into_future() => ended,
        () = grace_over(shutdown) => Ok(()),
    }
}

async fn grace_over(shutdown: CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(SHUTDOWN_GRACE).await;
}

async fn readyz(State(admin): State<Admin>, RawQuery(query): RawQuery) -> impl IntoResponse {
    let checks = admin.readiness.checks();
    let ready = checks.iter().all(|(_, good)| *good);
    let mut text = String::new();
    if query.is_some_and(|query| query.split('&').any(|part| part.split('=').next() == Some("verbose"))) {
        for (name, good) in checks {
            writeln!(text, "{} {name}", if good { "[+]" } else { "[-]" }).expect("a String takes all");
        }
    }
    text += if ready { "ready\n" } else { "not ready\n" };
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

/// No secret, so whoever has a token is told; what the token is good for is seen at the call.
async fn discovery(State(admin): State<Admin>, headers: HeaderMap) -> impl IntoResponse {
    match admin.gitlab_server_url {
        Some(url) if headers.contains_key("runner-token") => Ok(axum::Json(serde_json::json!({ "server_url": url }))),
        Some(_) => Err((StatusCode::UNAUTHORIZED, "header Runner-Token: missing\n")),
        None => Err((StatusCode::NOT_FOUND, "gitlab_server_url is not set\n")),
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.registry.render())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// Runs `test` against a server on a free port, then stops it and waits for its end.
    async fn with_server(readiness: &Arc<Readiness>, test: impl AsyncFnOnce(std::net::SocketAddr)) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let registry: &'static Registry = Box::leak(Box::default());
        let shutdown = CancellationToken::new();
        let gitlab_server_url = Some("grpc://router.example.com:443".to_owned());
        let admin = Admin { readiness: Arc::clone(readiness), registry, gitlab_server_url };
        let server = serve(listener, router(admin), shutdown.clone());
        let client = async {
            test(address).await;
            shutdown.cancel();
        };
        let both = async { tokio::join!(server, client) };
        let (ended, ()) = tokio::time::timeout(Duration::from_secs(30), both).await.expect("the server stops");
        ended.expect("it stops well");
    }

    async fn ask(address: std::net::SocketAddr, path: &str) -> String {
        ask_with(address, path, "").await
    }

    async fn ask_with(address: std::net::SocketAddr, path: &str, header: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("listening");
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    #[tokio::test]
    async fn a_gitlab_runner_is_told_where_the_router_is() {
        with_server(&Arc::default(), async |address| {
            let path = "/api/v4/runners/router/discovery";
            assert!(ask(address, path).await.starts_with("HTTP/1.1 401"));
            let told = ask_with(address, path, "Runner-Token: t\r\n").await;
            assert!(told.starts_with("HTTP/1.1 200") && told.contains("content-type: application/json"), "{told}");
            assert!(told.ends_with("{\"server_url\":\"grpc://router.example.com:443\"}"), "{told}");
        })
        .await;
    }

    #[tokio::test]
    async fn a_pod_lives_before_it_is_ready_and_is_ready_until_it_drains() {
        let readiness = Arc::new(Readiness::default());
        with_server(&readiness, async |address| {
            assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200"));
            assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 503"));
            readiness.set_redis_up(true);
            let verbose = ask(address, "/readyz?verbose").await;
            assert!(verbose.ends_with("[+] redis_up\n[-] scripts_loaded\n[+] not_draining\nnot ready\n"), "{verbose}");
            readiness.set_scripts_loaded(true);
            assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));
            readiness.set_draining();
            assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 503"));
            assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200"), "a draining pod must not be killed");
        })
        .await;
    }

    #[tokio::test]
    async fn metrics_are_served_as_prometheus_text() {
        with_server(&Arc::default(), async |address| {
            let answer = ask(address, "/metrics").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{answer}");
            assert!(answer.contains("# TYPE job_router_sweep_rescues_total counter"), "{answer}");
        })
        .await;
    }

    #[tokio::test]
    async fn a_request_that_never_ends_does_not_hold_up_the_shutdown() {
        let mut stalled = None;
        with_server(&Arc::default(), async |address| {
            let mut stream = TcpStream::connect(address).await.expect("listening");
            stream.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.expect("sent");
            ask(address, "/livez").await; // the server has been round since
            stalled = Some(stream);
        })
        .await;
    }
}
