//! A whole installation under load: Redis, pods, runners, and the proof that no job was lost or run twice.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use indicatif::ProgressBar;
use job_router::contract::Entry;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::load::{GO, Published, REPORT};
use super::records::{self, counts};
use crate::commands::ledger::{Ledger, Life};
use crate::commands::rig::{Child, Pod, Rig};
use crate::commands::runner_add::{self, RunnerArgs};

/// The tag that every job of a benchmark asks for.
const TAG: &str = "bench";
/// The first id of the jobs that prove that a runner is connected; measured jobs count up from 1.
const PROBE_ID: u64 = 1 << 40;
/// How long thousands of managers may take to connect.
const ALL_CONNECT_MAX: Duration = Duration::from_secs(60);
/// How long a runner may take to run its first job.
const CONNECT_MAX: Duration = Duration::from_secs(20);
/// Nothing has ended for so long: nothing more will. Longer than it takes to give a job back from a lost runner.
const STILL_MAX: Duration = Duration::from_secs(15);

/// Pods and connected runners on a Redis.
pub(super) struct Fleet {
    runners: Vec<Runner>,
    pub(super) pods: Vec<Pod>,
    ledger: Ledger,
    // Last, so that no pod complains about a Redis that ended before it.
    pub(super) rig: Rig,
}

struct Runner {
    child: Child,
    received: PathBuf,
    started: PathBuf,
    away: Option<PathBuf>,
    calls: Option<PathBuf>,
}

/// How many of each there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) pods: usize,
    pub(super) runners: usize,
    /// Of each runner, in one process and with one token.
    pub(super) managers: usize,
    /// Of each manager.
    pub(super) slots: u32,
    /// How long a job lasts.
    pub(super) job_time: Duration,
    /// How the runners ask for jobs.
    pub(super) door: Door,
}

/// How runners ask for jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// By our own library.
    Native,
    /// As an unmodified GitLab Runner.
    GitLab,
}

/// The jobs to publish.
#[derive(Debug, Clone)]
pub(super) struct Jobs {
    pub(super) first_id: u64,
    pub(super) count: u64,
    /// A second; 0: as fast as they go.
    pub(super) rate: f64,
    pub(super) first_tenant: u64,
    pub(super) tenants: u64,
    /// All jobs of a tenant before the next one's; else tenants take turns.
    pub(super) in_blocks: bool,
    pub(super) projects: u64,
    pub(super) payload_bytes: usize,
    pub(super) hop_stream: Option<String>,
}

/// What became of them.
#[derive(Debug)]
pub(super) struct Audit {
    pub(super) lost: u64,
    pub(super) doubled: u64,
    pub(super) requeued: u64,
    /// (job, ns from its publishing until a runner had it).
    pub(super) received: Vec<(u64, u64)>,
    /// From the first job's entry to the last job's end, by Redis' clock.
    pub(super) span: Duration,
}

// === impl Fleet ===

impl Fleet {
    /// Starts all of it and waits until each runner has run a job.
    pub(super) async fn start(rig: Rig, size: Size) -> anyhow::Result<Self> {
        let mut pods = Vec::new();
        for number in 0..size.pods {
            pods.push(rig.pod(number).await?);
        }
        let urls: Vec<_> = pods.iter().map(|pod| pod.grpc_url.clone()).collect();
        Self::connect(rig, pods, &urls, size).await
    }

    /// With runners that connect to these URLs, in turn: of these pods, or of what leads to others.
    pub(super) async fn connect(rig: Rig, pods: Vec<Pod>, urls: &[String], size: Size) -> anyhow::Result<Self> {
        let mut runners = Vec::new();
        for number in 0..size.runners {
            runners.push(Runner::start(&rig, &urls[number % urls.len()], number, size).await?);
        }
        let mut ledger = Ledger::new(rig.redis.clone(), rig.events());
        timeout(CONNECT_MAX, probe(&rig, &mut ledger, size.runners))
            .await
            .context("not every runner ran a job: see the pod's complaints")??;
        Ok(Self { runners, pods, ledger, rig })
    }

    /// Publishes the jobs and waits until all have ended, or nothing moves any more.
    pub(super) async fn run(&mut self, jobs: &Jobs, bar: &ProgressBar) -> anyhow::Result<Published> {
        Ok(self.run_lots(std::slice::from_ref(jobs), bar).await?.remove(0))
    }

    /// The same with several lots, which begin together, each published by a process of its own. Answers one for each.
    pub(super) async fn run_lots(&mut self, lots: &[Jobs], bar: &ProgressBar) -> anyhow::Result<Vec<Published>> {
        let count: u64 = lots.iter().map(|jobs| jobs.count).sum();
        let mut publishers = Vec::new();
        for jobs in lots {
            let mut publisher = Child::spawn("publisher", &jobs.publisher_args(&self.rig), false)?;
            ensure!(publisher.line().await? == "ready", "the publisher is out of step");
            publishers.push(publisher);
        }
        for publisher in &mut publishers {
            publisher.tell(GO).await?;
        }
        let lines = {
            let mut lines = Box::pin(try_join_all(publishers.iter_mut().map(Child::line)));
            loop {
                tokio::select! {
                    lines = &mut lines => break lines?,
                    () = sleep(Duration::from_millis(200)) => bar.set_position(self.ended_about().await?.min(count)),
                }
            }
        };
        let published = lines.iter().map(|line| serde_json::from_str(line)).collect::<Result<Vec<Published>, _>>()?;
        for publisher in publishers {
            publisher.end().await?;
        }

        let probes = self.runners.len() as u64;
        let mut moved = (Instant::now(), 0);
        loop {
            let len = self.ledger.stream_len().await?;
            if len != moved.1 {
                moved = (Instant::now(), len);
            }
            bar.set_position(self.ended_about().await?.min(count));
            // Four events are a life. Only then, or when nothing moves, is it worth reading them all.
            if len >= 4 * (count + probes) || moved.0.elapsed() >= STILL_MAX {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(published)
    }

    /// Reads what became of the jobs, whose ids count from 1 through all lots.
    pub(super) async fn audit(&mut self, lots: &[Published]) -> anyhow::Result<Audit> {
        let jobs: u64 = lots.iter().map(|lot| lot.jobs).sum();
        let ended = self.runners.len() as u64 + jobs;
        let deadline = Instant::now() + STILL_MAX;
        self.ledger.read().await?;
        // A job that went back has more events than four, so some may still run.
        while self.ledger.ended() < ended && Instant::now() < deadline {
            sleep(Duration::from_millis(50)).await;
            self.ledger.read().await?;
        }
        let (mut received, mut started) = (Vec::new(), Vec::new());
        for runner in &mut self.runners {
            runner.report().await?;
            received.extend(records::read(&runner.received)?);
            started.extend(records::read(&runner.started)?);
        }
        let starts = counts(&started);
        let (mut lost, mut doubled, mut requeued) = (0, 0, 0);
        for id in 1..=jobs {
            let life = self.ledger.life(id);
            let starts = starts.get(&id).copied().unwrap_or(0);
            // Ended well by the events, and run by a runner: both, or it is lost.
            lost += u64::from(life.ended == 0 || !life.succeeded || starts == 0);
            doubled += u64::from(life.ended > 1 || life.started > 1 || starts > 1);
            requeued += u64::from(life.requeued);
        }
        received.retain(|(id, _)| *id < PROBE_ID);
        let mut first_ms = u64::MAX;
        for lot in lots {
            first_ms = first_ms.min(lot.first_ms()?);
        }
        let span = Duration::from_millis(self.ledger.last_end_ms.saturating_sub(first_ms));
        Ok(Audit { lost, doubled, requeued, received, span })
    }

    /// How many calls GitLab Runners have made, and how many of them failed.
    pub(super) async fn calls(&mut self) -> anyhow::Result<(u64, u64)> {
        let mut counts = (0, 0);
        for runner in &mut self.runners {
            runner.report().await?;
            let path = runner.calls.as_ref().context("such a runner does not call")?;
            let of_runner = counts_of(&records::read(path)?)?;
            counts = (counts.0 + of_runner.0, counts.1 + of_runner.1);
        }
        Ok(counts)
    }

    /// The life of one job, once there was an audit.
    pub(super) fn life(&self, id: u64) -> Life {
        self.ledger.life(id)
    }

    /// Ends the runners, whose pods must hear them out. The longest time that a manager was without a session.
    pub(super) async fn end_runners(&mut self) -> anyhow::Result<Duration> {
        let mut longest_ns = 0;
        for runner in self.runners.drain(..) {
            runner.child.end().await?;
            let away = runner.away.map(|away| records::read(&away)).transpose()?.unwrap_or_default();
            longest_ns = away.iter().map(|(_, ns)| *ns).fold(longest_ns, u64::max);
        }
        Ok(Duration::from_nanos(longest_ns))
    }

    /// Ends all of it: runners first.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        self.end_runners().await?;
        for pod in self.pods {
            pod.end().await?;
        }
        self.rig.end().await
    }

    /// Enough for a progress bar, at the cost of one short command.
    async fn ended_about(&self) -> anyhow::Result<u64> {
        Ok(self.ledger.stream_len().await? / 4)
    }
}

/// Publishes one job for each runner, which only that one may take, and waits until all have ended.
async fn probe(rig: &Rig, ledger: &mut Ledger, runners: usize) -> anyhow::Result<()> {
    for number in 0..runners {
        let data = json!({
            "id": PROBE_ID + number as u64, "project_id": 1, "namespace_ids": [1], "tags": [own_tag(number)],
            "payload": { "id": PROBE_ID + number as u64, "tenant": "ns:1", "sent_ns": 0 },
        });
        let line = json!({ "type": "job.pending", "data": data }).to_string();
        let entry = Entry::from_line(&line).expect("a line in the shape that from_line documents");
        runner_add::append(&rig.redis, &rig.config.inbox_stream, &entry).await?;
    }
    while ledger.ended() < runners as u64 {
        sleep(Duration::from_millis(20)).await;
        ledger.read().await?;
    }
    Ok(())
}

/// Waits until these pods have so many sessions together.
pub(super) async fn until_connected(pods: &[Pod], managers: usize) -> anyhow::Result<()> {
    let connected = async {
        loop {
            let mut sessions = 0;
            for pod in pods {
                sessions += pod.sessions().await?;
            }
            if sessions >= managers {
                return anyhow::Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(ALL_CONNECT_MAX, connected).await.context("not all managers are connected")?
}

fn counts_of(records: &[(u64, u64)]) -> anyhow::Result<(u64, u64)> {
    let [(_, calls), (_, failed)] = records else { anyhow::bail!("a runner counts two things") };
    Ok((*calls, *failed))
}

fn own_tag(number: usize) -> String {
    format!("{TAG}-{number}")
}

// === impl Runner ===

impl Runner {
    async fn start(rig: &Rig, url: &str, number: usize, size: Size) -> anyhow::Result<Self> {
        let registered = rig.register(1 + number as u64, &RunnerArgs::with_tags(&[TAG, &own_tag(number)])).await?;
        let [received, started, away, calls] =
            ["received", "started", "away", "calls"].map(|what| rig.scratch.path().join(format!("{what}-{number}")));
        let (command, own, away, calls) = match size.door {
            Door::Native => ("run", vec![format!("--away={}", away.display())], Some(away), None),
            Door::GitLab => {
                let rails = rig.args.flags().into_iter();
                ("hold", rails.chain([format!("--calls={}", calls.display())]).collect(), None, Some(calls))
            }
        };
        let args = [
            "bench-load".to_owned(),
            command.to_owned(),
            format!("--url={url}"),
            format!("--token-file={}", registered.token_file.display()),
            format!("--name=runner-{number}"),
            format!("--managers={}", size.managers),
            format!("--slots={}", size.slots),
            format!("--job-us={}", size.job_time.as_micros()),
            format!("--received={}", received.display()),
            format!("--started={}", started.display()),
        ];
        let args = [args.to_vec(), own].concat();
        let mut child = Child::spawn(&format!("runner {}", registered.id), &args, false)?;
        ensure!(child.line().await? == "ready", "a runner is out of step");
        Ok(Self { child, received, started, away, calls })
    }

    /// Has it write down what it has seen.
    async fn report(&mut self) -> anyhow::Result<()> {
        self.child.tell(REPORT).await?;
        ensure!(self.child.line().await? == "reported", "a runner is out of step");
        Ok(())
    }
}

// === impl Jobs ===

impl Jobs {
    fn publisher_args(&self, rig: &Rig) -> Vec<String> {
        let mut args = vec!["bench-load".to_owned(), "publish".to_owned()];
        args.extend([
            format!("--first-id={}", self.first_id),
            format!("--jobs={}", self.count),
            format!("--rate={}", self.rate),
            format!("--first-tenant={}", self.first_tenant),
            format!("--tenants={}", self.tenants),
            format!("--projects={}", self.projects),
            format!("--payload-bytes={}", self.payload_bytes),
        ]);
        args.extend(self.in_blocks.then(|| "--in-blocks".to_owned()));
        args.extend(self.hop_stream.as_ref().map(|stream| format!("--hop-stream={stream}")));
        args.extend(rig.args.flags());
        args
    }
}

// === impl Audit ===

impl Audit {
    /// An error unless every job ran exactly once.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        ensure!(self.lost == 0 && self.doubled == 0, "{} jobs were lost and {} run twice", self.lost, self.doubled);
        Ok(())
    }
}
