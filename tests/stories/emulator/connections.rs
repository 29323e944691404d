//! Connections as grpc-go keeps them: one channel for each URL and token, which has a connection to each address and uses those
//! that are up in turn.
//!
//! A call that finds none up fails at once, unless one is being made. A connection that ends is made again at once, one that cannot
//! be made after a pause that grows. A call that the server has certainly not seen is made once more; any other that loses its
//! connection has failed as `Unavailable`.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioIo, TokioTimer};
use job_router::clock::jitter;
use job_router::proto::gitlab::job_router_client::JobRouterClient;
use job_router::proto::gitlab::{GetJobRequest, GetJobResponse};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::codegen::http::{self, Uri};
use tonic::{Code, Request, Response, Status};

/// HTTP/2 pings, also of a connection without calls, and how long one may stay unanswered.
const PING_EVERY: Duration = Duration::from_secs(55);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest answer.
const ANSWER_MAX_BYTES: usize = 4 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// The first pause before a connection is tried again, and the longest.
const BACK_OFF_MIN: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(120);

/// All connections of a process.
pub(super) struct Connections {
    /// What the names in URLs stand for.
    names: BTreeMap<String, Vec<SocketAddr>>,
    channels: Mutex<HashMap<(String, String), Arc<Channel>>>,
    tasks: Tasks,
}

/// Spawns what ends with its process.
#[derive(Clone)]
struct Tasks(CancellationToken);

struct Channel {
    origin: Uri,
    links: watch::Sender<Vec<Link>>,
    turn: AtomicUsize,
}

/// The connection to one address.
#[derive(Clone)]
enum Link {
    Connecting,
    Up(SendRequest<Body>),
    /// It could not be made, and is tried again now and then.
    Failed,
}

/// One connection, as tonic wants it.
struct Transport(SendRequest<Body>);

// === impl Connections ===

impl Connections {
    /// `killed`: the process is gone, and its sockets with it.
    pub(super) fn new(names: BTreeMap<String, Vec<SocketAddr>>, killed: CancellationToken) -> Self {
        Self { names, channels: Mutex::default(), tasks: Tasks(killed) }
    }

    /// Makes a call; the code is the one that grpc-go would give.
    pub(super) async fn get_job(
        &self,
        url: &str,
        token: &str,
        request: impl Fn() -> Request<GetJobRequest>,
    ) -> Result<Response<GetJobResponse>, Code> {
        let channel = self.channel(url, token);
        let mut again = true;
        loop {
            let transport = Transport(channel.pick().await.ok_or(Code::Unavailable)?);
            let mut client = JobRouterClient::with_origin(transport, channel.origin.clone())
                .max_decoding_message_size(ANSWER_MAX_BYTES);
            match client.get_job(request()).await {
                Ok(answer) => return Ok(answer),
                Err(status) if is_unseen(&status) && std::mem::take(&mut again) => {}
                Err(status) => return Err(code(&status)),
            }
        }
    }

    fn channel(&self, url: &str, token: &str) -> Arc<Channel> {
        let mut channels = self.channels.lock().expect("nobody panics with it");
        let new = || {
            let name = url.strip_prefix("grpc://").unwrap_or_else(|| panic!("the emulator does not speak {url}"));
            let addresses = self.names.get(name).unwrap_or_else(|| panic!("nobody knows {name}"));
            let channel = Arc::new(Channel {
                origin: format!("http://{name}").parse().expect("a URI"),
                links: watch::Sender::new(vec![Link::Connecting; addresses.len()]),
                turn: AtomicUsize::new(0),
            });
            for (number, address) in addresses.iter().enumerate() {
                self.tasks.spawn(keep(channel.clone(), number, *address, self.tasks.clone()));
            }
            channel
        };
        channels.entry((url.to_owned(), token.to_owned())).or_insert_with(new).clone()
    }
}

/// Keeps the connection to one address.
async fn keep(channel: Arc<Channel>, number: usize, address: SocketAddr, tasks: Tasks) {
    let mut pause = BACK_OFF_MIN;
    loop {
        let is = |link| channel.links.send_modify(|links| links[number] = link);
        match timeout(CONNECT_TIMEOUT, connect(address, &tasks)).await {
            Ok(Ok((requests, connection))) => {
                is(Link::Up(requests));
                pause = BACK_OFF_MIN;
                let _ = connection.await; // however it ended
                is(Link::Connecting);
            }
            Ok(Err(_)) | Err(_) => {
                is(Link::Failed);
                sleep(jitter(pause, 0.2)).await;
                pause = pause.mul_f64(1.6).min(BACK_OFF_MAX);
            }
        }
    }
}

/// A connection, and what ends when no more requests go on it.
async fn connect(
    address: SocketAddr,
    tasks: &Tasks,
) -> Result<(SendRequest<Body>, impl Future<Output = hyper::Result<()>>), Box<dyn Error + Send + Sync>> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let made = hyper::client::conn::http2::Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(tcp))
        .await?;
    Ok(made)
}

/// Whether the server has certainly not acted on the call.
fn is_unseen(status: &Status) -> bool {
    causes(status).any(|cause| {
        let unsent = cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled);
        let unread = cause.downcast_ref::<h2::Error>().is_some_and(|error| {
            error.is_go_away() && error.is_remote() || error.reason() == Some(h2::Reason::REFUSED_STREAM)
        });
        unsent || unread
    })
}

/// What a call failed with: what the server said, or what its stream's end means; without its connection it is `Unavailable`.
fn code(status: &Status) -> Code {
    let is_reset = |cause: &(dyn Error + 'static)| cause.downcast_ref::<h2::Error>().is_some_and(h2::Error::is_reset);
    let lost = status.source().is_some() && !causes(status).any(is_reset);
    if lost { Code::Unavailable } else { status.code() }
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |cause: &&(dyn Error + 'static)| (**cause).source())
}

// === impl Tasks ===

impl Tasks {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.0.clone().run_until_cancelled_owned(task));
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        self.spawn(async move {
            task.await;
        });
    }
}

// === impl Channel ===

impl Channel {
    /// The next connection that is up; waits for one that is being made; none: all have failed.
    async fn pick(&self) -> Option<SendRequest<Body>> {
        let mut links = self.links.subscribe();
        loop {
            {
                let links = links.borrow_and_update();
                let up = |link: &Link| match link {
                    Link::Up(requests) if !requests.is_closed() => Some(requests.clone()),
                    _ => None,
                };
                let up: Vec<_> = links.iter().filter_map(up).collect();
                if !up.is_empty() {
                    let turn = self.turn.fetch_add(1, Ordering::Relaxed) % up.len();
                    return up.into_iter().nth(turn);
                }
                if links.iter().all(|link| matches!(link, Link::Failed)) {
                    return None;
                }
            }
            links.changed().await.ok()?;
        }
    }
}

// === impl Transport ===

impl tower::Service<http::Request<Body>> for Transport {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    /// Always: the call itself says best that the connection has gone.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
