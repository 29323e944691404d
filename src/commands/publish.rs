//! `job-router publish`: what Rails does, by hand.
//!
//! Arrives: lines of JSON. Leaves: entries of the inbox, in the order of the lines. A bad line is told and passed over;
//! a call that may not have been applied ends it all, for what comes after must not overtake.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use anyhow::Context;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use job_router::contract::{Entry, Limits};
use job_router::redis::{Arg, RedisError, Reply};
use tokio_util::sync::CancellationToken;

use super::connection::{self, RedisArgs};
use super::{BadData, output};

/// Entries on their way at once: hides the round trip, and stays far below what the connection queues.
const IN_FLIGHT_MAX: usize = 512;

/// Publish messages to the router, such as pending jobs
///
/// Each line is one message of the contract (docs/contract.md): {"type": "job.pending", "data": {...}}. Lines are checked first;
/// bad ones are named on stderr, good ones go on, and the exit code is 65. Ctrl-C ends it before the end of the input,
/// with exit code 1. Publishing twice does no harm.
#[derive(Debug, clap::Args)]
#[command(after_help = r#"Examples:
  echo '{"type":"job.pending","data":{"id":1,"project_id":7,"namespace_ids":[3],"tags":["linux"],"payload":{"steps":[{"name":"script","script":["echo hi"]}]}}}' | job-router publish
  job-router publish --redis-url redis://127.0.0.1:6379 jobs.jsonl"#)]
pub(super) struct Args {
    /// File with one message a line; `-` is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Send the data as it is, and let the router refuse what is wrong
    #[arg(long)]
    unchecked: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

/// What was published.
#[derive(Debug, Default)]
struct Published {
    count: u64,
    bad: u64,
    last_id: Option<String>,
}

/// Publishes all lines; an error if `stop` comes before the last.
pub(super) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let config = args.redis.config()?;
    let limits = Limits { payload_max_bytes: config.payload_max_bytes, data_max_bytes: config.data_max_bytes };
    let from_stdin = args.file.as_os_str() == "-";
    let name = if from_stdin { "stdin".to_owned() } else { args.file.display().to_string() };
    let mut lines = if from_stdin {
        output::lines_of(BufReader::new(std::io::stdin()))
    } else {
        output::lines_of(BufReader::new(File::open(&args.file).with_context(|| format!("cannot read {name}"))?))
    };
    let redis = connection::connect(&config).await?;

    let mut published = Published::default();
    let mut in_flight = FuturesOrdered::new();
    let mut number = 0_u64;
    let mut stopped = false;
    loop {
        let line = tokio::select! {
            biased;
            Some(reply) = in_flight.next(), if !in_flight.is_empty() => {
                published.add(reply)?;
                continue;
            }
            () = stop.cancelled() => {
                stopped = true;
                break;
            }
            line = lines.recv(), if in_flight.len() < IN_FLIGHT_MAX => line,
        };
        let Some(line) = line else { break };
        let line = line.with_context(|| format!("cannot read {name}"))?;
        number += 1;
        match entry_of(line.trim_ascii(), (!args.unchecked).then_some(&limits)) {
            Ok(None) => {}
            Ok(Some(entry)) => in_flight.push_back(redis.command("XADD", xadd_args(&config.inbox_stream, &entry))),
            Err(what) => {
                published.bad += 1;
                eprintln!("{name}:{number}: {what}");
            }
        }
    }
    while let Some(reply) = in_flight.next().await {
        published.add(reply)?;
    }
    redis.quit().await;
    output::line(&published.summary())?;
    // Whoever waits for this must not take a part for the whole. How much is left nobody knows: it was not read.
    anyhow::ensure!(!stopped, "stopped before the end of {name}; publish again from line {}", number + 1);
    if published.bad > 0 {
        return Err(BadData(format!("{} of the lines of {name} were refused", published.bad)).into());
    }
    Ok(())
}

/// The entry of a line, checked if there are limits; `None` for an empty one. The error is for people.
fn entry_of(line: &[u8], limits: Option<&Limits>) -> Result<Option<Entry>, String> {
    if line.is_empty() {
        return Ok(None);
    }
    let line =
        std::str::from_utf8(line).map_err(|error| format!("line: no UTF-8 at byte {}", error.valid_up_to() + 1))?;
    let checked = Entry::from_line(line).and_then(|entry| match limits {
        Some(limits) => entry.check(limits).map(|_| entry),
        None => Ok(entry),
    });
    checked.map(Some).map_err(|rejection| format!("{}: {}", rejection.field, rejection.reason))
}

/// What to give to `XADD` for an entry.
pub(super) fn xadd_args(inbox: &str, entry: &Entry) -> Vec<Arg> {
    let mut args: Vec<Arg> = vec![inbox.into(), "*".into()];
    args.extend(entry.fields().into_iter().flat_map(|(name, value)| [name.into(), value.into()]));
    args
}

// === impl Published ===

impl Published {
    fn add(&mut self, reply: Result<Reply, RedisError>) -> anyhow::Result<()> {
        let after = || match &self.last_id {
            Some(id) => format!("after {} messages, the last with id {id}; publish again from there", self.count),
            None => "nothing was published".to_owned(),
        };
        let id = reply.with_context(after)?.as_str()?.to_owned();
        self.last_id = Some(id);
        self.count += 1;
        Ok(())
    }

    fn summary(&self) -> String {
        match &self.last_id {
            Some(id) => format!("published {} (last id {id})", self.count),
            None => "published 0".to_owned(),
        }
    }
}
