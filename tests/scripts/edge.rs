//! The edge to Redis against a real server: order, scripts, streams, and what happens when the server hangs or dies.

// The linter lets tests unwrap, but not what they share.
#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{FuturesOrdered, FuturesUnordered};
use job_router::redis::{
    Arg, PrivateRedis, PrivateRedisOptions, ReadFrom, Redis, RedisError, RedisSettings, Refusal, Reply, Script,
};
use secrecy::SecretString;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

/// No wait of a test is longer.
const LIMIT: Duration = Duration::from_secs(10);
/// Short, so that a hung server is found soon.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(300);

static APPEND: Script = Script::new("append", "", &[], "return redis.call('RPUSH', KEYS[1], unpack(ARGV))");
static ECHO: Script =
    Script::new("echo", "", &[], "return {1, 'a', false, {ARGV[1], {}}, redis.call('HGETALL', KEYS[1])}");
static INCR: Script = Script::new("incr", "", &[], "return redis.call('INCR', KEYS[1])");
static DRAINS: Script = Script::new("drains", "allow-oom", &[], "return redis.call('DEL', KEYS[1])");
static FAILS_HALFWAY: Script =
    Script::new("fails_halfway", "", &[], "redis.call('SET', KEYS[1], 'x') return redis.call('LPUSH', KEYS[1], 'y')");

/// The server of the tests that leave it alone. Each of them has its own key prefix.
fn shared() -> &'static PrivateRedis {
    static SERVER: OnceLock<PrivateRedis> = OnceLock::new();
    SERVER.get_or_init(|| PrivateRedis::start(&PrivateRedisOptions::default()).unwrap())
}

fn own(append_only: bool) -> PrivateRedis {
    PrivateRedis::start(&PrivateRedisOptions { append_only, tcp: true, ..PrivateRedisOptions::default() }).unwrap()
}

fn settings(url: &str) -> RedisSettings {
    RedisSettings { command_timeout: COMMAND_TIMEOUT, ..RedisSettings::new(url) }
}

async fn connect(url: &str) -> Redis {
    Redis::connect(&settings(url)).await.unwrap()
}

/// A client and its watch, which ends with the test.
async fn watched(url: &str) -> (Redis, Watch) {
    let redis = connect(url).await;
    let watch = tokio::spawn(redis.clone().watch(CancellationToken::new()));
    (redis, Watch(watch.abort_handle()))
}

struct Watch(AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Looks until it is so, and tells how long that took.
async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) -> Duration {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    start.elapsed()
}

async fn works(redis: &Redis) -> bool {
    redis.command_at("any", "PING", []).await.is_ok()
}

/// Whether some client of the server is blocked in this command.
async fn is_blocked_in(redis: &Redis, command: &str) -> bool {
    let clients = redis.command_at("any", "CLIENT LIST", []).await.unwrap();
    let mut clients = clients.as_str().unwrap().lines();
    clients.any(|client| client.contains(&format!("cmd={command} ")) && client.contains("flags=b"))
}

async fn add(redis: &Redis, stream: &str, value: &str) -> String {
    redis.command("XADD", args(&[stream, "*", "v", value])).await.unwrap().as_str().unwrap().to_owned()
}

fn args(texts: &[&str]) -> Vec<Arg> {
    texts.iter().map(|text| Arg::from(*text)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_polled_in_order_run_in_order_without_waiting_for_each_other() {
    let redis = connect(&shared().url()).await;
    redis.load(&[&APPEND], "order").await.unwrap();
    for round in 0..200 {
        let key = format!("order:{round}");
        let append = |i: u64| redis.call(&APPEND, vec![key.as_str().into()], [i.into()]);
        // Scripts, plain commands and WAIT in one pipeline: a reply is the length of the list by then.
        let (a, b, waited, c, d) = tokio::join!(
            append(0),
            redis.command("RPUSH", args(&[&key, "1"])),
            redis.command_at(&key, "WAIT", args(&["0", "10"])),
            append(2),
            append(3),
        );
        assert_eq!([a, b, c, d].map(|reply| reply.unwrap().as_u64().unwrap()), [1, 2, 3, 4]);
        assert_eq!(waited.unwrap(), Reply::Int(0), "there is no replica");
    }
    let mut calls = FuturesOrdered::new();
    for i in 0..1_000_u64 {
        calls.push_back(redis.call(&APPEND, vec!["order:many".into()], [i.into()]));
    }
    let lengths: Vec<u64> = calls.map(|reply| reply.unwrap().as_u64().unwrap()).collect().await;
    assert_eq!(lengths, (1..=1_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_script_that_redis_does_not_know_is_sent_and_runs_once_also_in_a_race() {
    let server = own(false);
    let redis = connect(&server.url()).await;
    for round in 1..=20_u64 {
        redis.command_at("n", "FUNCTION FLUSH", []).await.unwrap();
        let incr = || redis.call(&INCR, vec!["n".into()], []);
        let (a, b, flushed, c) = tokio::join!(incr(), incr(), redis.command_at("n", "FUNCTION FLUSH", []), incr());
        flushed.unwrap();
        let mut counts = [a, b, c].map(|reply| reply.unwrap().as_u64().unwrap());
        counts.sort_unstable();
        assert_eq!(counts, [3 * round - 2, 3 * round - 1, 3 * round]);
    }
}

#[tokio::test]
async fn a_full_redis_runs_what_was_loaded_before_and_takes_nothing_new() {
    let server = own(false);
    let redis = connect(&server.url()).await;
    redis.load(&[&DRAINS], "n").await.unwrap();
    redis.command_at("n", "FLUSHALL", []).await.unwrap(); // leaves functions
    redis.command("SET", args(&["n", &"x".repeat(100_000)])).await.unwrap();
    redis.command_at("n", "CONFIG SET", args(&["maxmemory", "1"])).await.unwrap();
    redis.load(&[&DRAINS], "n").await.unwrap();
    assert_eq!(redis.call(&DRAINS, vec!["n".into()], []).await.unwrap(), Reply::Int(1));
    let refused = redis.load(&[&DRAINS, &INCR], "n").await.unwrap_err();
    assert!(matches!(refused, RedisError::Refused { refusal: Refusal::Oom, .. }), "{refused}");
    let refused = redis.call(&INCR, vec!["n".into()], []).await.unwrap_err();
    assert!(matches!(refused, RedisError::Refused { refusal: Refusal::Oom, .. }), "{refused}");
    redis.command_at("n", "CONFIG SET", args(&["maxmemory", "0"])).await.unwrap();
    assert_eq!(redis.call(&INCR, vec!["n".into()], []).await.unwrap(), Reply::Int(1));
}

#[tokio::test]
async fn functions_survive_a_restart_with_an_append_only_file() {
    let mut server = own(true);
    let redis = connect(&server.url()).await;
    assert_eq!(redis.call(&INCR, vec!["n".into()], []).await.unwrap(), Reply::Int(1));
    server.restart().unwrap();
    let redis = connect(&server.url()).await;
    let there = redis.command_at("n", "FUNCTION LIST", args(&["LIBRARYNAME", INCR.function()])).await.unwrap();
    assert_eq!(there.into_array().unwrap().len(), 1);
    assert_eq!(redis.call(&INCR, vec!["n".into()], []).await.unwrap(), Reply::Int(2));
}

#[tokio::test]
async fn replies_keep_their_shape_and_payloads_come_back_as_they_went() {
    let redis = connect(&shared().url()).await;
    redis.command("HSET", args(&["shape", "f", "1.50"])).await.unwrap();
    let payload = Bytes::from(vec![0_u8, 255, b'\r', b'\n']);
    let reply = redis.call(&ECHO, vec!["shape".into()], [payload.clone().into()]).await.unwrap();
    let text = |text: &'static str| Reply::Bytes(Bytes::from_static(text.as_bytes()));
    let nested = Reply::Array(vec![Reply::Bytes(payload), Reply::Array(vec![])]);
    let hash = Reply::Array(vec![text("f"), text("1.50")]);
    assert_eq!(reply, Reply::Array(vec![Reply::Int(1), text("a"), Reply::Nil, nested, hash]));
    assert!(redis.command("GET", args(&["no such key"])).await.unwrap().is_nil());
}

#[tokio::test]
async fn errors_say_whether_something_may_have_changed() {
    let redis = connect(&shared().url()).await;
    let error = redis.call(&FAILS_HALFWAY, vec!["halfway".into()], []).await.unwrap_err();
    assert!(matches!(&error, RedisError::Failed { call: "fails_halfway", .. }), "{error}");
    assert!(error.may_have_applied() && !error.is_retryable());
    assert!(!redis.command("GET", args(&["halfway"])).await.unwrap().is_nil(), "something has changed");

    let error = redis.command("LPUSH", args(&["halfway", "y"])).await.unwrap_err();
    assert_eq!(error.refusal(), Some(Refusal::WrongType));
    assert!(!error.may_have_applied());
}

#[tokio::test]
async fn what_can_never_work_is_told_and_what_does_not_answer_is_told_in_time() {
    for url in ["", "localhost:6379", "http://user:secret@localhost", "redis://user:secret@", "redis-sentinel://secret"]
    {
        let error = Redis::connect(&settings(url)).await.err().unwrap();
        assert!(matches!(error, RedisError::Settings(_)), "{url}: {error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    let missing = RedisSettings { ca_file: Some("/no/such/file".into()), ..settings("rediss://localhost") };
    let error = Redis::connect(&missing).await.err().unwrap();
    assert!(matches!(&error, RedisError::Settings(text) if text.contains("/no/such/file")), "{error}");

    let error = Redis::connect(&settings("redis+unix:///no/such/socket")).await.err().unwrap();
    assert!(matches!(&error, RedisError::Unavailable(text) if text.contains("/no/such/socket")), "{error}");

    let server = own(false);
    server.pause().unwrap();
    let start = Instant::now();
    let error = Redis::connect(&settings(&server.url())).await.err().unwrap();
    assert!(matches!(error, RedisError::Unavailable(_)), "{error}");
    assert!(start.elapsed() < COMMAND_TIMEOUT * 5, "took {:?}", start.elapsed());
}

#[tokio::test]
async fn a_password_is_taken_from_the_settings_and_a_wrong_one_is_told() {
    let config = vec!["requirepass hunter2".to_owned()];
    let server = PrivateRedis::start(&PrivateRedisOptions { config, ..PrivateRedisOptions::default() }).unwrap();
    let with = |password: &str| RedisSettings {
        password: Some(SecretString::from(password).into()),
        ..settings(&server.url())
    };
    assert!(works(&Redis::connect(&with("hunter2")).await.unwrap()).await);
    let error = Redis::connect(&with("wrong")).await.err().unwrap();
    assert!(matches!(&error, RedisError::Unavailable(text) if text.contains("WRONGPASS")), "{error}");
}

async fn a_hung_server_is_noticed(url: &str, server: &PrivateRedis) {
    let (redis, _watch) = watched(url).await;
    assert!(works(&redis).await && redis.is_up());
    let connections = *redis.connections().borrow();

    server.pause().unwrap();
    // Enough to fill the socket: the library then sits in a write and hears nothing any more.
    let big = Bytes::from(vec![b'x'; 1 << 20]);
    let mut calls: FuturesUnordered<_> =
        (0..16).map(|_| redis.command("SET", [Arg::from("big"), big.clone().into()])).collect();
    let start = Instant::now();
    while let Some(reply) = calls.next().await {
        let error = reply.unwrap_err();
        assert!(matches!(error, RedisError::Timeout(_) | RedisError::Lost(_)), "{error}");
        assert!(error.may_have_applied() && error.is_retryable());
    }
    assert!(start.elapsed() < COMMAND_TIMEOUT * 2, "calls ended after {:?}", start.elapsed());
    until("not up", || async { !redis.is_up() }).await;

    // It hangs for longer than the watch takes, and calls go on meanwhile.
    let long = Instant::now() + COMMAND_TIMEOUT * 4;
    until("calls fail all the while", || async {
        assert!(!works(&redis).await);
        Instant::now() > long
    })
    .await;

    server.resume().unwrap();
    let took = until("traffic flows again", || works(&redis)).await;
    println!("hung server: traffic flowed {took:?} after it went on");
    assert!(took < Duration::from_secs(4), "took {took:?}");
    assert!(redis.is_up());
    assert!(*redis.connections().borrow() > connections);
}

#[tokio::test]
async fn a_hung_server_is_noticed_and_traffic_flows_again_when_it_goes_on() {
    let server = own(false);
    a_hung_server_is_noticed(&server.url(), &server).await;
}

#[tokio::test]
async fn a_hung_server_is_noticed_over_tcp_too() {
    let server = own(false);
    a_hung_server_is_noticed(&server.tcp_url().unwrap(), &server).await;
}

#[tokio::test]
async fn an_idle_client_notices_a_hung_server_by_itself() {
    let server = own(false);
    let (redis, _watch) = watched(&server.url()).await;
    server.pause().unwrap();
    let took = until("not up", || async { !redis.is_up() }).await;
    assert!(took < COMMAND_TIMEOUT * 4, "took {took:?}");
    server.resume().unwrap();
    until("up", || async { redis.is_up() }).await;
}

#[tokio::test]
async fn a_lost_server_is_found_again_and_scripts_are_sent_again() {
    let mut server = own(true);
    let (redis, _watch) = watched(&server.url()).await;
    let mut connections = redis.connections();
    assert_eq!(*connections.borrow_and_update(), 1);
    assert_eq!(redis.call(&INCR, vec!["n".into()], []).await.unwrap(), Reply::Int(1));

    server.stop().unwrap();
    until("not up", || async { !redis.is_up() }).await;
    let error = redis.call(&INCR, vec!["n".into()], []).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");

    server.restart().unwrap();
    tokio::time::timeout(LIMIT, connections.wait_for(|count| *count > 1)).await.unwrap().unwrap();
    // The call that ended while the server was away was never written: the next count is 2.
    assert_eq!(redis.call(&INCR, vec!["n".into()], []).await.unwrap(), Reply::Int(2));

    server.kill_hard().unwrap();
    server.restart().unwrap();
    let took = until("traffic flows again", || works(&redis)).await;
    println!("killed server: traffic flowed {took:?} after it was back");
    assert!(redis.call(&INCR, vec!["n".into()], []).await.is_ok());
}

#[tokio::test]
async fn a_call_whose_reply_is_lost_is_told_and_not_sent_again() {
    let server = own(false);
    let (redis, other) = (connect(&server.url()).await, connect(&server.url()).await);
    let connections = *redis.connections().borrow();
    let cut = async {
        let applied = || async { other.command("GET", args(&["n"])).await.unwrap().as_i64().is_ok() };
        until("the call is applied", applied).await;
        other.command_at("any", "CLIENT KILL", args(&["TYPE", "normal", "SKIPME", "yes"])).await.unwrap();
    };
    let silence = redis.command_at("any", "CLIENT REPLY", args(&["OFF"]));
    let (_, lost, ()) = tokio::join!(silence, redis.command("INCR", args(&["n"])), cut);
    let error = lost.unwrap_err();
    assert!(matches!(error, RedisError::Lost(_)), "{error}");
    assert!(error.may_have_applied() && error.is_retryable());
    until("it works again", || works(&redis)).await;
    assert_eq!(*redis.connections().borrow(), connections + 1);
    assert_eq!(redis.command("GET", args(&["n"])).await.unwrap().as_i64().unwrap(), 1);
}

#[tokio::test]
async fn quit_lets_calls_in_flight_finish_and_later_ones_fail_at_once() {
    let (redis, _watch) = watched(&shared().url()).await;
    let (waited, ()) = tokio::join!(redis.command_at("any", "WAIT", args(&["1", "50"])), redis.quit());
    assert_eq!(waited.unwrap(), Reply::Int(0));
    let start = Instant::now();
    assert!(!works(&redis).await && !redis.is_up());
    assert!(start.elapsed() < COMMAND_TIMEOUT, "took {:?}", start.elapsed());
}

#[tokio::test]
async fn a_group_read_makes_the_group_and_gives_new_entries_and_then_its_own_pending_ones() {
    let redis = connect(&shared().url()).await;
    let mut reader = redis.reader();
    let block = Some(Duration::from_millis(20));
    macro_rules! read {
        ($count:expr, $from:expr) => {
            reader.read_group("group:s", "g", "me", $count, block, $from).await.unwrap()
        };
    }
    assert!(read!(10, ReadFrom::New).is_empty(), "no stream: no entries and no error");
    let mut ids = Vec::new();
    for value in ["1", "2", "3", "4"] {
        ids.push(add(&redis, "group:s", value).await);
    }
    let new = read!(3, ReadFrom::New);
    assert_eq!(new.iter().map(|entry| &entry.id).collect::<Vec<_>>(), ids[..3].iter().collect::<Vec<_>>());
    assert_eq!(new[0].field("v").unwrap(), "1");

    // All of its own from the start, those after an id, and nobody else's.
    assert_eq!(read!(10, ReadFrom::Pending("0")), new);
    assert_eq!(read!(10, ReadFrom::Pending(&ids[0])), new[1..]);
    let mut other = redis.reader();
    assert!(other.read_group("group:s", "g", "you", 10, None, ReadFrom::Pending("0")).await.unwrap().is_empty());

    // Deleted while pending: not shown, not in the way of what comes after, and not pending any more.
    redis.command("XDEL", args(&["group:s", &ids[0], &ids[1]])).await.unwrap();
    assert_eq!(read!(1, ReadFrom::Pending("0")), new[2..]);
    let [pending, ..] = redis.command("XPENDING", args(&["group:s", "g"])).await.unwrap().into_tuple::<4>().unwrap();
    assert_eq!(pending, Reply::Int(1));
    assert_eq!(read!(10, ReadFrom::New)[0].field("v").unwrap(), "4");
}

#[tokio::test]
async fn a_blocked_read_wakes_for_an_entry_and_survives_the_loss_of_its_stream() {
    let server = own(false);
    let redis = connect(&server.url()).await;
    let mut reader = redis.reader();
    let block = Some(Duration::from_secs(2));
    for value in ["1", "2"] {
        let read = reader.read_group("s", "g", "me", 10, block, ReadFrom::New);
        let write = async {
            until("the reader is blocked", || is_blocked_in(&redis, "xreadgroup")).await;
            redis.command("DEL", args(&["s"])).await.unwrap();
            add(&redis, "s", value).await;
        };
        let (entries, ()) = tokio::join!(read, write);
        assert_eq!(entries.unwrap()[0].field("v").unwrap(), value);
    }
    let (entries, id) = tokio::join!(reader.read("t", "0", 10, block), add(&redis, "t", "3"));
    assert_eq!(entries.unwrap()[0].id, id);
    assert!(reader.read("t", &id, 10, Some(Duration::from_millis(1))).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_blocked_read_on_a_hung_server_ends_in_time_and_loses_nothing() {
    let server = own(false);
    let redis = connect(&server.url()).await;
    let mut reader = redis.reader();
    let block = Some(Duration::from_millis(200));
    assert!(reader.read_group("s", "g", "me", 10, block, ReadFrom::New).await.unwrap().is_empty());

    server.pause().unwrap();
    let start = Instant::now();
    let error = reader.read_group("s", "g", "me", 10, block, ReadFrom::New).await.unwrap_err();
    let took = start.elapsed();
    assert!(matches!(error, RedisError::Timeout("XREADGROUP")), "{error}");
    assert!(Duration::from_millis(1_200) <= took && took < Duration::from_millis(1_700), "took {took:?}");

    server.resume().unwrap();
    let id = add(&redis, "s", "1").await;
    let start = Instant::now();
    // The read that was given up may have claimed the entry: it is in the one list or in the other.
    let found = loop {
        assert!(start.elapsed() < LIMIT, "the entry is lost");
        let mut found = reader.read_group("s", "g", "me", 10, None, ReadFrom::Pending("0")).await.unwrap_or_default();
        found.extend(reader.read_group("s", "g", "me", 10, block, ReadFrom::New).await.unwrap_or_default());
        if !found.is_empty() {
            break found;
        }
    };
    assert_eq!(found[0].id, id);
}

#[tokio::test]
async fn a_read_that_was_dropped_does_not_run_on() {
    let server = own(false);
    let redis = connect(&server.url()).await;
    let mut reader = redis.reader();
    let block = Some(Duration::from_secs(2));
    tokio::select! {
        _ = reader.read("s", "$", 10, block) => panic!("nothing was written"),
        _ = until("the read is blocked", || is_blocked_in(&redis, "xread")) => {}
    }
    let took = until("the read is gone", || async { !is_blocked_in(&redis, "xread").await }).await;
    assert!(took < Duration::from_secs(1), "took {took:?}");
    let id = add(&redis, "s", "1").await;
    assert_eq!(reader.read("s", "0", 10, block).await.unwrap()[0].id, id);
}

#[test]
fn a_private_server_starts_fast_and_leaves_nothing_behind() {
    let start = Instant::now();
    let mut server = PrivateRedis::start(&PrivateRedisOptions::default()).unwrap();
    println!("private server: started in {:?}", start.elapsed());
    let (pid, socket) = (server.pid().unwrap(), server.socket());
    let is_running = |pid: u32| Path::new(&format!("/proc/{pid}")).exists();
    assert!(is_running(pid) && socket.exists());
    server.restart().unwrap();
    let again = server.pid().unwrap();
    assert!(!is_running(pid) && is_running(again));
    server.pause().unwrap();
    drop(server);
    assert!(!is_running(again) && !socket.parent().unwrap().exists());
}

#[test]
fn a_server_that_does_not_start_says_why() {
    let config = vec!["no-such-directive yes".to_owned()];
    let error = PrivateRedis::start(&PrivateRedisOptions { config, ..PrivateRedisOptions::default() }).unwrap_err();
    assert!(error.to_string().to_lowercase().contains("configuration"), "{error}");
}

/// Not a test, the owner in the next one.
#[test]
#[ignore = "waits to be killed"]
fn an_owner_that_waits_to_be_killed() {
    let server = PrivateRedis::start(&PrivateRedisOptions::default()).unwrap();
    println!("server {} {}", server.pid().unwrap(), server.socket().display());
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[tokio::test]
async fn a_server_does_not_outlive_an_owner_that_is_killed() {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["edge::an_owner_that_waits_to_be_killed", "--exact", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(owner.stdout.take().unwrap()).lines().map(Result::unwrap);
    let server = said.filter_map(|line| line.split_once("server ").map(|(_, rest)| rest.to_owned())).next().unwrap();
    let (pid, socket) = server.split_once(' ').unwrap();
    let (process, dir) = (Path::new("/proc").join(pid), Path::new(socket).parent().unwrap());
    assert!(process.exists() && dir.exists());

    owner.kill().unwrap(); // SIGKILL
    owner.wait().unwrap();
    let took = until("server and directory are gone", || async { !process.exists() && !dir.exists() }).await;
    println!("orphaned server: gone after {took:?}");
}

/// Not a test, it prints: `cargo test --test scripts script_calls -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn script_calls_per_second() {
    let redis = connect(&shared().url()).await;
    for tasks in [1_usize, 64, 256] {
        let start = Instant::now();
        let calls = if tasks == 1 { 20_000 } else { 200_000 };
        let mut set = tokio::task::JoinSet::new();
        for task in 0..tasks {
            let redis = redis.clone();
            set.spawn(async move {
                let key = format!("speed:{task}");
                for _ in 0..calls / tasks {
                    redis.call(&INCR, vec![key.as_str().into()], []).await.unwrap();
                }
            });
        }
        while let Some(done) = set.join_next().await {
            done.unwrap();
        }
        println!("{tasks} tasks: {:.0} calls/s", calls as f64 / start.elapsed().as_secs_f64());
    }
}
