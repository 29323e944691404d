//! The Redis of a run: one server, a primary with replicas and sentinels, or a cluster.

mod sentinel;

use std::time::{Duration, Instant};

use job_router::redis::{PrivateRedis, PrivateRedisOptions, ReservedPort};
use sentinel::{SERVICE, Sentinel};

use super::clocks::{Clock, Clocks};
use super::history::pause;
use crate::support::documented_users;

/// How the servers stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// One server with an append-only file.
    One,
    /// A primary, two replicas and three sentinels.
    Sentinel,
    /// Three primaries with a replica each. Nothing waits for replicas there.
    Cluster,
}

/// The servers of a run.
pub struct Servers {
    topology: Topology,
    nodes: Vec<PrivateRedis>,
    /// By node.
    clocks: Vec<Clock>,
    sentinels: Vec<Sentinel>,
    /// At which the nodes of a cluster speak with each other, by node. Without being told they take one that is 10,000 higher than
    /// the other, which may be past the last there is.
    buses: Vec<ReservedPort>,
}

/// A key of the partition.
const PARTITION: &str = "{jr:0}:";
const INBOX: &str = "jr:inbox";
const PRIMARIES: usize = 3;
const SLOTS: usize = 16_384;
/// How long servers have to find each other by themselves.
const OPERATOR_COMES_AFTER: Duration = Duration::from_secs(10);

// === impl Topology ===

impl Topology {
    pub fn named(name: &str) -> Self {
        match name {
            "one" => Self::One,
            "sentinel" => Self::Sentinel,
            "cluster" => Self::Cluster,
            _ => panic!("TOPOLOGY: must be `one`, `sentinel` or `cluster`"),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Sentinel => "sentinel",
            Self::Cluster => "cluster",
        }
    }

    /// How many replicas must have a write: all. With fewer, a frozen primary that goes on hears from those that nobody has told yet
    /// of the new one, and what they acknowledge is thrown away.
    pub fn replicas(self) -> u8 {
        match self {
            Self::One | Self::Cluster => 0,
            Self::Sentinel => 2,
        }
    }
}

// === impl Servers ===

impl Servers {
    pub fn start(topology: Topology, clocks: &Clocks) -> Self {
        if topology == Topology::Cluster {
            return Self::start_cluster(clocks);
        }
        let mut servers =
            Self { topology, nodes: Vec::new(), clocks: Vec::new(), sentinels: Vec::new(), buses: Vec::new() };
        servers.add(clocks, Vec::new());
        if topology == Topology::Sentinel {
            let primary = servers.port(0);
            for _ in 0..2 {
                servers.add(clocks, vec![format!("replicaof 127.0.0.1 {primary}")]);
            }
            // Before this none could follow yet.
            for at in 0..servers.nodes.len() {
                let mut connection = servers.connect(at).expect("connects");
                for (name, value) in [("min-replicas-to-write", "1"), ("min-replicas-max-lag", "2")] {
                    redis::cmd("CONFIG").arg("SET").arg(name).arg(value).exec(&mut connection).expect("set");
                }
            }
            servers.sentinels = (0..3).map(|_| Sentinel::start(primary)).collect();
            servers.until_sound();
        }
        servers
    }

    fn start_cluster(clocks: &Clocks) -> Self {
        let (nodes, sentinels) = (Vec::new(), Vec::new());
        let buses = (0..PRIMARIES * 2).map(|_| ReservedPort::new().expect("a port")).collect();
        let mut servers = Self { topology: Topology::Cluster, nodes, clocks: Vec::new(), sentinels, buses };
        for at in 0..PRIMARIES * 2 {
            let bus = format!("cluster-port {}", servers.buses[at].get());
            servers.add(clocks, vec!["cluster-enabled yes".to_owned(), "cluster-node-timeout 2000".to_owned(), bus]);
        }
        let mut connections: Vec<_> = (0..servers.count()).map(|at| servers.connect(at).expect("connects")).collect();
        for (at, connection) in connections.iter_mut().enumerate() {
            if at > 0 {
                redis::cmd("CLUSTER")
                    .arg("MEET")
                    .arg("127.0.0.1")
                    .arg(servers.port(0))
                    .arg(servers.buses[0].get())
                    .exec(connection)
                    .expect("meets");
            }
            if at < PRIMARIES {
                let (from, to) = (SLOTS * at / PRIMARIES, SLOTS * (at + 1) / PRIMARIES - 1);
                redis::cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(from).arg(to).exec(connection).expect("has slots");
            }
        }
        let ids: Vec<String> = connections.iter_mut().map(|connection| id_of(connection).expect("an id")).collect();
        for at in PRIMARIES..servers.count() {
            let follow = |connection: &mut redis::Connection| {
                redis::cmd("CLUSTER").arg("REPLICATE").arg(&ids[at - PRIMARIES]).exec(connection)
            };
            let limit = Instant::now() + Duration::from_secs(20);
            while follow(&mut connections[at]).is_err() {
                assert!(Instant::now() < limit, "the nodes meet in time");
                pause(Duration::from_millis(50));
            }
        }
        servers.until_sound();
        servers
    }

    fn add(&mut self, clocks: &Clocks, mut config: Vec<String>) {
        config.extend(documented_users().map(str::to_owned));
        config.extend(["repl-diskless-sync-delay 0", "repl-ping-replica-period 1"].map(str::to_owned));
        let clock = clocks.of(&format!("redis-{}", self.nodes.len()));
        let options = PrivateRedisOptions { append_only: true, tcp: true, config, environment: clock.environment() };
        self.nodes.push(PrivateRedis::start(&options).expect("redis-server starts"));
        self.clocks.push(clock);
    }

    /// Where pods find it; `proxy` stands before the one server.
    pub fn url(&self, proxy: &str) -> String {
        if self.topology == Topology::Cluster {
            let others: Vec<_> = (1..self.count()).map(|at| format!("node=127.0.0.1:{}", self.port(at))).collect();
            return format!("redis-cluster://{}?{}", self.address(), others.join("&"));
        }
        match &self.sentinels[..] {
            [] => format!("redis://{proxy}"),
            [first, others @ ..] => {
                let others: String = others.iter().map(|other| format!("&node=127.0.0.1:{}", other.port)).collect();
                format!("redis-sentinel://127.0.0.1:{}?sentinelServiceName={SERVICE}{others}", first.port)
            }
        }
    }

    /// The one server's address.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port(0))
    }

    /// A way to the primary for those who are no pods.
    pub fn directory(&self) -> Directory {
        let ports = |all: bool| if all { (0..self.count()).map(|at| self.port(at)).collect() } else { Vec::new() };
        Directory {
            only: self.port(0),
            sentinels: self.sentinels.iter().map(|sentinel| sentinel.port).collect(),
            nodes: ports(self.topology == Topology::Cluster),
        }
    }

    /// Which node is the primary of the inbox, which is another partition of a cluster.
    pub fn primary_of_inbox(&self) -> Option<usize> {
        let port = self.directory().port(INBOX)?;
        (0..self.nodes.len()).find(|at| self.port(*at) == port)
    }

    /// Which node is the primary, as most sentinels have it.
    pub fn primary(&self) -> Option<usize> {
        let port = self.directory().port(PARTITION)?;
        (0..self.nodes.len()).find(|at| self.port(*at) == port)
    }

    /// Which nodes follow another.
    pub fn replicas(&self) -> Vec<usize> {
        (0..self.count()).filter(|at| self.role(*at).is_ok_and(|role| role == "slave")).collect()
    }

    pub fn kill(&mut self, at: usize) {
        self.nodes[at].kill_hard().expect("dies");
    }

    /// Starts what was killed, on its data.
    pub fn start_again(&mut self, at: usize) {
        self.nodes[at].restart().expect("starts");
    }

    pub fn freeze(&self, at: usize) {
        self.nodes[at].pause().expect("stands still");
    }

    pub fn thaw(&self, at: usize) {
        self.nodes[at].resume().expect("goes on");
    }

    pub fn move_clock(&self, at: usize, ahead_s: i64) {
        self.clocks[at].move_to(ahead_s);
    }

    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Waits until there is one primary, which every other node follows; in a cluster until each node finds all slots served.
    pub fn until_sound(&mut self) {
        let start = Instant::now();
        let mut alone_since = start;
        while !self.is_sound() {
            assert!(start.elapsed() < Duration::from_secs(60), "the servers find each other in time: {}", self.told());
            if alone_since.elapsed() > OPERATOR_COMES_AFTER {
                self.start_stopped_again(); // it says that it has failed for 2 s more
                alone_since = Instant::now();
            }
            pause(Duration::from_millis(50));
        }
    }

    /// What an operator has to do where a clock was set back: a primary of a cluster that saw it fail serves again 2 s after it was
    /// started, by its wall clock.
    fn start_stopped_again(&mut self) {
        for at in 0..self.count() {
            let state = self.connect(at).and_then(|mut node| redis::cmd("CLUSTER").arg("INFO").query(&mut node));
            let is_stopped = |state: &String| {
                state.contains("cluster_state:fail") && state.contains(&format!("cluster_slots_ok:{SLOTS}"))
            };
            if state.as_ref().is_ok_and(is_stopped) {
                self.start_again(at);
            }
        }
    }

    /// How each node sees itself and the cluster.
    fn told(&self) -> String {
        let of = |at: usize| -> redis::RedisResult<String> {
            let mut node = self.connect(at)?;
            let info: String = redis::cmd("INFO").arg("replication").query(&mut node)?;
            let state: String = redis::cmd("CLUSTER").arg("INFO").query(&mut node).unwrap_or_default();
            Ok(info + &state)
        };
        (0..self.count()).map(|at| format!("\n{}: {:?}", self.port(at), of(at))).collect()
    }

    fn is_sound(&self) -> bool {
        if self.topology == Topology::Cluster {
            return (0..self.count()).all(|at| self.is_sound_in_cluster(at).unwrap_or(false));
        }
        let followers = (self.nodes.len() - 1).to_string();
        let directory = self.directory();
        let ask = || -> redis::RedisResult<(String, String)> {
            let mut connection = directory.connect(PARTITION)?;
            let info: redis::InfoDict = redis::cmd("INFO").arg("replication").query(&mut connection)?;
            Ok((info.get("role").unwrap_or_default(), info.get("connected_slaves").unwrap_or_default()))
        };
        ask().is_ok_and(|(role, count)| role == "master" && count == followers)
    }

    /// Whether a node finds that all slots are served, and follows its primary if it has one.
    fn is_sound_in_cluster(&self, at: usize) -> redis::RedisResult<bool> {
        let mut connection = self.connect(at)?;
        let cluster: String = redis::cmd("CLUSTER").arg("INFO").query(&mut connection)?;
        let info: redis::InfoDict = redis::cmd("INFO").arg("replication").query(&mut connection)?;
        let role: String = info.get("role").unwrap_or_default();
        let link: String = info.get("master_link_status").unwrap_or_default();
        let known = format!("cluster_known_nodes:{}", PRIMARIES * 2);
        Ok(cluster.contains("cluster_state:ok") && cluster.contains(&known) && (role == "master" || link == "up"))
    }

    /// A replica of the partition's primary takes over from it, in agreement with it: nothing is lost.
    pub fn hand_over(&self) -> redis::RedisResult<()> {
        let Some(primary) = self.primary() else { return Ok(()) };
        let id = id_of(&mut self.connect(primary)?)?;
        for at in 0..self.count() {
            let mut connection = self.connect(at)?;
            let myself: String = redis::cmd("CLUSTER").arg("NODES").query(&mut connection)?;
            if myself.lines().any(|line| line.contains("myself,slave") && line.contains(&id)) {
                redis::cmd("CLUSTER").arg("FAILOVER").exec(&mut connection)?;
                // It gives up after 5 s, by the servers' clocks.
                let limit = Instant::now() + Duration::from_secs(6);
                while self.role(at).is_ok_and(|role| role == "slave") && Instant::now() < limit {
                    pause(Duration::from_millis(20));
                }
                return Ok(());
            }
        }
        Ok(())
    }

    /// Moves the partition's slot to another primary, a few keys at a time.
    pub fn move_slot(&self, between: Duration) -> redis::RedisResult<()> {
        let Some(from) = self.primary() else { return Ok(()) };
        let primaries: Vec<usize> =
            (0..self.count()).filter(|at| *at != from && self.role(*at).is_ok_and(|role| role == "master")).collect();
        let Some(to) = primaries.first().copied() else { return Ok(()) };
        let (mut source, mut target) = (self.connect(from)?, self.connect(to)?);
        let slot: u16 = redis::cmd("CLUSTER").arg("KEYSLOT").arg(PARTITION).query(&mut source)?;
        let (source_id, target_id) = (id_of(&mut source)?, id_of(&mut target)?);
        let set = |words: [&str; 2]| {
            let mut command = redis::cmd("CLUSTER");
            command.arg("SETSLOT").arg(slot).arg(&words);
            command
        };
        set(["IMPORTING", &source_id]).exec(&mut target)?;
        set(["MIGRATING", &target_id]).exec(&mut source)?;
        loop {
            let keys: Vec<String> = redis::cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot).arg(20).query(&mut source)?;
            if keys.is_empty() {
                break;
            }
            let mut command = redis::cmd("MIGRATE");
            command.arg("127.0.0.1").arg(self.port(to)).arg("").arg(0).arg(5_000).arg("KEYS").arg(&keys);
            command.exec(&mut source)?;
            pause(between);
        }
        set(["NODE", &target_id]).exec(&mut target)?;
        set(["NODE", &target_id]).exec(&mut source)?;
        for at in (0..self.count()).filter(|at| self.role(*at).is_ok_and(|role| role == "master")) {
            set(["NODE", &target_id]).exec(&mut self.connect(at)?)?;
        }
        Ok(())
    }

    fn role(&self, at: usize) -> redis::RedisResult<String> {
        let info: redis::InfoDict = redis::cmd("INFO").arg("replication").query(&mut self.connect(at)?)?;
        Ok(info.get("role").unwrap_or_default())
    }

    fn port(&self, at: usize) -> u16 {
        let url = self.nodes[at].tcp_url().expect("it listens");
        url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
    }

    fn connect(&self, at: usize) -> redis::RedisResult<redis::Connection> {
        connect(self.port(at))
    }
}

/// Knows where the primary is.
#[derive(Debug, Clone)]
pub struct Directory {
    only: u16,
    sentinels: Vec<u16>,
    /// Of a cluster.
    nodes: Vec<u16>,
}

// === impl Directory ===

impl Directory {
    /// A connection to the primary that has the key, which is never made again behind one's back.
    pub fn connect(&self, key: &str) -> redis::RedisResult<redis::Connection> {
        connect(self.port(key).ok_or_else(|| std::io::Error::other("no sentinel knows a primary"))?)
    }

    fn port(&self, key: &str) -> Option<u16> {
        if !self.nodes.is_empty() {
            return self.nodes.iter().find_map(|node| owner(*node, key).ok().flatten());
        }
        if self.sentinels.is_empty() {
            return Some(self.only);
        }
        let ask = |sentinel: &u16| -> redis::RedisResult<u16> {
            let mut connection = connect(*sentinel)?;
            let (_, port): (String, u16) =
                redis::cmd("SENTINEL").arg("get-master-addr-by-name").arg(SERVICE).query(&mut connection)?;
            Ok(port)
        };
        self.sentinels.iter().find_map(|sentinel| ask(sentinel).ok())
    }
}

/// The port of the primary that has the key, as a node of the cluster has it.
fn owner(node: u16, key: &str) -> redis::RedisResult<Option<u16>> {
    let mut connection = connect(node)?;
    let slot: u16 = redis::cmd("CLUSTER").arg("KEYSLOT").arg(key).query(&mut connection)?;
    // Each a range: its first and last slot, its primary, its replicas.
    let ranges: Vec<Vec<redis::Value>> = redis::cmd("CLUSTER").arg("SLOTS").query(&mut connection)?;
    for range in ranges {
        let [first, last, primary, ..] = &range[..] else { continue };
        let (first, last) = (redis::from_redis_value::<u16>(first.clone())?, redis::from_redis_value(last.clone())?);
        if (first..=last).contains(&slot) {
            let redis::Value::Array(primary) = primary else { return Ok(None) };
            return Ok(Some(redis::from_redis_value(primary[1].clone())?));
        }
    }
    Ok(None)
}

fn id_of(connection: &mut redis::Connection) -> redis::RedisResult<String> {
    redis::cmd("CLUSTER").arg("MYID").query(connection)
}

fn connect(port: u16) -> redis::RedisResult<redis::Connection> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}"))?;
    let connection = client.get_connection_with_timeout(Duration::from_secs(1))?;
    // Longer than any wait for replicas: an answer that comes late would be taken for the next one's.
    connection.set_read_timeout(Some(Duration::from_secs(3)))?;
    Ok(connection)
}
