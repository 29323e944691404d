//! Commands and scripts on one pipelined connection that comes back by itself.
//!
//! # Order
//!
//! A call is handed to the connection when its future is first polled, so calls polled in order (by `join!`,
//! or pushed to a `FuturesOrdered` that is then polled) run in that order on one server, each without
//! waiting for the one before. Two exceptions: a script that the server did not have runs when it has been
//! loaded, after the calls behind it ([`Redis::load`] avoids that), and so does a redirected call in a cluster.
//! [`Redis::doubts`] tells of the first.
//!
//! # A hung server
//!
//! The library does not notice one, and may be stuck in a write to it. So [`Redis::watch`] counts timeouts
//! and puts a new client in the old one's place: that needs nothing from the server or from the old client.

use std::collections::HashSet;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use bytes::Bytes;
use fred::clients::{Client, WithOptions};
use fred::types::{CustomCommand, Value};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::durable::Durable;
use super::link::{self, Link};
use super::script::FUNCTION_PREFIX;
use super::{Arg, Reader, RedisError, RedisSettings, Refusal, Reply, Script, scripts};
use crate::telemetry::labels;
use crate::telemetry::metrics;

/// Timeouts in a row after which the connection counts as hung.
const TIMEOUTS_MAX: u32 = 3;
/// Probes per command timeout: an idle pod finds a hung server in about one command timeout.
const PROBES_PER_TIMEOUT: u32 = 3;
/// A wait for replicas ends in a part of the command timeout: calls behind it on its connection wait too.
const WAITS_PER_TIMEOUT: u32 = 4;

/// Commands and scripts on Redis. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct Redis {
    shared: Arc<Shared>,
}

struct Shared {
    settings: RedisSettings,
    /// Replaced when the old one hangs. Never locked across an await.
    active: RwLock<Active>,
    connections: watch::Sender<u64>,
    doubts: watch::Sender<u64>,
    forgotten: watch::Sender<u64>,
    timeouts_in_row: AtomicU32,
    /// For calls that replicas must have.
    durable: Durable,
    /// After `quit`. The library would let later calls wait for their timeout.
    closed: AtomicBool,
}

struct Active {
    link: Link,
    calls: WithOptions<Client>,
}

/// A call of a script.
struct Call {
    name: &'static str,
    timed_as: labels::RedisCall,
    /// Its first key.
    key: Bytes,
    values: Vec<Value>,
}

// === impl Redis ===

impl Redis {
    /// Connects.
    ///
    /// # Errors
    ///
    /// In a few command timeouts: [`RedisError::Settings`] when it can never work, [`RedisError::Unavailable`]
    /// when nothing answers there or the log-in is refused.
    pub async fn connect(settings: &RedisSettings) -> Result<Self, RedisError> {
        let (connections, _) = watch::channel(0);
        let link = Link::connect_counted(settings, &connections).await?;
        let shared = Shared {
            settings: settings.clone(),
            active: RwLock::new(Active::new(link, settings)),
            connections,
            doubts: watch::Sender::new(0),
            forgotten: watch::Sender::new(0),
            timeouts_in_row: AtomicU32::new(0),
            durable: Durable::default(),
            closed: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Runs a script, all its `keys` in one slot. Loads it where Redis does not have it.
    ///
    /// At least one key: without, a cluster would run it anywhere.
    ///
    /// # Errors
    ///
    /// Any but [`RedisError::Settings`]. A script that Redis did not know is no error.
    pub async fn call(
        &self,
        script: &'static Script,
        keys: Vec<Arg>,
        args: impl IntoIterator<Item = Arg>,
    ) -> Result<Reply, RedisError> {
        let call = Call::new(script, keys, args);
        // A clone shares the bytes: it costs one allocation, and is needed where a server has not seen the script.
        match self.send(call.timed_as, script.name(), call.command(), call.values.clone()).await {
            Err(error) if error.refusal() == Some(Refusal::NoScript) => {
                self.load_one(script, &call.key).await?;
                let reply = self.send(call.timed_as, script.name(), call.command(), call.values).await;
                self.doubt();
                reply
            }
            reply => reply,
        }
    }

    /// Runs a script as [`call`](Self::call) does, and answers once so many replicas have what it wrote, and all that was written
    /// before, as the settings want. `barrier` is a key in its slot, written for nothing else.
    ///
    /// # Errors
    ///
    /// Also [`RedisError::NotReplicated`]: the same call again waits on.
    pub async fn call_durably(
        &self,
        script: &'static Script,
        keys: Vec<Arg>,
        args: impl IntoIterator<Item = Arg>,
        barrier: Arg,
    ) -> Result<Reply, RedisError> {
        if self.shared.settings.replicas == 0 {
            return self.call(script, keys, args).await;
        }
        self.refuse_if_closed()?;
        let (durable, settings) = (&self.shared.durable, &self.shared.settings);
        let (connection, new) = Box::pin(durable.connection(script.name(), settings)).await?;
        if new {
            self.doubt(); // of the order among calls before and after
        }
        let call = Call::new(script, keys, args);
        let barrier = Call::new(&scripts::BARRIER, vec![barrier], []);
        let mut reply = self.send_durably(&connection.calls, &call, &barrier).await;
        if reply.as_ref().is_err_and(|error| error.refusal() == Some(Refusal::NoScript)) {
            self.load_one(script, &call.key).await?;
            self.load_one(&scripts::BARRIER, &call.key).await?;
            reply = self.send_durably(&connection.calls, &call, &barrier).await;
            self.doubt();
        }
        // One that is full or busy is still the primary: it would be asked again and again for a new connection.
        let stays =
            |error: &RedisError| matches!(error.refusal(), Some(Refusal::Oom | Refusal::Busy | Refusal::NoPerm));
        if reply.as_ref().is_err_and(|error| !stays(error)) {
            durable.forget(script.name(), &connection).await;
        }
        reply
    }

    /// A call, the barrier and the wait, one behind the other, each on its way before the one before is answered.
    async fn send_durably(
        &self,
        calls: &WithOptions<Client>,
        call: &Call,
        barrier: &Call,
    ) -> Result<Reply, RedisError> {
        let RedisSettings { replicas: wanted, command_timeout, .. } = self.shared.settings;
        let at_most = command_timeout / WAITS_PER_TIMEOUT;
        let wait = vec![Value::Integer(wanted.into()), Value::Integer(at_most.as_millis() as i64)];
        let send = |call: &Call| link::send(calls, call.name, call.command(), call.values.clone());
        let wait = link::send(calls, "WAIT", link::command("WAIT", &call.key, false), wait);
        // In this order; on the heap, as such a future is large.
        let (reply, written, have) = tokio::join!(
            biased;
            Box::pin(timed(call.timed_as, send(call))),
            Box::pin(timed(barrier.timed_as, send(barrier))),
            Box::pin(timed(labels::RedisCall::Wait, wait)),
        );
        let (reply, _, have) = (reply?, written?, have?.as_u64()?);
        if have >= u64::from(wanted) {
            return Ok(reply);
        }
        metrics().redis_errors_total.of(labels::RedisError::Replication).increment(1);
        Err(RedisError::NotReplicated { call: call.name, wanted, have })
    }

    /// Loads those of the scripts that the node that owns `key` does not have, so that the next call of each keeps its place in
    /// the order. For the start and after each rise of [`connections`](Self::connections).
    ///
    /// # Errors
    ///
    /// Also [`Refusal::Oom`] where one is missing and Redis is full.
    pub async fn load(&self, scripts: &[&'static Script], key: &str) -> Result<(), RedisError> {
        let pattern = format!("{FUNCTION_PREFIX}*");
        let there = self.command_at(key, "FUNCTION LIST", ["LIBRARYNAME".into(), pattern.into()]).await?;
        // Each a list of names and values that begins with library_name and its value.
        let name = |library: Reply| library.into_array()?.into_iter().nth(1).map(Reply::into_bytes).transpose();
        let there = there.into_array()?.into_iter().map(name).collect::<Result<HashSet<Option<Bytes>>, _>>()?;
        for script in scripts.iter().filter(|script| !there.contains(&Some(script.function_bytes().clone()))) {
            self.load_one(script, key.as_bytes()).await?;
        }
        Ok(())
    }

    /// Loads a script. To replace it changes nothing: its name tells its source.
    async fn load_one(&self, script: &'static Script, key: &[u8]) -> Result<(), RedisError> {
        let load = link::command("FUNCTION LOAD", key, false);
        let args = vec![Value::from_static_str("REPLACE"), Value::String(script.source().into())];
        self.send(labels::RedisCall::Command, "FUNCTION LOAD", load, args).await.map(|_| ())
    }

    /// Runs one command that does not block and whose first argument is a key: `HGETALL`, `XADD`,
    /// `XGROUP CREATE` (a name may have several words).
    pub async fn command(&self, name: &'static str, args: impl IntoIterator<Item = Arg>) -> Result<Reply, RedisError> {
        let args: Vec<Arg> = args.into_iter().collect();
        let command = link::command(name, args.first().and_then(Arg::as_key).unwrap_or_default(), false);
        self.send(labels::RedisCall::Command, name, command, link::values(args)).await
    }

    /// Runs one command on the node that owns `key`, where the command itself does not begin with it: `WAIT`
    /// (which holds up the calls behind it for as long as it waits), `TIME`, `INFO`.
    pub async fn command_at(
        &self,
        key: &str,
        name: &'static str,
        args: impl IntoIterator<Item = Arg>,
    ) -> Result<Reply, RedisError> {
        let args = args.into_iter().map(|arg| arg.0).collect();
        self.send(labels::RedisCall::Command, name, link::command(name, key.as_bytes(), false), args).await
    }

    /// How many connections were made: at least 1, and more after each time one was lost. What was written
    /// before a rise may be gone, and scripts with it.
    pub fn connections(&self) -> watch::Receiver<u64> {
        self.shared.connections.subscribe()
    }

    /// How many calls have run out of their order, or perhaps twice. What follows from the order of calls, or from a reply
    /// that may be a second one, is in doubt after a rise.
    pub fn doubts(&self) -> watch::Receiver<u64> {
        self.shared.doubts.subscribe()
    }

    /// Says that a call was answered which had been sent more than once.
    pub fn doubt(&self) {
        self.shared.doubts.send_modify(|count| *count += 1);
    }

    /// How often it was found to have forgotten what it was told, as its clock jumped ahead, or altogether.
    pub fn forgotten(&self) -> watch::Receiver<u64> {
        self.shared.forgotten.subscribe()
    }

    /// Says that it may have forgotten what it was told.
    pub fn has_forgotten(&self) {
        self.shared.forgotten.send_modify(|count| *count += 1);
    }

    /// Whether it is connected, and the last few calls were not all without answer.
    pub fn is_up(&self) -> bool {
        let hangs = self.shared.timeouts_in_row.load(Ordering::Relaxed) >= TIMEOUTS_MAX;
        !hangs && self.shared.active.read().unwrap_or_else(PoisonError::into_inner).link.is_up()
    }

    /// A connection of its own for one loop of blocking reads; its first read makes it.
    pub fn reader(&self) -> Reader {
        Reader::new(self.shared.settings.clone())
    }

    /// Watches for a hung server until `shutdown`: after 3 timeouts in a row, probes included, connects anew.
    /// Calls in flight then end with [`RedisError::Lost`].
    pub async fn watch(self, shutdown: CancellationToken) {
        let probe_limit = self.shared.settings.command_timeout / PROBES_PER_TIMEOUT;
        let mut tick = tokio::time::interval(probe_limit);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => {}
            }
            let probe = self.read_active(|active| active.link.limited_to(probe_limit));
            // Its answer is counted like any other; that is all there is to know.
            let _ = self.counted(link::send(&probe, "PING", link::command("PING", b"", false), Vec::new())).await;
            if self.shared.timeouts_in_row.load(Ordering::Relaxed) >= TIMEOUTS_MAX {
                self.renew();
            }
        }
    }

    /// Lets calls in flight finish, within one command timeout, and closes. Calls after this fail at once.
    pub async fn quit(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        self.shared.durable.close().await;
        // The lock is not held across the wait; the client in place is replaced by nobody but `watch`.
        let quit = self.read_active(|active| active.link.quit(self.shared.settings.command_timeout));
        quit.await;
    }

    /// Puts a new client in the place of one that hangs, unless that one knows and is connecting already.
    fn renew(&self) {
        self.shared.timeouts_in_row.store(0, Ordering::Relaxed);
        if !self.read_active(|active| active.link.is_up()) {
            return;
        }
        metrics().watchdog_trips_total.increment(1);
        warn!(timeouts = TIMEOUTS_MAX, "redis hangs, connection replaced");
        match Link::connect_in_background(&self.shared.settings, &self.shared.connections) {
            Ok(link) => {
                let active = Active::new(link, &self.shared.settings);
                *self.shared.active.write().unwrap_or_else(PoisonError::into_inner) = active;
            }
            // The certificate file went away since the start, say: better the old connection than none.
            Err(error) => info!(%error, "redis connection kept"),
        }
    }

    async fn send(
        &self,
        timed_as: labels::RedisCall,
        call: &'static str,
        command: CustomCommand,
        args: Vec<Value>,
    ) -> Result<Reply, RedisError> {
        self.refuse_if_closed()?;
        let calls = self.read_active(|active| active.calls.clone());
        let sent = Instant::now();
        let reply = self.counted(link::send(&calls, call, command, args)).await;
        record(timed_as, sent, &reply);
        reply
    }

    fn refuse_if_closed(&self) -> Result<(), RedisError> {
        if self.shared.closed.load(Ordering::Relaxed) {
            return Err(RedisError::Unavailable("the connection was closed".to_owned()));
        }
        Ok(())
    }

    /// Counts timeouts in a row: any answer, an error too, shows that the server lives.
    async fn counted(&self, call: impl Future<Output = Result<Reply, RedisError>>) -> Result<Reply, RedisError> {
        let reply = call.await;
        let in_row = &self.shared.timeouts_in_row;
        if matches!(reply, Err(RedisError::Timeout(_))) {
            in_row.fetch_add(1, Ordering::Relaxed);
        } else if in_row.load(Ordering::Relaxed) != 0 {
            in_row.store(0, Ordering::Relaxed);
        }
        reply
    }

    fn read_active<T>(&self, read: impl FnOnce(&Active) -> T) -> T {
        read(&self.shared.active.read().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn timed(
    timed_as: labels::RedisCall,
    call: impl Future<Output = Result<Reply, RedisError>>,
) -> Result<Reply, RedisError> {
    let sent = Instant::now();
    let reply = call.await;
    record(timed_as, sent, &reply);
    reply
}

/// Counts a call and how long it took.
fn record(timed_as: labels::RedisCall, sent: Instant, reply: &Result<Reply, RedisError>) {
    metrics().redis_call_seconds.of(timed_as).record(sent.elapsed());
    if let Some(kind) = reply.as_ref().err().and_then(RedisError::label) {
        metrics().redis_errors_total.of(kind).increment(1);
    }
}

// === impl Call ===

impl Call {
    fn new(script: &'static Script, keys: Vec<Arg>, args: impl IntoIterator<Item = Arg>) -> Self {
        let key = keys.first().and_then(Arg::as_key).expect("a script is called with a key, and a key is a string");
        let (name, key, args) = (script.name(), Bytes::copy_from_slice(key), args.into_iter());
        let mut values = Vec::with_capacity(2 + keys.len() + args.size_hint().0);
        values.push(Value::Bytes(script.function_bytes().clone()));
        values.push(Value::Integer(keys.len() as i64));
        values.extend(keys.into_iter().chain(args).map(|arg| arg.0));
        Self { name, timed_as: labels::RedisCall::of_script(name), key, values }
    }

    fn command(&self) -> CustomCommand {
        link::command("FCALL", &self.key, false)
    }
}

// === impl Active ===

impl Active {
    fn new(link: Link, settings: &RedisSettings) -> Self {
        let calls = link.limited_to(settings.command_timeout);
        Self { link, calls }
    }
}
