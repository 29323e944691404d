//! TCP connections, with TLS or without, with caps and a deadline: a caller that connects and says nothing is cut, and none holds more
//! streams than it may.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};
use tokio_rustls::{Accept, TlsAcceptor};
use tonic::transport::server::Connected;
use tracing::debug;

use super::tls;
use crate::telemetry::labels::{Label, Limit};
use crate::telemetry::metrics;

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
    transport: Transport,
    peer: Peer,
    deadline: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

/// What bytes go through. TLS is agreed on by who reads or writes first, so a slow peer holds up nobody else.
enum Transport {
    Handshake(Box<Accept<TcpStream>>),
    Ready(Box<dyn Io>),
    Failed,
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// How many connections there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caps {
    pub(super) connections: usize,
    pub(super) per_address: usize,
}

/// Those there are.
struct Open {
    caps: Caps,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place among them, free again when dropped.
struct Place {
    open: Arc<Open>,
    address: IpAddr,
}

/// Accepts connections within `caps`; each must have a session within `greet_timeout`. One too many is closed at once.
pub(super) fn accept(
    listener: TcpListener,
    caps: Caps,
    greet_timeout: Duration,
    tls: Option<tls::Current>,
) -> impl Stream<Item = Result<Connection, io::Error>> {
    let open = Arc::new(Open { caps, counts: Mutex::default() });
    futures::stream::unfold((listener, open, tls), move |(listener, open, tls)| async move {
        let (tcp, place) = loop {
            match listener.accept().await {
                Ok((tcp, address)) => match open.place(address.ip()) {
                    Ok(place) => break (tcp, place),
                    Err(limit) => {
                        metrics().refused_total.of(limit).increment(1);
                        debug!(address = %address.ip(), limit = limit.as_str(), "connection refused");
                    }
                },
                Err(error) => {
                    debug!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        let _ = tcp.set_nodelay(true); // a socket that refuses is slow, not broken
        let state =
            PeerState { address: place.address, streams: AtomicUsize::new(0), admitted: AtomicBool::new(false) };
        let deadline = Some(Box::pin(tokio::time::sleep_until(Instant::now() + greet_timeout)));
        let transport = match &tls {
            Some(current) => {
                let acceptor = TlsAcceptor::from(current.borrow().clone());
                Transport::Handshake(Box::new(acceptor.accept(tcp)))
            }
            None => Transport::Ready(Box::new(tcp)),
        };
        let connection = Connection { transport, peer: Peer(Arc::new(state)), deadline, _place: place };
        Some((Ok(connection), (listener, open, tls)))
    })
}

// === impl Open ===

impl Open {
    /// A place for a connection from this address, or what there are too many of.
    fn place(self: &Arc<Self>, address: IpAddr) -> Result<Place, Limit> {
        let mut counts = self.lock();
        if counts.all >= self.caps.connections {
            return Err(Limit::Connections);
        }
        if counts.by_address.get(&address).is_some_and(|from_there| *from_there >= self.caps.per_address) {
            return Err(Limit::ConnectionsPerAddress);
        }
        counts.all += 1;
        *counts.by_address.entry(address).or_default() += 1;
        Ok(Place { open: self.clone(), address })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().expect("nobody panics with it")
    }
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.open.lock();
        counts.all -= 1;
        if let Entry::Occupied(mut from_there) = counts.by_address.entry(self.address) {
            *from_there.get_mut() -= 1;
            if *from_there.get() == 0 {
                from_there.remove();
            }
        }
    }
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
        if self.0.streams.fetch_add(1, Ordering::Relaxed) < max {
            return Some(slot);
        }
        metrics().refused_total.of(Limit::StreamsPerConnection).increment(1);
        None
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

impl Connection {
    /// Bytes can go through. Whatever the server waits for, it comes by here, and so is woken when the time is over: it writes before
    /// it reads, and waits with both for TLS.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Pin<&mut dyn Io>>> {
        if let Some(deadline) = &mut self.deadline {
            if self.peer.0.admitted.load(Ordering::Relaxed) {
                self.deadline = None;
            } else if deadline.as_mut().poll(cx).is_ready() {
                self.deadline = None;
                self.transport = Transport::Failed;
                metrics().refused_total.of(Limit::HelloTimeout).increment(1);
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        self.transport.poll_ready(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_ready(cx))?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_ready(cx))?.poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_ready(cx))?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Ready(io) => Pin::new(io).poll_shutdown(cx),
            _ => Poll::Ready(Ok(())), // nothing was said that could be said to the end
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_ready(cx))?.poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        matches!(&self.transport, Transport::Ready(io) if io.is_write_vectored())
    }
}

// === impl Transport ===

impl Transport {
    /// Bytes can go through, once TLS is agreed on.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Pin<&mut dyn Io>>> {
        if let Self::Handshake(handshake) = self {
            match ready!(Pin::new(handshake).poll(cx)) {
                Ok(agreed) => *self = Self::Ready(Box::new(agreed)),
                Err(error) => {
                    *self = Self::Failed;
                    metrics().tls_handshakes_failed_total.increment(1);
                    debug!(%error, "TLS was not agreed on");
                    return Poll::Ready(Err(error));
                }
            }
        }
        match self {
            Self::Ready(io) => Poll::Ready(Ok(Pin::new(io.as_mut()))),
            _ => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}
