//! Processes for `dev`, `bench` and `demo`: a private Redis, pods, registered runners, and other children.
//!
//! No child outlives its parent, whatever ends the parent: each child's standard input is a pipe that we hold, and it ends
//! in good order when the pipe closes ([`end_with_stdin`]). Children are in process groups of their own, so that
//! Ctrl-C reaches only the parent, which still needs them to end in order.

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use job_router::config::Config;
use job_router::redis::{PrivateRedis, PrivateRedisOptions, Redis};
use rustix::process::{Pid, Signal, getpid, kill_process};
use secrecy::ExposeSecret;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::connection::{self, RedisArgs};
use super::runner_add::{self, RunnerArgs};

/// What a pod logs, with its addresses, once it has bound them.
pub(super) const LISTENING: &str = "pod listening";
/// What a pod logs here: that, and what is wrong; not that a Redis of ours keeps nothing. A line for each job would be a cost of its own.
const POD_LOG: &str = "warn,job_router::commands=info,job_router::health=off";
/// How long a pod may drain: at the end of a run its runners are gone, or past help.
const POD_DRAIN_MAX: &str = "2s";
/// What makes the scripts of a pod those of another version.
const SCRIPTS_NOTE: &str = "TEST_SCRIPTS_NOTE";
/// The most of an answer of an admin server that is read.
const PAGE_MAX: u64 = 1 << 20;
/// How long a pod may take to be ready, on a busy machine.
const READY_MAX: Duration = Duration::from_secs(20);
/// How often to look whether it is.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long a process whose parent is gone may take to end in good order.
const END_MAX: Duration = Duration::from_secs(10);
/// How long a child may take to end in good order before it is killed.
const CHILD_END_MAX: Duration = Duration::from_secs(20);

/// A Redis to play with, and the configuration that leads to it.
pub(super) struct Rig {
    /// A connection to it.
    pub(super) redis: Redis,
    /// The configuration of its pods.
    pub(super) config: Box<Config>,
    /// The flags that lead to it.
    pub(super) args: RedisArgs,
    /// For files of the run.
    pub(super) scratch: TempDir,
    // Last: its directory holds the others'.
    private: Option<PrivateRedis>,
}

/// A pod in a process of its own.
pub(super) struct Pod {
    /// Where runners connect.
    pub(super) grpc_url: String,
    admin: SocketAddr,
    child: Child,
    log: JoinHandle<()>,
}

/// A process of this executable.
pub(super) struct Child {
    name: String,
    process: tokio::process::Child,
    stdin: Option<ChildStdin>,
    stdout: Option<tokio::io::Lines<BufReader<ChildStdout>>>,
}

/// A runner that was registered.
pub(super) struct Registered {
    /// Its id.
    pub(super) id: u64,
    /// The file with its token.
    pub(super) token_file: PathBuf,
}

/// The line that a pod logs.
#[derive(Deserialize)]
struct LogLine {
    level: String,
    message: String,
    grpc: Option<SocketAddr>,
    admin: Option<SocketAddr>,
}

/// Ends this process in good order, as SIGTERM does, when its standard input closes; by force if that takes too long.
pub(super) fn end_with_stdin() {
    let watch = || {
        let mut stdin = std::io::stdin().lock();
        while stdin.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
        // It is our own process: the signal can only fail if it ends already.
        let _ = kill_process(getpid(), Signal::TERM);
        std::thread::park_timeout(END_MAX);
        std::process::exit(1);
    };
    // A thread of its own: a read of stdin cannot be given up.
    std::thread::spawn(watch);
}

// === impl Rig ===

impl Rig {
    /// On the Redis at `url`, under keys of its own; or, without one, on a private Redis.
    pub(super) async fn start(url: Option<&str>, append_only: bool) -> anyhow::Result<Self> {
        let mut private = None;
        let mut args = RedisArgs::default();
        if let Some(url) = url {
            let name = format!("bench-{:08x}", rand::random::<u32>());
            args.redis_url = Some(url.to_owned());
            args.inbox = Some(format!("{name}:inbox"));
            args.key_prefix = Some(name);
        } else {
            let options = PrivateRedisOptions { append_only, ..Default::default() };
            let server = tokio::task::spawn_blocking(move || PrivateRedis::start(&options)).await??;
            args.redis_url = Some(server.url());
            private = Some(server);
        }
        // Without the user's variables: a benchmark measures what its flags say.
        let config = Box::new(connection::config_of(&args.flags(), [])?);
        let redis = connection::connect(&config).await?;
        // In the directory of the private Redis: its guard removes that, whatever ends us.
        let dir = private.as_ref().and_then(|server| server.socket().parent().map(Path::to_owned));
        let dir = dir.unwrap_or_else(std::env::temp_dir);
        let scratch = tempfile::Builder::new().prefix("jr-run-").tempdir_in(dir).context("no temporary directory")?;
        Ok(Self { redis, config, args, scratch, private })
    }

    /// The event stream of the one partition.
    pub(super) fn events(&self) -> String {
        format!("{}events", connection::keys(&self.config).partition(0))
    }

    /// Starts a pod and waits until it is ready.
    pub(super) async fn pod(&self, number: usize) -> anyhow::Result<Pod> {
        Pod::start(&self.args.flags(), number, POD_DRAIN_MAX, None).await
    }

    /// Registers a runner, with a token in a file.
    pub(super) async fn register(&self, id: u64, runner: &RunnerArgs) -> anyhow::Result<Registered> {
        let token = runner_add::new_token();
        let token_file = self.scratch.path().join(format!("token-{id}"));
        tokio::fs::write(&token_file, token.expose_secret()).await.context("cannot write a token")?;
        runner_add::append(&self.redis, &self.config.inbox_stream, &runner.upserted(id, &token)?).await?;
        Ok(Registered { id, token_file })
    }

    /// Forgets all keys of this run on a Redis that is not private, and ends a private one.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        if let Some(private) = self.private {
            self.redis.quit().await;
            return Ok(tokio::task::spawn_blocking(move || drop(private)).await?);
        }
        let mut cursor = "0".to_owned();
        let name = self.config.key_prefix.as_str();
        loop {
            let pattern = format!("*{name}:*");
            let args = [cursor.as_str(), "MATCH", &pattern, "COUNT", "1000"].map(Into::into);
            let [next, keys] = self.redis.command("SCAN", args).await?.into_tuple()?;
            for key in keys.into_array()? {
                self.redis.command("UNLINK", [key.into_bytes()?.into()]).await?;
            }
            next.as_str()?.clone_into(&mut cursor);
            if cursor == "0" {
                break;
            }
        }
        self.redis.quit().await;
        Ok(())
    }
}

// === impl Pod ===

impl Pod {
    /// Starts one with these flags of Redis that may take so long to drain, with scripts of another version if there is a
    /// `note` on them; waits until it is ready.
    pub(super) async fn start(
        redis: &[String],
        number: usize,
        drain: &str,
        note: Option<&str>,
    ) -> anyhow::Result<Self> {
        let name = format!("pod-{number}");
        let mut args = vec!["serve".to_owned()];
        args.extend_from_slice(redis);
        args.extend(["--grpc-listen=127.0.0.1:0".to_owned(), "--admin-listen=127.0.0.1:0".to_owned()]);
        args.extend([format!("--pod-id={name}"), "--log-format=json".to_owned(), format!("--log={POD_LOG}")]);
        // Its Redis is new, and no runner is left over from before.
        args.extend([format!("--drain-timeout={drain}"), "--rebuild-hold=0s".to_owned()]);
        let variables: Vec<_> = note.map(|note| (SCRIPTS_NOTE, note)).into_iter().collect();
        let mut child = Child::spawn_with(&name, &args, &variables, true)?;
        let stderr = child.process.stderr.take().expect("it is piped");
        let mut lines = BufReader::new(stderr).lines();
        let deadline = Instant::now() + READY_MAX;
        let (grpc, admin) = timeout(READY_MAX, addresses(&name, &mut lines))
            .await
            .with_context(|| format!("{name} did not listen within {READY_MAX:?}"))??;
        let log = tokio::spawn(forward(name.clone(), lines));
        while !is_ready(admin).await {
            if let Some(status) = child.process.try_wait()? {
                bail!("{name} ended ({status}) before it was ready");
            }
            if Instant::now() >= deadline {
                bail!("{name} was not ready within {READY_MAX:?}");
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(Self { grpc_url: format!("http://{grpc}"), admin, child, log })
    }

    /// How many runners are connected to it.
    pub(super) async fn sessions(&self) -> anyhow::Result<usize> {
        let page = timeout(READY_MAX, get(self.admin, "/metrics")).await.context("no metrics in time")??;
        let line = page.lines().find_map(|line| line.strip_prefix("job_router_sessions "));
        line.and_then(|number| number.parse().ok()).context("metrics are of another version")
    }

    /// Sends it a signal, and waits until it has ended. An error if a SIGTERM does not end it well.
    pub(super) async fn signal(mut self, signal: Signal) -> anyhow::Result<()> {
        let pid =
            self.pid().and_then(|pid| Pid::from_raw(pid.try_into().ok()?)).context("a pod has ended by itself")?;
        kill_process(pid, signal)?;
        let status = self.child.process.wait().await?;
        self.log.await?;
        anyhow::ensure!(signal == Signal::KILL || status.success(), "a pod ended with {status}");
        Ok(())
    }

    /// Its process.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.process.id()
    }

    /// Ends it, and waits until it has.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        let ended = self.child.end().await;
        self.log.await?;
        ended
    }
}

/// The addresses of a pod, from its log.
async fn addresses(
    name: &str,
    lines: &mut tokio::io::Lines<BufReader<ChildStderr>>,
) -> anyhow::Result<(SocketAddr, SocketAddr)> {
    let mut last = String::new();
    while let Some(text) = lines.next_line().await? {
        match serde_json::from_str(&text) {
            Ok(LogLine { message, grpc: Some(grpc), admin: Some(admin), .. }) if message == LISTENING => {
                return Ok((grpc, admin));
            }
            _ => last = text,
        }
    }
    bail!("{name} ended at once: {last}")
}

/// Passes on what a pod complains about, until it ends.
async fn forward(name: String, mut lines: tokio::io::Lines<BufReader<ChildStderr>>) {
    while let Ok(Some(text)) = lines.next_line().await {
        if serde_json::from_str(&text).map_or(true, |line: LogLine| line.level != "INFO") {
            eprintln!("{name}: {text}");
        }
    }
}

/// Whether `/readyz` says yes.
async fn is_ready(admin: SocketAddr) -> bool {
    let answer = timeout(Duration::from_secs(1), get(admin, "/readyz")).await;
    matches!(answer, Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200"))
}

/// What the admin server answers, with its head.
async fn get(admin: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(admin).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(PAGE_MAX).read_to_string(&mut answer).await?;
    Ok(answer)
}

// === impl Child ===

impl Child {
    /// Starts this executable with these arguments. Its stderr is ours, or piped.
    pub(super) fn spawn(name: &str, args: &[String], pipe_stderr: bool) -> anyhow::Result<Self> {
        Self::spawn_with(name, args, &[], pipe_stderr)
    }

    fn spawn_with(name: &str, args: &[String], variables: &[(&str, &str)], pipe_stderr: bool) -> anyhow::Result<Self> {
        let executable = std::env::current_exe().context("cannot find this executable")?;
        let mut command = Command::new(executable);
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("JOB_ROUTER_")) {
            command.env_remove(variable);
        }
        command
            .args(args)
            .envs(variables.iter().copied())
            .arg("--end-with-stdin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(if pipe_stderr { Stdio::piped() } else { Stdio::inherit() })
            .process_group(0)
            .kill_on_drop(true);
        let mut process = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let stdin = process.stdin.take();
        let stdout = process.stdout.take().map(|stdout| BufReader::new(stdout).lines());
        Ok(Self { name: name.to_owned(), process, stdin, stdout })
    }

    /// The next line it prints.
    pub(super) async fn line(&mut self) -> anyhow::Result<String> {
        let stdout = self.stdout.as_mut().expect("it is piped");
        stdout.next_line().await?.with_context(|| format!("{} ended early", self.name))
    }

    /// Sends it a line.
    pub(super) async fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let stdin = self.stdin.as_mut().expect("it is piped, and closed only at the end");
        let told = stdin.write_all(format!("{line}\n").as_bytes()).await;
        told.with_context(|| format!("{} is gone", self.name))
    }

    /// Ends it in good order, by force if it takes too long. An error if it does not end well.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        drop(self.stdin.take());
        let Ok(status) = timeout(CHILD_END_MAX, self.process.wait()).await else {
            self.process.kill().await?;
            bail!("{} did not end within {CHILD_END_MAX:?}", self.name);
        };
        let status = status?;
        if !status.success() {
            bail!("{} ended with {status}", self.name);
        }
        Ok(())
    }
}

/// CPU time that a process has used so far, in its own and in the kernel's code.
pub(super) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    // USER_HZ: what Linux promises to user space on every architecture we run on, whatever the kernel's own clock.
    const TICK: Duration = Duration::from_millis(10);
    let path = Path::new("/proc").join(pid.to_string()).join("stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    // The name in brackets may hold anything; after it, utime and stime are the 12th and 13th.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u32>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).with_context(|| format!("{} is malformed", path.display()))?;
    Ok(TICK * (user + system))
}
