//! `job-router demo`: see it work, with real processes and real jobs, in about 15 s.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use job_router::contract::Entry;
use serde_json::json;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::bench::{self, Percentiles, percentiles};
use super::ledger::Ledger;
use super::output;
use super::rig::{Child, Pod, Rig};
use super::runner_add::{self, RunnerArgs};

/// How long the quiet tenants publish.
const PUBLISH_FOR: Duration = Duration::from_secs(14);
/// When the flood comes.
const FLOOD_AFTER: Duration = Duration::from_secs(2);
/// How many jobs it is, spread over so many projects to get more than a share.
const FLOOD_JOBS: u64 = 1_200;
const FLOOD_PROJECTS: u64 = 20;
/// One job of each quiet tenant each.
const QUIET_EVERY: Duration = Duration::from_millis(200);
/// What each job does.
const SCRIPT: &str = "echo building; sleep 0.1";
/// Jobs at once on each runner.
const SLOTS: u32 = 10;
/// How long the jobs left at the end may take: the flood itself takes some 8 s.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// How long a runner may take to run its first job.
const CONNECT_MAX: Duration = Duration::from_secs(20);

/// See it work: a Redis, a pod, two runners and four tenants, in about 15 seconds
///
/// Jobs really run, with bash. One tenant floods the queue: watch the others not wait. Needs redis-server and bash.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  job-router demo")]
pub(super) struct Args {}

/// A tenant of the demo.
struct Tenant {
    name: &'static str,
    tags: &'static [&'static str],
    /// The job that fails, by its number.
    fails: Option<u64>,
}

const FLOODER: Tenant = Tenant { name: "umbrella", tags: &["linux"], fails: None };
const QUIET: [Tenant; 3] = [
    Tenant { name: "acme", tags: &["linux"], fails: Some(7) },
    Tenant { name: "globex", tags: &["linux", "docker"], fails: Some(11) },
    Tenant { name: "initech", tags: &[], fails: None },
];

/// What was published.
struct Job {
    tenant: &'static str,
    fails: bool,
    published_at_ms: u64,
}

/// The demo as it goes.
struct Demo {
    rig: Rig,
    ledger: Ledger,
    jobs: HashMap<u64, Job>,
    line: ProgressBar,
    begun: Instant,
    told: Instant,
}

/// Runs the demo.
pub(super) async fn run(_: Args, stop: CancellationToken) -> anyhow::Result<()> {
    bench::until(stop, Box::pin(play())).await
}

async fn play() -> anyhow::Result<()> {
    eprintln!("starting a private redis, one pod and two runners");
    let rig = Rig::start(None, false).await?;
    let pod = rig.pod(0).await?;
    let runners = [
        runner(&rig, &pod, 1, &["linux", "runner-1"]).await?,
        runner(&rig, &pod, 2, &["linux", "docker", "runner-2"]).await?,
    ];
    let ledger = Ledger::new(rig.redis.clone(), rig.events());
    let style = ProgressStyle::with_template("{spinner} {msg}").expect("a sound template");
    let line = ProgressBar::new_spinner().with_style(style);
    let now = Instant::now();
    let mut demo = Demo { rig, ledger, jobs: HashMap::new(), line, begun: now, told: now };
    timeout(CONNECT_MAX, demo.greet()).await.context("a runner ran no job: see the complaints above")??;

    eprintln!(
        "runner 1 has the tag linux, runner 2 linux and docker, {SLOTS} slots each; acme, globex and initech publish a \
         job every {QUIET_EVERY:?} each; after {FLOOD_AFTER:?}, umbrella floods {FLOOD_JOBS} at once"
    );
    demo.publish().await?;
    demo.drain().await?;
    demo.line.finish_and_clear();
    let checked = demo.report();
    for runner in runners {
        runner.end().await?;
    }
    pod.end().await?;
    demo.rig.end().await?;
    checked
}

async fn runner(rig: &Rig, pod: &Pod, id: u64, tags: &[&str]) -> anyhow::Result<Child> {
    let registered = rig.register(id, &RunnerArgs::with_tags(tags)).await?;
    let args = [
        "runner".to_owned(),
        format!("--url={}", pod.grpc_url),
        format!("--token-file={}", registered.token_file.display()),
        format!("--slots={SLOTS}"),
        format!("--name=runner-{id}"),
        format!("--log-dir={}", rig.scratch.path().join("logs").display()),
        "--log=warn".to_owned(),
    ];
    Child::spawn(&format!("runner {}", registered.id), &args, false)
}

// === impl Demo ===

impl Demo {
    /// One job for each runner that no other may take: both are connected then, and nothing is measured cold.
    async fn greet(&mut self) -> anyhow::Result<()> {
        for id in [1, 2] {
            self.append(id, "greeting", &[&format!("runner-{id}")], 1, "true").await?;
        }
        while self.ledger.ended() < 2 {
            sleep(Duration::from_millis(20)).await;
            self.ledger.read().await?;
        }
        Ok(())
    }

    async fn publish(&mut self) -> anyhow::Result<()> {
        self.begun = Instant::now();
        let mut flood_is_due = true;
        let mut ticks = interval(QUIET_EVERY);
        let mut id = 100;
        for turn in 0_u64.. {
            ticks.tick().await;
            if self.begun.elapsed() >= PUBLISH_FOR {
                break;
            }
            for (project, tenant) in (1..).zip(QUIET) {
                id += 1;
                self.job(id, &tenant, project, turn).await?;
            }
            if flood_is_due && self.begun.elapsed() >= FLOOD_AFTER {
                flood_is_due = false;
                for number in 0..FLOOD_JOBS {
                    id += 1;
                    self.job(id, &FLOODER, 100 + number % FLOOD_PROJECTS, number).await?;
                }
            }
            self.show().await?;
        }
        Ok(())
    }

    async fn drain(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + DRAIN_MAX;
        while self.ledger.ended() < self.jobs.len() as u64 + 2 && Instant::now() < deadline {
            sleep(Duration::from_millis(100)).await;
            self.show().await?;
        }
        Ok(())
    }

    async fn job(&mut self, id: u64, tenant: &Tenant, project: u64, number: u64) -> anyhow::Result<()> {
        let fails = tenant.fails == Some(number);
        let script = if fails { "echo this one fails on purpose; exit 1" } else { SCRIPT };
        let published_at_ms = self.append(id, tenant.name, tenant.tags, project, script).await?;
        self.jobs.insert(id, Job { tenant: tenant.name, fails, published_at_ms });
        Ok(())
    }

    /// Publishes a job; answers when, in Unix ms of Redis' clock.
    async fn append(&self, id: u64, tenant: &str, tags: &[&str], project: u64, script: &str) -> anyhow::Result<u64> {
        let payload = json!({ "id": id, "steps": [{ "name": "script", "script": [script] }] });
        let data = json!({ "id": id, "project_id": project, "tenant": tenant, "tags": tags, "payload": payload });
        let line = json!({ "type": "job.pending", "data": data }).to_string();
        let entry = Entry::from_line(&line).expect("a line in the shape that from_line documents");
        let entry_id = runner_add::append(&self.rig.redis, &self.rig.config.inbox_stream, &entry).await?;
        entry_id.split('-').next().unwrap_or_default().parse().context("an entry id that is none")
    }

    /// The live line: in place on a terminal, else one every two seconds.
    async fn show(&mut self) -> anyhow::Result<()> {
        self.ledger.read().await?;
        let finished = self.ledger.ended() - 2;
        let per_s = finished as f64 / self.begun.elapsed().as_secs_f64().max(0.1);
        let (published, running) = (self.jobs.len(), self.ledger.running());
        let text = format!("published {published}  running {running}  finished {finished}  ({per_s:.0} jobs/s)");
        if std::io::stderr().is_terminal() {
            self.line.set_message(text);
            self.line.tick();
        } else if self.told.elapsed() >= Duration::from_secs(2) {
            self.told = Instant::now();
            eprintln!("{text}");
        }
        Ok(())
    }

    /// Prints the table. An error if a job was lost, run twice, or ended as it should not.
    fn report(&self) -> anyhow::Result<()> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let (mut lost, mut doubled, mut wrong) = (0, 0, 0);
        for (id, job) in &self.jobs {
            let life = self.ledger.life(*id);
            lost += u64::from(life.ended == 0);
            doubled += u64::from(life.ended > 1 || life.started > 1);
            wrong += u64::from(life.ended > 0 && life.succeeded == job.fails);
        }
        let mut table = output::table(&["tenant", "jobs", "success", "failed", "wait p50", "p99", "longest"]);
        for name in QUIET.iter().map(|tenant| tenant.name).chain([FLOODER.name]) {
            table.add_row(self.row(name, |job| job.tenant == name));
        }
        table.add_row(self.row("all", |_| true));
        output::print(&table)?;
        let quiet_longest_ms = self.waits_ns(|job| job.tenant != FLOODER.name).max().unwrap_or(0) / 1_000_000;
        let failing = self.jobs.values().filter(|job| job.fails).count();
        output::line(&format!(
            "\nWait: from XADD until the runner was told to start, by Redis' clock. umbrella's {FLOOD_JOBS} jobs came at \
             once, from {FLOOD_PROJECTS} projects;\nno job of the others waited longer than {quiet_longest_ms} ms. \
             {failing} jobs fail on purpose. {} jobs in {seconds:.1} s, {lost} lost, {doubled} run twice.",
            self.jobs.len()
        ))?;
        ensure!(lost == 0, "{lost} jobs have no end on the event stream after {DRAIN_MAX:?}");
        ensure!(doubled == 0, "{doubled} jobs were run twice");
        ensure!(wrong == 0, "{wrong} jobs ended as they should not");
        Ok(())
    }

    fn row(&self, name: &str, of: impl Fn(&Job) -> bool) -> Vec<String> {
        let lives: Vec<_> =
            self.jobs.iter().filter(|(_, job)| of(job)).map(|(id, job)| (job, self.ledger.life(*id))).collect();
        let count =
            |of: fn(&super::ledger::Life) -> bool| lives.iter().filter(|(_, life)| of(life)).count().to_string();
        let Percentiles { p50, p99, max } = percentiles(self.waits_ns(&of));
        let mut row = vec![name.to_owned(), lives.len().to_string()];
        row.extend([count(|life| life.succeeded), count(|life| life.ended > 0 && !life.succeeded)]);
        row.extend([p50, p99, max].map(|ms| format!("{ms:.0} ms")));
        row
    }

    /// How long each of these jobs waited until it was started.
    fn waits_ns(&self, of: impl Fn(&Job) -> bool) -> impl Iterator<Item = u64> {
        let jobs = self.jobs.iter().filter(move |(_, job)| of(job)).map(|(id, job)| (job, self.ledger.life(*id)));
        let started = jobs.filter(|(_, life)| life.started > 0);
        started.map(|(job, life)| life.started_at_ms.saturating_sub(job.published_at_ms) * 1_000_000)
    }
}
