//! `job-router jobs`: where a job is now, read from its keys, and which there are. Changes nothing.

mod list;

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use job_router::clock;
use job_router::job::Tenant;
use job_router::redis::{Redis, Reply};
use serde::Serialize;
use serde_json::value::RawValue;

use super::connection::{self, RedisArgs};
use super::output;

/// The most bytes of an order that are read: its head line is short, the payload behind it is not for showing.
const ORDER_HEAD_MAX: i64 = 4_096;

/// Look at jobs
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: JobsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum JobsCommand {
    Show(ShowArgs),
    List(list::Args),
}

/// Show where a job is: its state and since when, who holds it, or how it ended
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  job-router jobs show 42\n  job-router jobs show 42 --json | jq .state\n\n\
    The payload is never shown. An ended job is remembered for an hour (ended_ttl).")]
struct ShowArgs {
    /// The job's id
    id: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

/// What is known of a job, in one partition.
#[derive(Debug, Serialize)]
struct Found {
    id: u64,
    partition: u16,
    /// `ended` or a live state.
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<String>,
    /// The record's other fields, as they are.
    record: BTreeMap<String, String>,
    /// What the pod that hands it out reads before the payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<Box<RawValue>>,
}

/// Shows the job.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let args = match args.command {
        JobsCommand::Show(args) => args,
        JobsCommand::List(args) => return Box::pin(list::run(args)).await,
    };
    let config = args.redis.config()?;
    let redis = connection::connect(&config).await?;
    for (partition, prefix) in (0..).zip(connection::partitions(&config)) {
        if let Some(found) = find(&redis, partition, &prefix, args.id).await? {
            redis.quit().await;
            return if args.json { output::line(&serde_json::to_string(&found)?) } else { show(&found) };
        }
    }
    let waits = redis.command("XLEN", [config.inbox_stream.as_str().into()]).await?.as_u64()?;
    redis.quit().await;
    bail!(
        "job {} is not known: never published, or ended more than ended_ttl ago{}",
        args.id,
        if waits > 0 {
            format!(", or still among the {waits} entries of {}", config.inbox_stream)
        } else {
            String::new()
        }
    )
}

async fn find(redis: &Redis, partition: u16, prefix: &str, id: u64) -> anyhow::Result<Option<Found>> {
    let mut record = hash(redis.command("HGETALL", [format!("{prefix}job:{id}").into()]).await?)?;
    if let Some(state) = record.remove("state") {
        if let Some(lease) = record.remove("lease") {
            let parts = ["lease_id", "attempt", "tenant", "pod", "scope"].into_iter().map(str::to_owned);
            record.extend(parts.zip(lease.split(' ').map(str::to_owned)));
        }
        // As Rails knows it, not as it stands in keys.
        if let Some(tenant) = record.get_mut("tenant") {
            *tenant = Tenant::from_key(tenant)?.name().to_owned();
        }
        let order =
            redis.command("GETRANGE", [format!("{prefix}order:{id}").into(), 0_i64.into(), ORDER_HEAD_MAX.into()]);
        let order = order.await?.into_bytes()?;
        let head = order.split(|byte| *byte == b'\n').next().unwrap_or_default();
        // The head is valid JSON unless it was cut.
        let order = serde_json::from_slice(head).ok();
        return Ok(Some(Found { id, partition, state, outcome: None, record, order }));
    }
    let Some(ended) = redis.command("GET", [format!("{prefix}ended:{id}").into()]).await?.into_option() else {
        return Ok(None);
    };
    let words: Vec<&str> = ended.as_str()?.split(' ').collect();
    let [outcome, lease_id, attempt] = words[..] else { bail!("the record of job {id}'s end is of another version") };
    record.insert("lease_id".to_owned(), lease_id.to_owned());
    record.insert("attempt".to_owned(), attempt.to_owned());
    Ok(Some(Found { id, partition, state: "ended".to_owned(), outcome: Some(outcome.to_owned()), record, order: None }))
}

/// A hash as pairs of text.
pub(super) fn hash(reply: Reply) -> anyhow::Result<BTreeMap<String, String>> {
    let flat = reply.into_array()?;
    let pair =
        |pair: &[Reply]| -> anyhow::Result<_> { Ok((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned())) };
    flat.chunks_exact(2).map(pair).collect::<Result<_, _>>().context("a hash of another version")
}

/// Who holds a job.
#[derive(serde::Deserialize)]
struct Holder {
    runner_id: u64,
    system_id: String,
}

fn show(found: &Found) -> anyhow::Result<()> {
    let mut table = output::table(&["job", &found.id.to_string()]);
    let field =
        |name: &str| found.record.get(name).map(String::as_str).filter(|value| !value.is_empty() && *value != "-");
    match &found.outcome {
        Some(outcome) => table.add_row(["ended", outcome]),
        None => table.add_row(["state", &found.state]),
    };
    if let Some(since_ms) = field("since_ms").and_then(|ms| ms.parse().ok()) {
        let ago = std::time::Duration::from_secs(clock::since_unix_ms(since_ms).as_secs());
        table.add_row(["since", &format!("{} ({} ago)", output::time(since_ms), humantime::format_duration(ago))]);
    }
    if let Some((bucket, entry_id)) = field("place").and_then(|place| place.split_once(' ')) {
        table.add_row(["bucket", bucket]).add_row(["entry", entry_id]);
    }
    // A queued job keeps the words of its last holder; they are of no use to people.
    let held = found.state != "queued" && found.outcome.is_none();
    // JSON members, each with a comma before it.
    let holder = field("holder").filter(|_| held).and_then(|members| members.strip_prefix(','));
    let holder = holder.and_then(|members| serde_json::from_str::<Holder>(&format!("{{{members}}}")).ok());
    if let Some(Holder { runner_id, system_id }) = holder {
        table.add_row(["runner", &format!("{runner_id} ({system_id})")]);
    }
    let held_fields = ["pod", "scope", "beat"].map(|name| (name, field(name).filter(|_| held)));
    let fields = ["tenant", "attempt", "lease_id", "starts", "max_attempts", "failed_deliveries", "cancel_reason"];
    for (name, value) in held_fields.into_iter().chain(fields.map(|name| (name, field(name)))) {
        if let Some(value) = value {
            table.add_row([name, &output::safe(value, 200)]);
        }
    }
    table.add_row(["partition", &found.partition.to_string()]);
    if let Some(order) = &found.order {
        table.add_row(["order", &output::safe(order.get(), 400)]);
    }
    output::print(&table)
}
