//! Where the router is: asked over HTTP, and remembered for an hour.

use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

const REMEMBERED_FOR: Duration = Duration::from_secs(3_600);

/// What a process knows of the router: also that there is none.
#[derive(Default)]
pub(super) struct Discovery {
    known: Option<(Option<String>, Instant)>,
}

#[derive(Deserialize)]
struct Discovered {
    server_url: String,
}

// === impl Discovery ===

impl Discovery {
    /// The router's URL, where there is one; asks for it where that is not known.
    pub(super) async fn url(&mut self, ask: impl Future<Output = Option<String>>) -> Option<String> {
        match &self.known {
            Some((url, at)) if at.elapsed() < REMEMBERED_FOR => url.clone(),
            _ => self.known.insert((ask.await, Instant::now())).0.clone(),
        }
    }

    /// The router says that it is switched off.
    pub(super) fn forget(&mut self) {
        self.known = None;
    }
}

/// Asks `GET /api/v4/runners/router/discovery` at `host:port`. Whatever is no good answer means that there is no router.
pub(super) async fn ask(address: &str, token: &str) -> Option<String> {
    let request = format!(
        "GET /api/v4/runners/router/discovery HTTP/1.1\r\nHost: {address}\r\nRunner-Token: {token}\r\nConnection: close\r\n\r\n"
    );
    let mut tcp = TcpStream::connect(address).await.ok()?;
    tcp.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return None;
    }
    serde_json::from_str::<Discovered>(body).ok().map(|discovered| discovered.server_url)
}
