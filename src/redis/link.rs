//! One client of the library: settings in, a running client out, its connections closed when dropped.
//!
//! What the library does by default and must not do here is set in [`client`] and [`connection_config`].

use std::time::Duration;

use fred::clients::{Client, WithOptions};
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::config::{Config, Options, PerformanceConfig, ReconnectPolicy};
use fred::types::{ClusterHash, ConnectHandle, CustomCommand, RespVersion, Value};
use tokio::sync::watch;

use super::settings::{config, connection_config};
use super::{Arg, RedisError, RedisSettings, Reply};

/// Room for the reconnect events of a large cluster: the library's listener ends for ever if it falls behind.
const EVENTS_MAX: usize = 256;
/// The first pause before a reconnect, doubled each time.
const RECONNECT_MIN_MS: u32 = 50;
/// The longest pause before a reconnect: how long Redis may be back before a pod knows.
const RECONNECT_MAX_MS: u32 = 1_000;
/// The random part of a pause. The library adds none to the longest one; by then pods are out of step.
const RECONNECT_JITTER_MS: u32 = 100;
/// An attempt to connect is a connect, a log-in and a look at the server: three waits, and some for cluster slots.
const CONNECT_WAITS: u32 = 4;

/// What a link does when its connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reconnect {
    /// Connects again, for ever. For commands.
    Always,
    /// Ends; its owner makes a new one. For blocking reads.
    Never,
}

/// A client of the library and the task that drives it.
pub(super) struct Link {
    client: Client,
    driver: ConnectHandle,
}

// === impl Link ===

impl Link {
    /// Connects. Fails in bounded time, with [`RedisError::Settings`] or [`RedisError::Unavailable`].
    pub(super) async fn connect(settings: &RedisSettings, reconnect: Reconnect) -> Result<Self, RedisError> {
        Self::connect_as(settings, reconnect, RespVersion::RESP2, None).await
    }

    /// Connects as [`connect`](Self::connect) does, counts every connection made from now on, and has counted
    /// the first when it returns.
    pub(super) async fn connect_counted(
        settings: &RedisSettings,
        connections: &watch::Sender<u64>,
    ) -> Result<Self, RedisError> {
        let mut counted = connections.subscribe();
        let link = Self::connect_as(settings, Reconnect::Always, RespVersion::RESP2, Some(connections)).await?;
        counted.wait_for(|count| *count > 0).await.map_err(|_| RedisError::Unavailable("closed".to_owned()))?;
        Ok(link)
    }

    /// Begins to connect, for as long as it takes, and counts every connection made.
    pub(super) fn connect_in_background(
        settings: &RedisSettings,
        connections: &watch::Sender<u64>,
    ) -> Result<Self, RedisError> {
        let client = client(settings, Reconnect::Always, RespVersion::RESP2, false)?;
        count_connections(&client, connections);
        let driver = client.connect();
        Ok(Self { client, driver })
    }

    async fn connect_as(
        settings: &RedisSettings,
        reconnect: Reconnect,
        version: RespVersion,
        connections: Option<&watch::Sender<u64>>,
    ) -> Result<Self, RedisError> {
        let client = client(settings, reconnect, version, true)?;
        if let Some(connections) = connections {
            count_connections(&client, connections);
        }
        // Listen first, connect second: the news of a connection is told once, to those who listen.
        let listener = client.clone();
        let mut connected = Box::pin(listener.wait_for_connect());
        let first_look = futures::poll!(&mut connected);
        debug_assert!(first_look.is_pending(), "a new client is not connected");
        let driver = client.connect();
        let link = Self { client, driver };

        let server = link.server();
        match tokio::time::timeout(settings.command_timeout * CONNECT_WAITS, connected).await {
            Ok(Ok(())) => Ok(link),
            Ok(Err(error)) => Err(RedisError::Unavailable(format!("cannot connect to {server}: {}", error.details()))),
            Err(_) => Err(RedisError::Unavailable(format!("cannot connect to {server}: it does not answer"))),
        }
    }

    /// The client, every call of it limited to `limit`. A call that times out before it is written is not
    /// written any more; the library sees to that for its own timeout, not for one put around it.
    pub(super) fn limited_to(&self, limit: Duration) -> WithOptions<Client> {
        self.client.with_options(&Options { timeout: Some(limit), ..Options::default() })
    }

    /// One command that may block the connection. The caller limits it, and drops this link if the limit ends it.
    pub(super) async fn block_on(&self, name: &'static str, key: &str, args: Vec<Arg>) -> Result<Reply, RedisError> {
        send(&self.client, name, command(name, key.as_bytes(), true), values(args)).await
    }

    /// Whether it is connected, as far as the library knows: a hung server is not noticed here.
    pub(super) fn is_up(&self) -> bool {
        self.client.is_connected()
    }

    /// Lets calls in flight finish and closes, within `limit`.
    pub(super) fn quit(&self, limit: Duration) -> impl Future<Output = ()> + use<> {
        let client = self.client.clone();
        async move {
            // Both failures mean that it is closed by other means: by the server, or when this is dropped.
            let _ = tokio::time::timeout(limit, client.quit()).await;
        }
    }

    fn server(&self) -> String {
        let servers = self.client.client_config().server.hosts();
        servers
            .iter()
            .map(|s| if s.port == 0 { s.host.to_string() } else { s.to_string() })
            .collect::<Vec<_>>()
            .join(", ")
    }
}

impl Drop for Link {
    /// The task owns the sockets; with it they close, also when it is stuck in a write to a hung server. Calls
    /// in flight end with [`RedisError::Lost`].
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Sends one command through the library. It is written when this is first polled.
pub(super) async fn send<C: ClientLike>(
    client: &C,
    call: &'static str,
    command: CustomCommand,
    args: Vec<Value>,
) -> Result<Reply, RedisError> {
    let frame = client.custom_raw(command, args).await.map_err(|error| RedisError::from_library(call, &error))?;
    Reply::of(call, frame)
}

/// A command for the node that owns `key`. The slot must be given: for its `custom` commands the library
/// ignores every other rule, and would take the name of an FCALL's function for the key.
pub(super) fn command(name: &'static str, key: &[u8], blocking: bool) -> CustomCommand {
    CustomCommand::new_static(name, ClusterHash::from(key), blocking)
}

/// The arguments as the library has them; the same memory.
pub(super) fn values(args: Vec<Arg>) -> Vec<Value> {
    args.into_iter().map(|arg| arg.0).collect()
}

/// Counts the connections a client makes, for as long as it lives.
fn count_connections(client: &Client, connections: &watch::Sender<u64>) {
    let connections = connections.clone();
    client.on_reconnect(move |_| {
        connections.send_modify(|count| *count += 1);
        std::future::ready(Ok(()))
    });
}

/// `fail_fast`: whether the first attempt to connect is the only one.
fn client(
    settings: &RedisSettings,
    reconnect: Reconnect,
    version: RespVersion,
    fail_fast: bool,
) -> Result<Client, RedisError> {
    let mut policy = ReconnectPolicy::new_exponential(0, RECONNECT_MIN_MS, RECONNECT_MAX_MS, 2);
    policy.set_jitter(RECONNECT_JITTER_MS);
    Ok(Client::new(
        Config { version, fail_fast, ..config(settings)? },
        // No default timeout: it would cut blocking reads short and strand what they claimed.
        Some(PerformanceConfig { broadcast_channel_capacity: EVENTS_MAX, ..PerformanceConfig::default() }),
        Some(connection_config(settings)),
        (reconnect == Reconnect::Always).then_some(policy),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::{PrivateRedis, PrivateRedisOptions};

    async fn replies(url: &str, version: RespVersion) -> Vec<Result<Reply, String>> {
        let settings = RedisSettings::new(url);
        let link = Link::connect_as(&settings, Reconnect::Never, version.clone(), None).await.unwrap();
        let mut replies = Vec::new();
        for line in [
            "FLUSHALL",
            "HSET h f 1.50",
            "HGETALL h",
            "HGET h none",
            "SADD s one",
            "SMEMBERS s",
            "SISMEMBER s one",
            "INCRBYFLOAT n 2.25",
            "XADD x 1-1 f v",
            "XADD x 1-2 f v",
            "XRANGE x - +",
            "XREAD STREAMS x 9-9",
            "XGROUP CREATE x g 0",
            "XREADGROUP GROUP g c COUNT 1 STREAMS x >",
            "XREADGROUP GROUP g c STREAMS x 0",
            "XAUTOCLAIM x g c 0 0",
            "XPENDING x g",
            "EVAL return{1,'two',false,{ok='three'},{'four'},redis.call('HGETALL',KEYS[1]),redis.pcall('GET',KEYS[1])} 1 h",
            "EVAL return{err='MINE'} 1 h",
            "GET h",
            "EXISTS none",
        ] {
            let mut words = line.split(' ').map(|word| Value::from(word.to_owned()));
            let name = line.split(' ').next().expect("a line has a word");
            let command = CustomCommand::new(name.to_owned(), ClusterHash::from("h"), false);
            let args = words.by_ref().skip(1).collect();
            replies.push(send(&link.client, "call", command, args).await.map_err(|error| error.to_string()));
        }
        assert_eq!(link.client.protocol_version(), version);
        replies
    }

    #[tokio::test]
    async fn both_protocols_give_the_same_replies() {
        let server = PrivateRedis::start(&PrivateRedisOptions::default()).unwrap();
        let two = replies(&server.url(), RespVersion::RESP2).await;
        let three = replies(&server.url(), RespVersion::RESP3).await;
        assert!(matches!(&two[2], Ok(Reply::Array(pairs)) if pairs.len() == 2), "{:?}", two[2]);
        for (at, (two, three)) in two.into_iter().zip(three).enumerate() {
            // A stream read is the one reply that nests differently; its reader takes both.
            let same = match (two, three) {
                (Ok(two), Ok(three)) if at == 13 || at == 14 => {
                    (crate::redis::reader::entries_of(two).unwrap(), crate::redis::reader::entries_of(three).unwrap())
                }
                (two, three) => {
                    assert_eq!(two, three, "reply {at}");
                    continue;
                }
            };
            assert!(!same.0.0.is_empty());
            assert_eq!(same.0, same.1, "reply {at}");
        }
    }
}
