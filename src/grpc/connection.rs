//! TCP connections with caps and a deadline: a caller that connects and says nothing is cut, and none holds more
//! streams than it may.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;
use tracing::debug;

/// How long to wait before accepting again after the system refused, out of descriptors perhaps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is known of a connection, for all its streams.
#[derive(Debug, Clone)]
pub(super) struct Peer(Arc<PeerState>);

#[derive(Debug)]
struct PeerState {
    address: IpAddr,
    streams: AtomicUsize,
    admitted: AtomicBool,
}

/// One stream's place among those of its connection, free again when dropped.
#[derive(Debug)]
pub(super) struct StreamSlot(Peer);

/// A connection that is cut when nobody was admitted on it in time.
pub(super) struct Connection {
    tcp: TcpStream,
    peer: Peer,
    deadline: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

/// Accepts connections, at most `max` at a time; each must have a session within `greet_timeout`.
pub(super) fn accept(
    listener: TcpListener,
    max: usize,
    greet_timeout: Duration,
) -> impl Stream<Item = Result<Connection, io::Error>> {
    let places = Arc::new(Semaphore::new(max));
    futures::stream::unfold((listener, places), move |(listener, places)| async move {
        let permit = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let tcp = loop {
            match listener.accept().await {
                Ok((tcp, address)) => break (tcp, address.ip()),
                Err(error) => {
                    debug!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        let (tcp, address) = tcp;
        let _ = tcp.set_nodelay(true); // a socket that refuses is slow, not broken
        let state = PeerState { address, streams: AtomicUsize::new(0), admitted: AtomicBool::new(false) };
        let deadline = Some(Box::pin(tokio::time::sleep_until(Instant::now() + greet_timeout)));
        let connection = Connection { tcp, peer: Peer(Arc::new(state)), deadline, _permit: permit };
        Some((Ok(connection), (listener, places)))
    })
}

// === impl Peer ===

impl Peer {
    pub(super) fn address(&self) -> IpAddr {
        self.0.address
    }

    /// A place for one more stream, unless the connection has `max` already.
    pub(super) fn open_stream(&self, max: usize) -> Option<StreamSlot> {
        let slot = StreamSlot(self.clone());
        // The slot counts itself out when it is dropped, also if it was one too many.
        (self.0.streams.fetch_add(1, Ordering::Relaxed) < max).then_some(slot)
    }
}

// === impl StreamSlot ===

impl StreamSlot {
    /// Somebody was let in: the connection may stay.
    pub(super) fn admitted(&self) {
        self.0.0.admitted.store(true, Ordering::Relaxed);
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.0.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Connection ===

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(deadline) = &mut this.deadline {
            if this.peer.0.admitted.load(Ordering::Relaxed) {
                this.deadline = None;
            } else if deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}
