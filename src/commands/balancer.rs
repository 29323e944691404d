//! A load balancer between runners and pods, for benchmarks: connections go to the pods in turn.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Spreads connections over pods. They end with it.
pub(super) struct Balancer {
    /// Where runners connect.
    pub(super) url: String,
    backends: Backends,
    // Aborted when dropped, and with it all connections.
    _accepting: JoinSet<()>,
}

/// `host:port` of each pod.
type Backends = Arc<Mutex<Vec<String>>>;

// === impl Balancer ===

impl Balancer {
    /// One without pods.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port for a load balancer")?;
        let url = format!("http://{}", listener.local_addr()?);
        let backends = Backends::default();
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, backends.clone()));
        Ok(Self { url, backends, _accepting: accepting })
    }

    /// New connections go to the pods at these URLs.
    pub(super) fn point_to<'a>(&self, urls: impl IntoIterator<Item = &'a str>) {
        let addresses = urls.into_iter().map(|url| url.trim_start_matches("http://").to_owned()).collect();
        *self.backends.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }
}

async fn accept(listener: TcpListener, backends: Backends) {
    let mut links = JoinSet::new();
    for turn in 0.. {
        // An error is one connection's, or passes when others end.
        let Ok((near, _)) = listener.accept().await else { continue };
        while links.try_join_next().is_some() {}
        let backend = {
            let backends = backends.lock().unwrap_or_else(PoisonError::into_inner);
            (!backends.is_empty()).then(|| backends[turn % backends.len()].clone())
        };
        if let Some(backend) = backend {
            links.spawn(link(near, backend));
        }
    }
}

/// Carries one connection until either side ends it; a pod that cannot be reached ends it at once.
async fn link(mut near: TcpStream, backend: String) {
    if let Ok(mut far) = TcpStream::connect(backend).await {
        let _ = (near.set_nodelay(true), far.set_nodelay(true)); // slow without it, not broken
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    }
}
