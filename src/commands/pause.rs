//! `job-router pause`, `resume` and `paused`: an operator's hand on the queues.

mod held;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use job_router::config::Config;
use job_router::job::Tenant;
use job_router::pause::{Note, Pause, Target};
use job_router::redis::{Arg, Partition, Redis, Resumed};
use serde::Serialize;
use serde_json::json;

use super::connection::{self, RedisArgs};
use super::{Usage, output};

/// Hold up a queue: nothing new of it is assigned to a runner
///
/// Acts at once on all pods. What is queued keeps its place, new jobs are queued behind it, running ones go on, and a cancel
/// is heard. It ends with `job-router resume`, or by itself with --for or --until. Repeat it to change its end or note.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    job-router pause tenant ns:3 --for 2h --note 'floods the queue, INC-42'\n  \
    job-router pause project 7 --until 2026-12-01T06:00:00Z\n  \
    job-router pause lane instance:kTx1Ju0cGbvYq4xDTf3pzA     # job-router lanes shows their names\n  \
    job-router pause all --note 'moving the registry'")]
pub(super) struct PauseArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Why, for people: at most 255 bytes
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
    /// Who wants it [default: your user name]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// End it by itself after this time, such as 30m or 2h
    #[arg(long = "for", value_name = "DURATION", conflicts_with = "until")]
    lasts: Option<String>,
    /// End it by itself at this time, such as 2026-12-01T06:00:00Z
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

/// End a pause: what it held up goes on at once
///
/// Nothing happens, and it is no error, if there is no such pause. Of several that hold up the same job each is ended by itself.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  job-router resume tenant ns:3\n  job-router resume all")]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Who wants it [default: your user name]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

/// List what is paused, by whom, until when and why, and how many queued jobs it holds up
///
/// A job that is held up by several pauses is counted for each. One of a paused lane may still be taken in another lane.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  job-router paused\n  job-router paused --json | jq '.[] | select(.until_ms == null)'"
)]
pub(super) struct PausedArgs {
    /// Print one JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

#[derive(Debug, clap::Args)]
struct TargetArgs {
    /// What
    #[arg(value_enum, value_name = "WHAT")]
    kind: Kind,
    /// Which lane (its name), tenant (its name) or project (its id)
    #[arg(value_name = "WHICH")]
    which: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Everything
    All,
    /// A lane: jobs that are all alike to a runner
    Lane,
    /// A tenant's jobs
    Tenant,
    /// A project's jobs
    Project,
}

/// A pause, over all partitions.
#[derive(Debug, Serialize)]
struct Row {
    target: String,
    since_ms: u64,
    until_ms: Option<u64>,
    by: String,
    note: String,
    /// Queued jobs that it holds up.
    #[serde(skip_serializing_if = "Option::is_none")]
    queued: Option<u64>,
}

/// Pauses.
pub(super) async fn pause(args: PauseArgs) -> anyhow::Result<()> {
    let target = args.target.target()?;
    let note = Note::new(&args.note).map_err(|must| Usage(format!("--note {must}")))?;
    let (by, end) = (by(args.by)?, End::of(args.lasts.as_deref(), args.until.as_deref())?);
    let config = args.redis.config()?;
    let redis = connection::connect(&config).await?;
    let partitions = partitions(&config, &redis, &target);
    if let Target::Lane(lane) = &target {
        let mut known = false;
        for partition in &partitions {
            let field = [partition.key("lanes").into(), lane.to_string().into()];
            known |= redis.command("HEXISTS", field).await?.as_u64()? == 1;
        }
        anyhow::ensure!(known, "there is no lane {lane}; job-router lanes shows those there are");
    }
    let until_ms = end.at_ms(&redis, &partitions[0]).await?;
    let mut rows = BTreeMap::new();
    for (done, partition) in partitions.iter().enumerate() {
        let paused = async {
            partition.pause(&target, until_ms, &by, &note).await?;
            partition.pauses().await
        };
        let pauses = paused.await.with_context(|| half_way(done, partitions.len()))?;
        add(&mut rows, pauses.into_iter().filter(|pause| pause.target == target));
    }
    redis.quit().await;
    let row = rows.remove(&target).context("it was ended again at once")?;
    if args.json {
        return output::line(&serde_json::to_string(&row)?);
    }
    let until = row.until_ms.map_or_else(|| "job-router resume".to_owned(), output::time);
    output::line(&format!("paused {} until {until}", output::safe(&row.target, 100)))
}

/// Ends a pause.
pub(super) async fn resume(args: ResumeArgs) -> anyhow::Result<()> {
    let (target, by) = (args.target.target()?, by(args.by)?);
    let config = args.redis.config()?;
    let redis = connection::connect(&config).await?;
    let partitions = partitions(&config, &redis, &target);
    let mut was_paused = false;
    for (done, partition) in partitions.iter().enumerate() {
        let resumed = partition.resume(&target, &by, None).await.with_context(|| half_way(done, partitions.len()))?;
        was_paused |= resumed == Resumed::Done;
    }
    redis.quit().await;
    if args.json {
        return output::line(&json!({ "target": target.to_string(), "was_paused": was_paused }).to_string());
    }
    let name = output::safe(&target.to_string(), 100);
    output::line(&if was_paused { format!("resumed {name}") } else { format!("{name} was not paused") })
}

/// Lists all pauses.
pub(super) async fn paused(args: PausedArgs) -> anyhow::Result<()> {
    let config = args.redis.config()?;
    let redis = connection::connect(&config).await?;
    let mut rows = BTreeMap::new();
    for partition in partitions(&config, &redis, &Target::All) {
        let pauses = partition.pauses().await?;
        let queued = held::count(&redis, &partition, &pauses).await?;
        let targets: Vec<Target> = pauses.iter().map(|pause| pause.target.clone()).collect();
        add(&mut rows, pauses);
        for (target, queued) in targets.iter().zip(queued) {
            let row = rows.get_mut(target).expect("just added");
            row.queued = Some(row.queued.unwrap_or(0) + queued);
        }
    }
    redis.quit().await;
    if args.json {
        return output::line(&serde_json::to_string(&rows.into_values().collect::<Vec<_>>())?);
    }
    let mut table = output::table(&["PAUSED", "SINCE", "UNTIL", "BY", "QUEUED JOBS", "NOTE"]);
    for row in rows.into_values() {
        table.add_row([
            output::safe(&row.target, 100),
            output::time(row.since_ms),
            row.until_ms.map_or_else(|| "-".to_owned(), output::time),
            output::safe(&row.by, 30),
            row.queued.unwrap_or(0).to_string(),
            output::safe(&row.note, 100),
        ]);
    }
    output::print(&table)
}

/// Those that a target has jobs in, as far as this can be told from here.
pub(super) fn partitions(config: &Config, redis: &Redis, target: &Target) -> Vec<Partition> {
    let keys = connection::keys(config);
    let numbers = match target {
        Target::Tenant(tenant) => keys.partition_of(tenant)..keys.partition_of(tenant) + 1,
        _ => 0..keys.partitions(),
    };
    numbers.map(|number| Partition::new(redis.clone(), &keys.partition(number))).collect()
}

pub(super) fn half_way(done: usize, all: usize) -> String {
    format!("done in {done} of {all} partitions; repeat the command to do it in all")
}

fn by(given: Option<String>) -> anyhow::Result<Note> {
    let user = || ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let by = given.or_else(user).unwrap_or_else(|| "unknown".to_owned());
    Ok(Note::new(&by).map_err(|must| Usage(format!("--by {must}")))?)
}

/// The same target is paused alike in all partitions, unless a command was left half way: then until the last end.
fn add(rows: &mut BTreeMap<Target, Row>, pauses: impl IntoIterator<Item = Pause>) {
    for pause in pauses {
        let row = rows.entry(pause.target.clone()).or_insert_with(|| Row::of(&pause));
        row.since_ms = row.since_ms.min(pause.since_ms);
        row.until_ms = row.until_ms.zip(pause.until_ms).map(|(one, other)| one.max(other));
    }
}

// === impl Row ===

impl Row {
    fn of(pause: &Pause) -> Self {
        Self {
            target: pause.target.to_string(),
            since_ms: pause.since_ms,
            until_ms: pause.until_ms,
            by: pause.by.as_str().to_owned(),
            note: pause.note.as_str().to_owned(),
            queued: None,
        }
    }
}

// === impl TargetArgs ===

impl TargetArgs {
    fn target(&self) -> Result<Target, Usage> {
        let which = self.which.as_deref();
        let needs = |what: &str| which.ok_or_else(|| Usage(format!("say which {what}")));
        match self.kind {
            Kind::All if which.is_some() => Err(Usage("all is everything: give it no name".to_owned())),
            Kind::All => Ok(Target::All),
            Kind::Lane => {
                let lane = needs("lane, as job-router lanes shows it")?.parse();
                lane.map(Target::Lane).map_err(|must| Usage(format!("the lane {must}")))
            }
            Kind::Tenant => {
                let tenant = Tenant::new(needs("tenant, such as ns:3")?);
                tenant.map(Target::Tenant).map_err(|must| Usage(format!("the tenant {must}")))
            }
            Kind::Project => {
                let id = needs("project, by its id")?.parse();
                id.map(Target::Project).map_err(|must| Usage(format!("the project {must}")))
            }
        }
    }
}

/// When a pause is to end.
enum End {
    Never,
    After(Duration),
    At(u64),
}

// === impl End ===

impl End {
    fn of(lasts: Option<&str>, until: Option<&str>) -> Result<Self, Usage> {
        if let Some(lasts) = lasts {
            let lasts = humantime::parse_duration(lasts).ok().filter(|lasts| !lasts.is_zero());
            return lasts.map(Self::After).ok_or_else(|| Usage("--for must be a time such as 30m or 2h".to_owned()));
        }
        let Some(until) = until else { return Ok(Self::Never) };
        let until = until.parse::<jiff::Timestamp>().ok().and_then(|at| u64::try_from(at.as_millisecond()).ok());
        until.map(Self::At).ok_or_else(|| Usage("--until must be a time such as 2026-12-01T06:00:00Z".to_owned()))
    }

    /// In ms of Redis' clock, by which it ends.
    async fn at_ms(self, redis: &Redis, partition: &Partition) -> anyhow::Result<Option<u64>> {
        let time = redis.command_at(&partition.key(""), "TIME", Vec::<Arg>::new()).await?;
        let [seconds, micros] = time.into_tuple()?;
        let now_ms = seconds.as_str()?.parse::<u64>()? * 1_000 + micros.as_str()?.parse::<u64>()? / 1_000;
        // 253402300799999 is the last millisecond of the year 9999.
        let at_ms = match self {
            Self::Never => return Ok(None),
            Self::After(lasts) => now_ms.saturating_add(u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX)),
            Self::At(at_ms) => at_ms,
        };
        if !(now_ms..=253_402_300_799_999).contains(&at_ms) {
            return Err(Usage("the end must be in the future, and before the year 10000".to_owned()).into());
        }
        Ok(Some(at_ms))
    }
}
