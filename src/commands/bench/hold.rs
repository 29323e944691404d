//! A process that asks as GitLab Runners do: calls that are held, and a Rails that is told of their jobs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use job_router::proto::gitlab::GetJobRequest;
use job_router::proto::gitlab::job_router_client::JobRouterClient;
use job_router::redis::{Arg, Redis};
use rand::Rng;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use super::load::{Notes, REPORT, orders, told};
use super::records;
use crate::commands::connection::{self, RedisArgs};
use crate::commands::output;

/// A runner looks for work once in so long, its `check_interval`.
const TICK: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(long)]
    url: String,
    #[arg(long)]
    token_file: PathBuf,
    #[arg(long)]
    name: String,
    /// How many managers the runner has, all on the connection of this process.
    #[arg(long)]
    managers: u64,
    /// Calls that each manager makes at a time.
    #[arg(long)]
    slots: u32,
    /// How long a job lasts.
    #[arg(long)]
    job_us: u64,
    #[arg(long)]
    received: PathBuf,
    #[arg(long)]
    started: PathBuf,
    /// For how many calls were made, and how many of them failed.
    #[arg(long)]
    calls: PathBuf,
    #[command(flatten)]
    redis: RedisArgs,
}

/// What a payload says of its job.
#[derive(Deserialize)]
struct Job {
    id: u64,
    tenant: String,
    sent_ns: u64,
}

/// What all calls of the process share.
struct Shared {
    channel: Channel,
    token: SecretString,
    job_time: Duration,
    /// Where Rails publishes.
    rails: (Redis, String),
    notes: Notes,
    calls: AtomicU64,
    failed: AtomicU64,
}

/// Asks until the parent is gone.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let config = args.redis.config()?;
    let token = tokio::fs::read_to_string(&args.token_file).await.context("cannot read the token")?;
    let shared = Arc::new(Shared {
        channel: Endpoint::from_shared(args.url.clone())?.connect().await.context("the pod cannot be reached")?,
        token: token.into(),
        job_time: Duration::from_micros(args.job_us),
        rails: (connection::connect(&config).await?, config.inbox_stream.clone()),
        notes: Notes::default(),
        calls: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    });
    let mut asking = JoinSet::new();
    for manager in 0..args.managers {
        for _ in 0..args.slots {
            asking.spawn(ask(shared.clone(), format!("{}-{manager}", args.name)));
        }
    }
    output::line("ready")?;
    let mut orders = orders();
    loop {
        let asked = tokio::select! {
            asked = told(&mut orders, REPORT) => asked?,
            Some(ended) = asking.join_next() => return ended?,
        };
        if !asked {
            return Ok(());
        }
        shared.notes.write(&args.received, &args.started)?;
        let counts = [&shared.calls, &shared.failed].map(|count| count.load(Ordering::Relaxed));
        records::write(&args.calls, &[(0, counts[0]), (1, counts[1])])?;
        output::line("reported")?;
    }
}

/// One slot of a manager: asks, runs what it is given, and asks again at its next tick.
async fn ask(shared: Arc<Shared>, system_id: String) -> anyhow::Result<()> {
    let said = json!({ "info": { "version": "19.4.0", "features": {} }, "system_id": system_id });
    let bearer: tonic::metadata::MetadataValue<_> = format!("Bearer {}", shared.token.expose_secret()).parse()?;
    loop {
        let mut request = Request::new(GetJobRequest { job_request: said.to_string().into() });
        request.metadata_mut().insert("authorization", bearer.clone());
        shared.calls.fetch_add(1, Ordering::Relaxed);
        match JobRouterClient::new(shared.channel.clone()).get_job(request).await {
            Ok(answer) if answer.get_ref().job_response.is_empty() => {}
            Ok(answer) => shared.run(&serde_json::from_slice(&answer.get_ref().job_response)?).await?,
            Err(_) => {
                shared.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        let until_tick = rand::rng().random_range(Duration::ZERO..TICK);
        sleep(until_tick).await;
    }
}

// === impl Shared ===

impl Shared {
    async fn run(&self, job: &Job) -> anyhow::Result<()> {
        self.notes.note(job.id, job.sent_ns);
        self.tell_rails("job.running", json!({ "id": job.id, "tenant": job.tenant })).await?;
        sleep(self.job_time).await;
        self.tell_rails("job.finished", json!({ "id": job.id, "tenant": job.tenant, "status": "success" })).await
    }

    async fn tell_rails(&self, kind: &str, data: serde_json::Value) -> anyhow::Result<()> {
        let (redis, inbox) = &self.rails;
        let data = data.to_string();
        let fields = [inbox.as_str(), "*", "v", "1", "type", kind, "data", &data].map(Arg::from);
        let id = redis.command("XADD", fields).await?;
        ensure!(id.as_str().is_ok(), "an entry has an id");
        Ok(())
    }
}
