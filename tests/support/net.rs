//! A load balancer for runners, whose connections can be cut.

use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// Spreads connections over pods, in turn.
pub struct Balancer {
    pub url: String,
    backends: Arc<Mutex<Vec<String>>>,
    links: Arc<Mutex<Vec<AbortHandle>>>,
    accepting: AbortHandle,
}

impl Balancer {
    pub async fn new(urls: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (backends, links) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<Vec<AbortHandle>>>::default());
        let accepting = tokio::spawn(accept(listener, backends.clone(), links.clone())).abort_handle();
        let balancer = Self { url, backends, links, accepting };
        balancer.point_to(urls);
        balancer
    }

    /// New connections go to these pods.
    pub fn point_to(&self, urls: &[&str]) {
        let addresses = urls.iter().map(|url| url.trim_start_matches("http://").to_owned());
        *self.backends.lock().expect("no panic") = addresses.collect();
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        self.links.lock().expect("no panic").drain(..).for_each(|link| link.abort());
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, backends: Arc<Mutex<Vec<String>>>, links: Arc<Mutex<Vec<AbortHandle>>>) {
    for turn in 0.. {
        let Ok((mut near, _)) = listener.accept().await else { return };
        let backend = {
            let backends = backends.lock().expect("no panic");
            if backends.is_empty() { continue } else { backends[turn % backends.len()].clone() }
        };
        let link = tokio::spawn(async move {
            if let Ok(mut far) = TcpStream::connect(backend).await {
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
        links.lock().expect("no panic").push(link.abort_handle());
    }
}
