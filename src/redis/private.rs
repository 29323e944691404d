//! A `redis-server` of our own, for `job-router dev`, benchmarks and tests. `TEST_REDIS_SERVER` names another program, such as a
//! `valkey-server`.
//!
//! It ends with its owner, whatever ends the owner. A normal end is [`Drop`]. For the rest (SIGKILL, a
//! `static` in a test binary, which is never dropped) a **guard** runs beside the server: a shell that
//! reads from a pipe held by us. When we are gone the pipe closes, and the guard kills the server and removes
//! its directory. A parent-death signal would need `unsafe`, and comes when the *thread* that started the
//! server ends, which in a test binary is the first test.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;
use tokio::net::TcpSocket;

/// Names the server's program where that is not `redis-server`. Not one of `JOB_ROUTER_…`, which all are settings.
const SERVER_VARIABLE: &str = "TEST_REDIS_SERVER";
/// The longest path of a Unix socket, in bytes, without its final zero.
const SOCKET_PATH_MAX: usize = 107;
/// How long a server may take to answer, or to end when asked to, reading or writing its append-only file.
const START_STOP_MAX: Duration = Duration::from_secs(10);
/// How often to look whether it has. A start takes some 10 ms.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Waits for the owner's end, then cleans up. `$1` the server's process, `$2` its directory.
const GUARD: &str = r#"read -r _; kill -KILL "$1"; rm -rf -- "$2""#;

/// How a private Redis is set up. The default: in memory, on a Unix socket only.
#[derive(Debug, Clone, Default)]
pub struct PrivateRedisOptions {
    /// Keeps an append-only file, so that [`PrivateRedis::restart`] finds the data again.
    pub append_only: bool,
    /// Listens on a free port of 127.0.0.1 too.
    pub tcp: bool,
    /// More lines of `redis.conf`, such as `maxmemory 10mb`.
    pub config: Vec<String>,
    /// More variables of its environment.
    pub environment: Vec<(String, String)>,
}

/// A private Redis could not be started, stopped or signalled.
#[derive(Debug, thiserror::Error)]
pub enum PrivateRedisError {
    /// There is no `redis-server` on this machine, or no such program as `TEST_REDIS_SERVER` names.
    #[error("{0} is not installed; install redis-server: apt-get install redis-server")]
    NotInstalled(String),
    /// The server ended at once, or did not answer; what it said last.
    #[error("redis-server does not start: {0}")]
    DoesNotStart(String),
    /// It was stopped and not started again.
    #[error("the private redis-server is stopped")]
    Stopped,
    /// The system refused.
    #[error("private redis-server: {0}")]
    Io(#[from] io::Error),
}

/// A running `redis-server` of our own, in a directory of its own. Ends, and its data with it, when dropped.
///
/// Its methods block for some milliseconds, up to 10 s when the server hangs: for tests and start-up only.
#[derive(Debug)]
pub struct PrivateRedis {
    running: Option<Running>,
    port: Option<ReservedPort>,
    environment: Vec<(String, String)>,
    // Last, so that the server has ended before its directory goes.
    dir: TempDir,
}

/// A port of 127.0.0.1 that the system gives to nobody else for as long as this is kept, also while its server is stopped.
///
/// Redis binds with `SO_REUSEADDR`, and so may share a port with a socket that does the same and does not listen.
#[derive(Debug)]
pub struct ReservedPort {
    port: u16,
    _socket: TcpSocket,
}

#[derive(Debug)]
struct Running {
    server: Child,
    guard: Child,
}

// === impl PrivateRedis ===

impl PrivateRedis {
    /// Starts a server and waits until it answers.
    ///
    /// # Errors
    ///
    /// [`PrivateRedisError::NotInstalled`], or [`PrivateRedisError::DoesNotStart`] with the end of its log.
    pub fn start(options: &PrivateRedisOptions) -> Result<Self, PrivateRedisError> {
        let dir = short_temp_dir()?;
        let port = options.tcp.then(ReservedPort::new).transpose()?;
        fs::write(
            dir.path().join("redis.conf"),
            config_file(dir.path(), port.as_ref().map(ReservedPort::get), options),
        )?;
        let mut redis = Self { running: None, port, environment: options.environment.clone(), dir };
        redis.launch()?;
        Ok(redis)
    }

    /// Its URL, over the Unix socket.
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// Its URL over TCP, if it was asked to listen there.
    pub fn tcp_url(&self) -> Option<String> {
        self.port.as_ref().map(|port| format!("redis://127.0.0.1:{}", port.get()))
    }

    /// The path of its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Its process, unless it is stopped.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.server.id())
    }

    /// Ends it the polite way, so that the append-only file is whole. Does nothing if it is stopped.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn stop(&mut self) -> Result<(), PrivateRedisError> {
        self.running.take().map_or(Ok(()), |running| running.end(Signal::TERM))
    }

    /// Kills it the hard way, as a crash would. Does nothing if it is stopped.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn kill_hard(&mut self) -> Result<(), PrivateRedisError> {
        self.running.take().map_or(Ok(()), |running| running.end(Signal::KILL))
    }

    /// Starts it again on the same socket, port and data; stops it first if it runs.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn restart(&mut self) -> Result<(), PrivateRedisError> {
        self.stop()?;
        self.launch()
    }

    /// Freezes it: connections stay open and nothing answers. Returns once it is frozen.
    ///
    /// # Errors
    ///
    /// [`PrivateRedisError::Stopped`], or the system's.
    pub fn pause(&self) -> Result<(), PrivateRedisError> {
        let pid = self.running.as_ref().ok_or(PrivateRedisError::Stopped)?.pid();
        kill_process(pid, Signal::STOP).map_err(io::Error::from)?;
        waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT).map_err(io::Error::from)?;
        Ok(())
    }

    /// Lets it go on after [`pause`](Self::pause).
    ///
    /// # Errors
    ///
    /// As [`pause`](Self::pause).
    pub fn resume(&self) -> Result<(), PrivateRedisError> {
        let pid = self.running.as_ref().ok_or(PrivateRedisError::Stopped)?.pid();
        Ok(kill_process(pid, Signal::CONT).map_err(io::Error::from)?)
    }

    fn launch(&mut self) -> Result<(), PrivateRedisError> {
        let program = env::var_os(SERVER_VARIABLE).unwrap_or_else(|| "redis-server".into());
        let server = Command::new(&program)
            .arg(self.dir.path().join("redis.conf"))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C is for us, and we still need the server to end in order.
            .process_group(0)
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => PrivateRedisError::NotInstalled(program.to_string_lossy().into_owned()),
                _ => error.into(),
            })?;
        let running = self.running.insert(Running::guarded(server, self.dir.path())?);

        let socket = self.dir.path().join("s");
        let deadline = Instant::now() + START_STOP_MAX;
        while !answers(&socket) {
            let ended = running.server.try_wait()?.is_some();
            if ended || Instant::now() >= deadline {
                return Err(PrivateRedisError::DoesNotStart(log_end(&self.dir.path().join("log"))));
            }
            std::thread::park_timeout(LOOK_EVERY);
        }
        Ok(())
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        // Nobody is left to tell; the guard is still there if this failed.
        let _ = self.stop();
    }
}

// === impl ReservedPort ===

impl ReservedPort {
    /// One that is free.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn new() -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        Ok(Self { port: socket.local_addr()?.port(), _socket: socket })
    }

    /// Its number.
    pub fn get(&self) -> u16 {
        self.port
    }
}

// === impl Running ===

impl Running {
    fn guarded(mut server: Child, dir: &Path) -> io::Result<Self> {
        let guard = Command::new("/bin/sh")
            .args(["-c", GUARD, "job-router-redis-guard", &server.id().to_string()])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        match guard {
            Ok(guard) => Ok(Self { server, guard }),
            Err(error) => {
                server.kill()?;
                server.wait()?;
                Err(error)
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.server)
    }

    /// Ends the server, by force if the signal does not within the limit, and then the guard: in this order,
    /// so that the server is guarded as long as it lives.
    fn end(mut self, signal: Signal) -> Result<(), PrivateRedisError> {
        if self.server.try_wait()?.is_none() {
            kill_process(self.pid(), signal).map_err(io::Error::from)?;
            // A frozen one would not hear the signal.
            kill_process(self.pid(), Signal::CONT).map_err(io::Error::from)?;
            let deadline = Instant::now() + START_STOP_MAX;
            while self.server.try_wait()?.is_none() {
                if Instant::now() >= deadline {
                    self.server.kill()?;
                }
                std::thread::park_timeout(LOOK_EVERY);
            }
        }
        self.guard.kill()?;
        self.guard.wait()?;
        Ok(())
    }
}

fn config_file(dir: &Path, port: Option<u16>, options: &PrivateRedisOptions) -> String {
    let (dir, port) = (dir.display(), port.unwrap_or(0));
    let append_only = if options.append_only { "yes" } else { "no" };
    let mut config = format!(
        "bind 127.0.0.1\nport {port}\nunixsocket {dir}/s\nunixsocketperm 700\ndir {dir}\nlogfile {dir}/log\n\
         save \"\"\nappendonly {append_only}\n\
         # Most buckets hold few entries: 1.9 kB each instead of 5.0 kB.\nstream-node-max-bytes 1024\n"
    );
    for line in &options.config {
        writeln!(config, "{line}").expect("a String takes all text");
    }
    config
}

/// A directory whose path leaves room for a socket: some systems have temporary directories with long names.
fn short_temp_dir() -> io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("jr-");
    let dir = builder.tempdir()?;
    if dir.path().join("s").as_os_str().len() <= SOCKET_PATH_MAX { Ok(dir) } else { builder.tempdir_in("/tmp") }
}

/// Whether the server behind a socket answers a PING, be it that it wants a password first.
fn answers(socket: &Path) -> bool {
    let ask = || -> io::Result<bool> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer)?;
        Ok(&answer == b"+PONG\r\n" || &answer == b"-NOAUTH")
    };
    ask().unwrap_or(false)
}

fn log_end(log: &Path) -> String {
    let log = fs::read_to_string(log).unwrap_or_default();
    let mut lines: Vec<_> = log.lines().rev().take(5).collect();
    lines.reverse();
    if lines.is_empty() {
        "it left no log; is a line of its configuration wrong?".to_owned()
    } else {
        lines.join(" / ")
    }
}
