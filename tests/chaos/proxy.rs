//! A TCP proxy that can do to connections what networks do.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// What happens to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Clear,
    /// None goes on until this is over.
    Stalled,
    /// Each piece is late by so much.
    Slow(Duration),
    /// All are swallowed, and nobody is told.
    HalfOpen,
    /// What the client asks arrives, and no answer comes back.
    RepliesLost,
}

/// Forwards connections to backends, in turn.
pub struct Proxy {
    pub address: String,
    backends: Arc<Mutex<Vec<String>>>,
    weather: watch::Sender<Weather>,
    links: Arc<Mutex<Vec<AbortHandle>>>,
    accepting: AbortHandle,
}

impl Proxy {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let weather = watch::Sender::new(Weather::Clear);
        let (backends, links) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<Vec<AbortHandle>>>::default());
        let accept = accept(listener, backends.clone(), weather.clone(), links.clone());
        let accepting = tokio::spawn(accept).abort_handle();
        Self { address, backends, weather, links, accepting }
    }

    /// New connections go to these.
    pub fn point_to(&self, addresses: Vec<String>) {
        *self.backends.lock().expect("no panic") = addresses;
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        self.links.lock().expect("no panic").drain(..).for_each(|link| link.abort());
    }

    /// Lets it be so for a while. Connections that bytes are missing of end then.
    pub async fn endure(&self, weather: Weather, for_so_long: Duration) {
        self.weather.send_replace(weather);
        tokio::time::sleep(for_so_long).await;
        if matches!(weather, Weather::HalfOpen | Weather::RepliesLost) {
            self.cut();
        }
        self.weather.send_replace(Weather::Clear);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(
    listener: TcpListener,
    backends: Arc<Mutex<Vec<String>>>,
    weather: watch::Sender<Weather>,
    links: Arc<Mutex<Vec<AbortHandle>>>,
) {
    for turn in 0.. {
        let Ok((near, _)) = listener.accept().await else { return };
        let backend = {
            let backends = backends.lock().expect("no panic");
            if backends.is_empty() { continue } else { backends[turn % backends.len()].clone() }
        };
        let link = tokio::spawn(link(near, backend, weather.subscribe()));
        links.lock().expect("no panic").push(link.abort_handle());
    }
}

async fn link(near: TcpStream, backend: String, weather: watch::Receiver<Weather>) {
    let Ok(far) = TcpStream::connect(backend).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    // Both end with this task, also when it is aborted.
    let mut ways = JoinSet::new();
    ways.spawn(pump(near_in, far_out, weather.clone(), false));
    ways.spawn(pump(far_in, near_out, weather, true));
    ways.join_next().await;
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut weather: watch::Receiver<Weather>, replies: bool) {
    let mut bytes = vec![0; 64 * 1024];
    let mut has_gap = false;
    while let Ok(count) = from.read(&mut bytes).await
        && count > 0
    {
        let now = *weather.borrow_and_update();
        match now {
            Weather::Clear => {}
            Weather::Stalled => drop(weather.wait_for(|weather| *weather != Weather::Stalled).await),
            Weather::Slow(late) => tokio::time::sleep(late).await,
            Weather::HalfOpen => has_gap = true,
            Weather::RepliesLost => has_gap |= replies,
        }
        // Whatever the weather becomes before the connection is cut: TCP hands on no byte after one that is missing.
        if has_gap {
            continue;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
