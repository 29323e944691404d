//! `job-router events`: what the router tells Rails, for people. Reads without a group, so it disturbs nobody.

use std::time::Duration;

use job_router::clock;
use job_router::contract::Event;
use job_router::redis::{Arg, BLOCK_MAX, Entry, Reader, Redis, RedisError};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::{self, RedisArgs};
use super::{Usage, output};

/// Entries of one read.
const PAGE: usize = 1_000;
/// Pages read ahead of a slow terminal, of each partition.
const PAGES_AHEAD: usize = 2;

/// Print the events that the router writes for Rails
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    job-router events --follow\n  \
    job-router events --from 10m --json | jq -r 'select(.type==\"job.failed\") | .data.id'")]
pub(super) struct Args {
    /// Wait for more at the end
    #[arg(long, short)]
    follow: bool,
    /// Where to begin: `start`, `now`, a time ago such as 10m, or an entry's id [default: start; with --follow: now]
    #[arg(long, value_name = "WHERE")]
    from: Option<String>,
    /// Print one JSON object for each event
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

/// Prints events until there are no more, or until `stop`.
pub(super) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let config = args.redis.config()?;
    let after = start(args.from.as_deref(), args.follow)?;
    let redis = connection::connect(&config).await?;
    let (pages, mut printed) = mpsc::channel(PAGES_AHEAD);
    let mut readers = JoinSet::new();
    for prefix in connection::partitions(&config) {
        let stream = format!("{prefix}events");
        let after = if after == "$" { last_id(&redis, &stream).await? } else { after.clone() };
        readers.spawn(read(redis.reader(), stream, after, args.follow, pages.clone()));
    }
    drop(pages);
    loop {
        let page: Vec<Entry> = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            page = printed.recv() => match page {
                Some(page) => page,
                None => break,
            },
        };
        for entry in &page {
            output::line(&if args.json { as_json(entry) } else { as_text(entry) })?;
        }
    }
    while let Some(ended) = readers.join_next().await {
        ended??;
    }
    Ok(())
}

/// The id of a stream's last entry: `$` would lose what comes between two reads.
pub(super) async fn last_id(redis: &Redis, stream: &str) -> anyhow::Result<String> {
    let args = [stream, "+", "-", "COUNT", "1"].map(Arg::from);
    let last = redis.command("XREVRANGE", args).await?.into_entries()?.pop();
    Ok(last.map_or_else(|| "0".to_owned(), |last| last.id))
}

/// Sends all entries of one stream, and with `follow` those to come.
async fn read(
    mut reader: Reader,
    stream: String,
    mut after: String,
    follow: bool,
    pages: mpsc::Sender<Vec<Entry>>,
) -> Result<(), RedisError> {
    loop {
        let page = match reader.read(&stream, &after, PAGE, follow.then_some(BLOCK_MAX)).await {
            Ok(page) => page,
            Err(error) if follow && !matches!(error, RedisError::Settings(_) | RedisError::Refused { .. }) => {
                tracing::warn!(%error, "events not read, tried again");
                continue; // the reader waits before it connects again
            }
            Err(error) => return Err(error),
        };
        match page.last() {
            Some(last) => after.clone_from(&last.id),
            None if follow => continue,
            None => return Ok(()),
        }
        if pages.send(page).await.is_err() {
            return Ok(()); // nobody prints any more
        }
    }
}

fn start(from: Option<&str>, follow: bool) -> anyhow::Result<String> {
    let is_id = |text: &str| {
        let (ms, n) = text.split_once('-').unwrap_or((text, "0"));
        ms.parse::<u64>().is_ok() && n.parse::<u64>().is_ok()
    };
    match from {
        None if follow => Ok("$".to_owned()),
        None | Some("start") => Ok("0".to_owned()),
        Some("now") => Ok("$".to_owned()),
        Some(id) if is_id(id) => Ok(id.to_owned()),
        Some(text) => match humantime::parse_duration(text) {
            Ok(ago) => Ok(format!("{}-0", clock::unix_time().saturating_sub(ago.max(Duration::ZERO)).as_millis())),
            Err(_) => {
                Err(Usage("--from must be start, now, a time ago such as 10m, or an entry's id".to_owned()).into())
            }
        },
    }
}

fn as_json(entry: &Entry) -> String {
    let text = |name: &str| String::from_utf8_lossy(entry.field(name).map_or(&[][..], |value| value)).into_owned();
    let data = text("data");
    let data = serde_json::from_str(&data).unwrap_or(serde_json::Value::String(data));
    json!({ "entry_id": entry.id, "type": text("type"), "data": data }).to_string()
}

fn as_text(entry: &Entry) -> String {
    let event = match Event::parse(&entry.fields) {
        Ok(event) => event,
        Err(rejection) => return format!("{} not understood: {}: {}", entry.id, rejection.field, rejection.reason),
    };
    let mut text = format!("{}  {:<16}", output::time(event.at_ms), event.event_type.as_str());
    let mut push = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text += &format!(" {name}={}", output::safe(&value, 80));
        }
    };
    push("job", event.id.map(|id| id.to_string()));
    push("attempt", event.attempt.map(|attempt| attempt.to_string()));
    push("runner", event.runner_id.map(|id| id.to_string()));
    push("system", event.system_id.map(|id| id.to_string()));
    push("pod", event.pod.map(|pod| pod.to_string()));
    for (name, value) in event.rest {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        push(&name, (!value.is_empty()).then_some(value));
    }
    text
}
