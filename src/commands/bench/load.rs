//! The load processes: `job-router bench-load publish | hop | run | hold`, children of a benchmark.
//!
//! Each prints `ready`, then does what it is told by lines on its stdin, and answers with one line. The client of Redis
//! and the runner's library are those that anybody would use.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use job_router::client::{self, Assignment, Executor, JobContext, Options, Outcome, Reason, Shutdown};
use job_router::job::Name;
use job_router::redis::{Arg, BLOCK_MAX, ReadFrom};
use rand::Rng;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::hold;
use super::records::{self, now_ns};
use crate::commands::connection::{self, RedisArgs};
use crate::commands::output;

/// Entries on their way at once.
const IN_FLIGHT_MAX: usize = 512;
/// A job of which a grain of 1 ms is little; very many of them may run at once.
const LONG: Duration = Duration::from_millis(100);
/// How long a runner may take to end, with thousands of managers perhaps; less than its parent waits.
const END_MAX: Duration = Duration::from_secs(15);
/// The line that begins the publishing.
pub(super) const GO: &str = "go";
/// The line that asks for the records.
pub(super) const REPORT: &str = "report";

/// A process of a benchmark; not for people.
#[derive(Debug, clap::Args)]
pub(in crate::commands) struct Args {
    #[command(subcommand)]
    command: Load,
}

#[derive(Debug, clap::Subcommand)]
enum Load {
    /// Publishes jobs; with --hop-stream, raw entries too.
    Publish(PublishArgs),
    /// Reads raw entries.
    Hop(HopArgs),
    /// Runs jobs.
    Run(RunArgs),
    /// Asks for jobs as GitLab Runners do.
    Hold(hold::Args),
}

#[derive(Debug, clap::Args)]
struct PublishArgs {
    #[arg(long)]
    first_id: u64,
    #[arg(long)]
    jobs: u64,
    /// Jobs a second, at random times; 0: as fast as they go.
    #[arg(long)]
    rate: f64,
    #[arg(long)]
    tenants: u64,
    /// The first of the tenants.
    #[arg(long, default_value_t = 1)]
    first_tenant: u64,
    /// All jobs of a tenant before the next one's; else tenants take turns.
    #[arg(long)]
    in_blocks: bool,
    /// Of each tenant.
    #[arg(long)]
    projects: u64,
    #[arg(long)]
    payload_bytes: usize,
    #[arg(long)]
    hop_stream: Option<String>,
    #[command(flatten)]
    redis: RedisArgs,
}

#[derive(Debug, clap::Args)]
struct HopArgs {
    #[arg(long)]
    stream: String,
    #[arg(long)]
    records: PathBuf,
    #[command(flatten)]
    redis: RedisArgs,
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    #[arg(long)]
    url: String,
    #[arg(long)]
    token_file: PathBuf,
    #[arg(long)]
    name: Name,
    /// How many managers the runner has, all in this process.
    #[arg(long, default_value_t = 1)]
    managers: u64,
    /// Of each manager.
    #[arg(long)]
    slots: u32,
    /// How long a job lasts.
    #[arg(long, default_value_t = 0)]
    job_us: u64,
    #[arg(long)]
    received: PathBuf,
    #[arg(long)]
    started: PathBuf,
    /// For each manager's longest time without a session.
    #[arg(long)]
    away: PathBuf,
}

/// The lines of the parent; closed when it is gone.
pub(super) type Orders = mpsc::Receiver<std::io::Result<Vec<u8>>>;

/// What the publisher did.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Published {
    /// The first job's entry.
    pub(super) first_entry: String,
    pub(super) jobs: u64,
    /// From the first `XADD` to the last answer.
    pub(super) seconds: f64,
}

/// The head of every payload here.
#[derive(Deserialize)]
struct Sent {
    sent_ns: u64,
}

/// Ends every job after its time, and notes what it saw.
#[derive(Clone)]
struct Noting {
    notes: Arc<Notes>,
    job_time: Duration,
}

/// (job, ns from its publishing) of each job received, and of each one started.
#[derive(Default)]
pub(super) struct Notes {
    received: Mutex<Vec<(u64, u64)>>,
    started: Mutex<Vec<(u64, u64)>>,
}

/// Does one process's part.
pub(in crate::commands) async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Load::Publish(args) => publish(args).await,
        Load::Hop(args) => hop(args).await,
        Load::Run(args) => run_jobs(args).await,
        Load::Hold(args) => hold::run(args).await,
    }
}

async fn publish(args: PublishArgs) -> anyhow::Result<()> {
    let config = args.redis.config()?;
    let redis = connection::connect(&config).await?;
    output::line("ready")?;
    let mut orders = orders();
    ensure!(told(&mut orders, GO).await?, "the parent is gone");
    let begun = Instant::now();
    let mut due = begun;
    let mut first_entry = None;
    let mut replies = FuturesOrdered::new();
    let streams = [Some(&config.inbox_stream), args.hop_stream.as_ref()];
    let streams: Vec<&String> = streams.into_iter().flatten().collect();
    for turn in 0..args.jobs * streams.len() as u64 {
        // Jobs and raw entries take turns, so that both meet the same machine.
        let (nth, to_hop) = (turn / streams.len() as u64, turn % streams.len() as u64 == 1);
        if args.rate > 0.0 {
            // Exponential gaps: arrivals at random, not in step with anything.
            let gap = -(1.0 - rand::rng().random::<f64>()).ln() / (args.rate * streams.len() as f64);
            due += Duration::from_secs_f64(gap);
        }
        while replies.len() >= IN_FLIGHT_MAX || (args.rate > 0.0 && Instant::now() < due) {
            tokio::select! {
                biased;
                Some(reply) = replies.next(), if !replies.is_empty() => answered(reply, &mut first_entry)?,
                () = sleep_until(due), if replies.len() < IN_FLIGHT_MAX => {}
                None = orders.recv() => bail!("the parent is gone"),
            }
        }
        let data = args.data(args.first_id + nth);
        let kind = if to_hop { "hop" } else { "job.pending" };
        let stream = if to_hop { streams[1] } else { streams[0] };
        let fields: [Arg; 8] = [stream, "*", "v", "1", "type", kind, "data", &data].map(Arg::from);
        let call = redis.command("XADD", fields);
        replies.push_back(async move { (to_hop, call.await) });
    }
    while let Some(reply) = replies.next().await {
        answered(reply, &mut first_entry)?;
    }
    let first_entry = first_entry.context("nothing was published")?;
    let published = Published { first_entry, jobs: args.jobs, seconds: begun.elapsed().as_secs_f64() };
    output::line(&serde_json::to_string(&published)?)
}

fn answered(
    (to_hop, reply): (bool, Result<job_router::redis::Reply, job_router::redis::RedisError>),
    first_entry: &mut Option<String>,
) -> anyhow::Result<()> {
    let id = reply.context("a job may not have been published")?;
    if first_entry.is_none() && !to_hop {
        *first_entry = Some(id.as_str()?.to_owned());
    }
    Ok(())
}

/// Reads raw entries as the router reads its inbox: blocked, through a group.
async fn hop(args: HopArgs) -> anyhow::Result<()> {
    let config = args.redis.config()?;
    let redis = connection::connect(&config).await?;
    let mut reader = redis.reader();
    reader.read_group(&args.stream, "hop", "hop", 1, None, ReadFrom::New).await?; // makes the group
    output::line("ready")?;
    let mut orders = orders();
    let report = told(&mut orders, REPORT);
    tokio::pin!(report);
    let mut seen = Vec::new();
    loop {
        let entries = tokio::select! {
            entries = reader.read_group(&args.stream, "hop", "hop", 256, Some(BLOCK_MAX), ReadFrom::New) => entries?,
            _ = &mut report => break,
        };
        let now = now_ns();
        for entry in entries {
            let data = entry.field("data").context("an entry without data")?;
            seen.push((
                seen.len() as u64,
                now.saturating_sub(serde_json::from_slice::<Sent>(data_payload(data)?)?.sent_ns),
            ));
        }
    }
    records::write(&args.records, &seen)?;
    output::line("reported")
}

/// The payload stands last in the data that we make.
fn data_payload(data: &[u8]) -> anyhow::Result<&[u8]> {
    let marker = b"\"payload\":";
    let at = data.windows(marker.len()).position(|window| window == marker).context("no payload")?;
    Ok(&data[at + marker.len()..data.len() - 1])
}

async fn run_jobs(args: RunArgs) -> anyhow::Result<()> {
    let token = tokio::fs::read_to_string(&args.token_file).await.context("cannot read the token")?;
    let shutdown = Shutdown::default();
    let notes = Arc::new(Notes::default());
    let executor = Noting { notes: Arc::clone(&notes), job_time: Duration::from_micros(args.job_us) };
    let mut managers = JoinSet::new();
    for number in 0..args.managers {
        let name = Name::new(&format!("{}-{number}", args.name))?;
        let options = Options::new(args.url.clone(), token.clone().into(), name, args.slots);
        let manager = client::run(options, executor.clone(), shutdown.clone());
        managers.spawn(async move { (number, manager.await) });
    }
    output::line("ready")?;
    let mut orders = orders();
    loop {
        let asked = tokio::select! {
            asked = told(&mut orders, REPORT) => asked?,
            Some(ended) = managers.join_next() => anyhow::bail!("a manager ended: {:?}", ended?),
        };
        if !asked {
            break;
        }
        notes.write(&args.received, &args.started)?;
        output::line("reported")?;
    }
    shutdown.stop.cancel();
    // Where the pod is gone too, the runner would repeat its outcomes for long.
    let ended = timeout(END_MAX, managers.join_all()).await.context("the runner did not end")?;
    let mut away = Vec::new();
    for (number, summary) in ended {
        away.push((number, summary?.longest_away.as_nanos() as u64));
    }
    records::write(&args.away, &away)
}

/// Waits on this thread for as long as a job lasts, to about 0.1 ms.
fn last(job_time: Duration) {
    let begun = std::time::Instant::now();
    while let Some(left) = job_time.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

pub(super) fn orders() -> Orders {
    output::lines_of(BufReader::new(std::io::stdin()))
}

/// Waits for this line; false when the parent is gone.
pub(super) async fn told(orders: &mut Orders, order: &str) -> anyhow::Result<bool> {
    while let Some(line) = orders.recv().await {
        if line? == order.as_bytes() {
            return Ok(true);
        }
    }
    Ok(false)
}

// === impl Published ===

impl Published {
    /// When the first job came to the inbox, in Unix ms of Redis' clock.
    pub(super) fn first_ms(&self) -> anyhow::Result<u64> {
        self.first_entry.split('-').next().unwrap_or_default().parse().context("an entry id is malformed")
    }
}

// === impl PublishArgs ===

impl PublishArgs {
    /// The data of one job, stamped with now.
    fn data(&self, id: u64) -> String {
        let (turn, nth) = if self.in_blocks {
            let of_each = self.jobs.div_ceil(self.tenants);
            ((id - self.first_id) / of_each, (id - self.first_id) % of_each)
        } else {
            (id % self.tenants, id / self.tenants)
        };
        let tenant = self.first_tenant + turn;
        let project = tenant * 10_000 + nth % self.projects;
        let head = format!(
            r#"{{"id":{id},"project_id":{project},"namespace_ids":[{tenant}],"tags":["bench"],"payload":{{"id":{id},"tenant":"ns:{tenant}","sent_ns":{},"pad":""#,
            now_ns()
        );
        let about = r#"{"id":,"tenant":"ns:","sent_ns":,"pad":""}"#.len() + 25;
        let pad = self.payload_bytes.saturating_sub(about);
        let mut data = String::with_capacity(head.len() + pad + 3);
        data += &head;
        data.extend(std::iter::repeat_n('x', pad));
        data + "\"}}"
    }
}

// === impl Notes ===

impl Notes {
    /// A job that was received and started at once.
    pub(super) fn note(&self, id: u64, sent_ns: u64) {
        let note = (id, now_ns().saturating_sub(sent_ns));
        for list in [&self.received, &self.started] {
            list.lock().unwrap_or_else(PoisonError::into_inner).push(note);
        }
    }

    pub(super) fn write(&self, received: &Path, started: &Path) -> anyhow::Result<()> {
        records::write(received, &self.received.lock().unwrap_or_else(PoisonError::into_inner))?;
        records::write(started, &self.started.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl Noting ===

impl Noting {
    fn note(list: &Mutex<Vec<(u64, u64)>>, assignment: &Assignment) -> Result<(), Reason> {
        let now = now_ns();
        let sent: Sent = serde_json::from_slice(&assignment.payload).map_err(|_| Reason::UNSUPPORTED)?;
        let note = (assignment.lease.job_id.0, now.saturating_sub(sent.sent_ns));
        list.lock().unwrap_or_else(PoisonError::into_inner).push(note);
        Ok(())
    }
}

impl Executor for Noting {
    fn accept(&self, assignment: &Assignment) -> Result<(), Reason> {
        Self::note(&self.notes.received, assignment)
    }

    async fn run(&self, job: JobContext) -> Outcome {
        match Self::note(&self.notes.started, &job.assignment) {
            Ok(()) => {
                if self.job_time >= LONG {
                    tokio::time::sleep(self.job_time).await;
                } else if !self.job_time.is_zero() {
                    // In a thread of its own: tokio's timer has a grain of 1 ms, which is much of a short job.
                    let job_time = self.job_time;
                    tokio::task::spawn_blocking(move || last(job_time)).await.expect("it does not panic");
                }
                Outcome::success()
            }
            Err(reason) => Outcome::failed(1, reason),
        }
    }
}
