//! The gRPC server: who may try to open a session, and how many there may be.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};
use tower::util::MapResponseLayer;

use super::calls::Calls;
use super::connection::{Caps, Peer, accept};
use super::get_job;
use super::log_in::{Failures, LogIn};
use super::session::{Caller, Doors, messages};
use super::tls::Tls;
use crate::proto::gitlab::job_router_server::JobRouterServer;
use crate::proto::runner_service_server::{RunnerService, RunnerServiceServer};
use crate::proto::{RouterMessage, RunnerMessage};
use crate::telemetry::labels::Limit;
use crate::telemetry::metrics;

/// The longest token, in bytes. Real ones have about 30.
const TOKEN_MAX_BYTES: usize = 512;
/// A connection's streams beyond its cap are refused by us, by name; HTTP/2 alone would let them hang.
const STREAM_HEADROOM: u32 = 64;

/// How often to look for managers that call no more.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long connections may take to end after the server was told to stop: a runner that does not read never ends its own.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// What callers may use up. The configuration keys of the same names say more.
#[derive(Debug, Clone)]
pub struct Limits {
    /// TCP connections at a time.
    pub max_connections: usize,
    /// Those of them from one address.
    pub max_connections_per_address: usize,
    /// Streams of one connection.
    pub max_streams_per_connection: usize,
    /// Streams in all.
    pub max_sessions: usize,
    /// Those of them with one token.
    pub max_sessions_per_token: usize,
    /// Slots of one session.
    pub max_slots_per_session: u32,
    /// Bytes of one message from a runner.
    pub message_max_bytes: usize,
    /// How long a stream may take to its Hello.
    pub hello_timeout: Duration,
    /// How long a `GetJob` call is held.
    pub hold: Duration,
    /// HTTP/2 pings to a silent connection.
    pub keepalive_interval: Duration,
    /// How long a ping may stay unanswered.
    pub keepalive_timeout: Duration,
    /// Failed log-ins from one address, or with one token, in a minute before more are refused unheard.
    pub auth_failures_per_minute: NonZeroU32,
}

/// Serves runners on `listener`, with TLS if there are certificates, until `shutdown`; sessions must have been closed by then, or are
/// cut.
pub async fn serve(
    listener: TcpListener,
    mut tls: Option<Tls>,
    limits: Limits,
    doors: Doors,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let caps = Caps { connections: limits.max_connections, per_address: limits.max_connections_per_address };
    // A connection may try a few tokens, each within `hello_timeout`, before it must have a session.
    let incoming = accept(listener, caps, 2 * limits.hello_timeout, tls.as_ref().map(Tls::current));
    let max_streams = limits.max_streams_per_connection as u32 + STREAM_HEADROOM;
    let message_max_bytes = limits.message_max_bytes;
    let mut server = Server::builder()
        .layer(MapResponseLayer::new(count_too_large))
        .http2_keepalive_interval(Some(limits.keepalive_interval))
        .http2_keepalive_timeout(Some(limits.keepalive_timeout))
        .max_concurrent_streams(max_streams);
    let failures = Arc::new(Failures::new(limits.auth_failures_per_minute));
    let calls = Calls::new(doors.clone());
    let door = Arc::new(Door { limits, doors, calls, sessions: Arc::default(), failures });
    let native = RunnerServiceServer::from_arc(door.clone())
        .max_decoding_message_size(message_max_bytes)
        .max_encoding_message_size(usize::MAX);
    let gitlab = JobRouterServer::from_arc(door.clone())
        .max_decoding_message_size(get_job::REQUEST_MAX_BYTES)
        .max_encoding_message_size(usize::MAX);
    let look = async {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            ticks.tick().await;
            door.calls.look();
        }
    };
    let certificates = async {
        if let Some(tls) = &mut tls {
            tls.follow(&shutdown).await;
        }
        std::future::pending::<()>().await;
    };
    let cut = async {
        shutdown.cancelled().await;
        tokio::time::sleep(CLOSE_MAX).await;
    };
    let server = server.add_service(native).add_service(gitlab);
    tokio::select! {
        served = server.serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned()) => served,
        () = cut => Ok(()),
        () = look => unreachable!("it goes on"),
        () = certificates => unreachable!("they are followed to the end"),
    }
}

/// The services of `runner.proto`, here, and of `gitlab/job_router.proto`, in `get_job`.
pub(super) struct Door {
    pub(super) limits: Limits,
    doors: Doors,
    pub(super) calls: Calls,
    sessions: Arc<Mutex<Sessions>>,
    pub(super) failures: Arc<Failures>,
}

/// How many sessions there are, admitted or not.
#[derive(Default)]
struct Sessions {
    all: usize,
    by_token: HashMap<String, usize>,
}

/// A place among them, free again when dropped.
pub(super) struct Place {
    sessions: Arc<Mutex<Sessions>>,
    token_sha256: String,
}

type Messages = Pin<Box<dyn Stream<Item = Result<RouterMessage, Status>> + Send>>;

// === impl Door ===

impl Door {
    /// A place for one more session with this token.
    pub(super) fn place(&self, token_sha256: &str) -> Result<Place, Status> {
        let refuse = |limit: Limit, max: usize, whose: &str| {
            metrics().refused_total.of(limit).increment(1);
            Err(Status::resource_exhausted(format!("{whose} has {max} sessions at this pod, all it may; retry")))
        };
        let mut sessions = self.sessions.lock().expect("nobody panics with it");
        let with_it = sessions.by_token.get(token_sha256).copied().unwrap_or_default();
        let Limits { max_sessions, max_sessions_per_token, .. } = self.limits;
        if sessions.all >= max_sessions {
            return refuse(Limit::Sessions, max_sessions, "everybody");
        } else if with_it >= max_sessions_per_token {
            return refuse(Limit::SessionsPerToken, max_sessions_per_token, "this token");
        }
        sessions.all += 1;
        sessions.by_token.insert(token_sha256.to_owned(), with_it + 1);
        Ok(Place { sessions: self.sessions.clone(), token_sha256: token_sha256.to_owned() })
    }
}

#[tonic::async_trait]
impl RunnerService for Door {
    type SessionStream = Messages;

    async fn session(&self, request: Request<Streaming<RunnerMessage>>) -> Result<Response<Messages>, Status> {
        let peer = request.extensions().get::<Peer>().expect("every connection has its peer").clone();
        let address = peer.address();
        let token = token_sha256(request.metadata());
        self.failures.check(address, token.as_deref().ok())?;
        let max_streams = self.limits.max_streams_per_connection;
        let slot = peer.open_stream(max_streams).ok_or_else(|| {
            Status::resource_exhausted(format!("the connection has {max_streams} streams, all it may"))
        })?;
        let token_sha256 = match token {
            Ok(token) => token,
            Err(status) => {
                self.failures.count(address);
                return Err(status);
            }
        };
        let place = self.place(&token_sha256)?;
        let caller = Caller {
            log_in: LogIn::new(&self.failures, address, &token_sha256),
            token_sha256,
            inbound: request.into_inner(),
            doors: self.doors.clone(),
            hello_timeout: self.limits.hello_timeout,
            slots_max: self.limits.max_slots_per_session,
            slot,
        };
        let messages = messages(caller).inspect(move |_| {
            let _place = &place; // held as long as the stream
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        let mut sessions = self.sessions.lock().expect("nobody panics with it");
        sessions.all -= 1;
        if let Some(with_it) = sessions.by_token.get_mut(&self.token_sha256) {
            *with_it -= 1;
            if *with_it == 0 {
                sessions.by_token.remove(&self.token_sha256);
            }
        }
    }
}

/// A message that is too large is refused before any of our own code sees its call.
fn count_too_large<B>(response: http::Response<B>) -> http::Response<B> {
    if Status::from_header_map(response.headers()).is_some_and(|status| status.code() == Code::OutOfRange) {
        metrics().refused_total.of(Limit::MessageBytes).increment(1);
    }
    response
}

/// The hash of the call's token. The token itself goes no further than this function.
pub(super) fn token_sha256(metadata: &MetadataMap) -> Result<String, Status> {
    let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
    let token = header.and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
    match token {
        Some(token) if (1..=TOKEN_MAX_BYTES).contains(&token.len()) => Ok(hex::encode(Sha256::digest(token))),
        _ => Err(Status::unauthenticated("metadata `authorization` must be `Bearer <runner token>`")),
    }
}
