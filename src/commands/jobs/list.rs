//! `job-router jobs list`: the jobs that have not ended, page by page.

use anyhow::Context;
use job_router::redis::{ListedJob, Partition};
use serde::Serialize;

use crate::commands::connection::{self, RedisArgs};
use crate::commands::{Usage, output};

const QUEUED: &str = "queued";
/// Where those begin that runners hold.
const HELD: &str = "h 0";
/// How many one call reads: about a millisecond of Redis.
const PAGE: u32 = 256;

/// List the jobs that have not ended: queued ones by bucket, then those that runners hold
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  job-router jobs list --limit 20\n  job-router jobs list --state running --json | jq .id\n  \
    job-router jobs list --json --limit 100000 --after \"$next\"\n\n\
    With --json each job is one line, and where more are left the last line is {\"next\":\"…\"}, for --after.\n\
    For Rails to compare with what it knows: a job that moves while it reads may be listed twice, and one that goes back\n\
    to the queue not at all. Publishing a job that is known changes nothing."
)]
pub(super) struct Args {
    /// Only those in this state: queued, assigned, running or canceling
    #[arg(long, value_parser = ["queued", "assigned", "running", "canceling"])]
    state: Option<String>,
    /// About so many: whole pages
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Go on where another call ended: what it printed as `next`
    #[arg(long, value_name = "NEXT")]
    after: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

#[derive(Serialize)]
struct Next<'a> {
    next: &'a str,
}

/// Where to go on: a partition, and a place in it that only its script reads.
struct Place {
    partition: u16,
    from: String,
}

// === impl Place ===

impl Place {
    fn read(text: &str, partitions: u16) -> anyhow::Result<Self> {
        let read = || {
            let (partition, from) = text.split_once('/')?;
            let from = from.replace('/', " ");
            let known = from.is_empty() || from.starts_with("q ") || from.starts_with("h ");
            Some(Self { partition: partition.parse().ok().filter(|number| *number < partitions)?, from })
                .filter(|_| known)
        };
        read().with_context(|| {
            Usage(format!("--after must be what a call printed as next; is {}", output::safe(text, 80)))
        })
    }

    fn text(&self) -> String {
        format!("{}/{}", self.partition, self.from.replace(' ', "/"))
    }
}

/// Lists them.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let config = args.redis.config()?;
    let prefixes = connection::partitions(&config);
    let mut place = match &args.after {
        Some(text) => Place::read(text, prefixes.len() as u16)?,
        None => Place { partition: 0, from: String::new() },
    };
    let redis = connection::connect(&config).await?;
    let mut table = output::table(&["job", "state", "tenant", "project", "attempt", "runner", "since"]);
    let mut left = args.limit;
    let next = loop {
        let Some(prefix) = prefixes.get(usize::from(place.partition)) else { break None };
        if left == 0 {
            break Some(place.text());
        }
        if place.from.is_empty() && args.state.as_ref().is_some_and(|state| state != QUEUED) {
            HELD.clone_into(&mut place.from);
        }
        let page = left.min(u64::from(PAGE)) as u32;
        let (jobs, from) = Partition::new(redis.clone(), prefix).jobs(&place.from, page).await?;
        for job in jobs.into_iter().filter(|job| args.state.as_ref().is_none_or(|state| *state == job.state)) {
            left = left.saturating_sub(1);
            if args.json {
                output::line(&serde_json::to_string(&job)?)?;
            } else {
                table.add_row(row(&job));
            }
        }
        let only_queued = args.state.as_deref() == Some(QUEUED);
        let from = if only_queued && from.starts_with('h') { String::new() } else { from };
        let partition = place.partition + u16::from(from.is_empty());
        place = Place { partition, from };
    };
    redis.quit().await;
    match (args.json, next) {
        (true, Some(next)) => output::line(&serde_json::to_string(&Next { next: &next })?),
        (true, None) => Ok(()),
        (false, next) => {
            output::print(&table)?;
            next.map_or(Ok(()), |next| output::line(&format!("more: --after {next}")))
        }
    }
}

fn row(job: &ListedJob) -> [String; 7] {
    let runner =
        job.holder.as_ref().map(|holder| format!("{} ({})", holder.runner_id, output::safe(&holder.system_id, 40)));
    [
        job.id.to_string(),
        job.state.clone(),
        output::safe(&job.tenant, 40),
        job.project_id.to_string(),
        job.attempt.to_string(),
        runner.unwrap_or_default(),
        job.since_ms.map(output::time).unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_and_what_is_none_is_refused() {
        for (partition, from) in [(0, ""), (1, "q 7:PnB3_S9m1ongzuanz1s3vw:-2 1763776000000-0"), (2, "h 12")] {
            let text = Place { partition, from: from.to_owned() }.text();
            let place = Place::read(&text, 3).expect(&text);
            assert_eq!((place.partition, place.from.as_str()), (partition, from));
        }
        for text in ["", "0", "3/h/1", "x/h/1", "0/x/1", "-1/"] {
            assert!(Place::read(text, 3).is_err(), "{text}");
        }
    }
}
