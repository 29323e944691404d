//! Connections for calls that are answered once replicas have what they wrote.
//!
//! `WAIT` counts only for what its own connection wrote, and a client that connects again by itself does not tell in time that it
//! has. So each script has a connection here that is never made again behind our back: when it ends, its calls fail, and the
//! caller's next try goes over a new one. That try may find everything written and write nothing; newer servers let a
//! `WAIT` pass whose connection wrote nothing. So each has a write of its own before it: [`BARRIER`](super::scripts::BARRIER).
//!
//! After a failure the connection goes, unless the server says that it is full or busy: it may have stopped being the primary, which
//! shows in nothing but replicas that do not follow it.

use std::collections::HashMap;
use std::sync::Arc;

use fred::clients::{Client, WithOptions};
use tokio::sync::Mutex;

use super::link::{Link, Reconnect};
use super::{RedisError, RedisSettings};

/// One connection for each script, made when it is first needed.
#[derive(Default)]
pub(super) struct Durable {
    /// Locked while one is made: calls of a script wait for its connection, and keep their order.
    connections: Mutex<HashMap<&'static str, Arc<Connection>>>,
}

pub(super) struct Connection {
    pub(super) calls: WithOptions<Client>,
    /// Closed when dropped.
    _link: Link,
}

// === impl Durable ===

impl Durable {
    /// The connection of a script, and whether it is new.
    pub(super) async fn connection(
        &self,
        script: &'static str,
        settings: &RedisSettings,
    ) -> Result<(Arc<Connection>, bool), RedisError> {
        let mut connections = self.connections.lock().await;
        if let Some(connection) = connections.get(script) {
            return Ok((connection.clone(), false));
        }
        let link = Link::connect(settings, Reconnect::Never).await?;
        let connection = Arc::new(Connection { calls: link.limited_to(settings.command_timeout), _link: link });
        connections.insert(script, connection.clone());
        Ok((connection, true))
    }

    /// The next call of the script gets a new connection, unless it has one already.
    pub(super) async fn forget(&self, script: &'static str, connection: &Arc<Connection>) {
        let mut connections = self.connections.lock().await;
        if connections.get(script).is_some_and(|active| Arc::ptr_eq(active, connection)) {
            connections.remove(script);
        }
    }

    pub(super) async fn close(&self) {
        self.connections.lock().await.clear();
    }
}
