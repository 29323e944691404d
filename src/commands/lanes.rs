//! `job-router lanes`: what kinds of work wait, and who waits for them. What to scale runners by.

use std::collections::BTreeMap;

use anyhow::Context;
use job_router::redis::{Partition, Redis};
use job_router::runner::{Lane, Scope};
use job_router::tags::Capability;
use serde::Serialize;

use super::connection::{self, RedisArgs};
use super::{jobs, output};

/// List the lanes: jobs that are all alike to a runner
///
/// A lane is who may take the jobs (instance, group:<id> or project:<id>) and what they need (tags, protection, features). BUCKETS
/// counts the queues with jobs in it, one for each project and priority; TENANTS whose they are; PODS those that hold a
/// runner for this lane with nothing to do. PAUSED: an operator holds it up, alone or with everything (`job-router paused`).
/// ORDER: whether its jobs go by fair shares, or as a plain queue.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  job-router lanes\n  job-router lanes --json | jq 'map(select(.buckets > 0 and .pods_waiting == 0))'"
)]
pub(super) struct Args {
    /// Print one JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

/// One lane, over all partitions.
#[derive(Debug, Serialize)]
struct Row {
    lane: String,
    scope: String,
    tags: Vec<String>,
    protected: bool,
    requires: Vec<String>,
    jobs: u64,
    buckets: u64,
    /// Instance lanes only: in the others, buckets stand by themselves.
    tenants: Option<u64>,
    pods_waiting: u64,
    paused: bool,
    /// `fair` or `fifo`.
    order: &'static str,
}

/// Lists the lanes.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let config = args.redis.config()?;
    let redis = connection::connect(&config).await?;
    let mut rows = BTreeMap::new();
    for prefix in connection::partitions(&config) {
        add_partition(&redis, &prefix, &mut rows).await?;
    }
    redis.quit().await;
    if args.json {
        return output::line(&serde_json::to_string(&rows.into_values().collect::<Vec<_>>())?);
    }
    let mut table = output::table(&[
        "LANE",
        "TAGS",
        "PROTECTED",
        "REQUIRES",
        "JOBS",
        "BUCKETS",
        "TENANTS",
        "PODS WAITING",
        "PAUSED",
        "ORDER",
    ]);
    for row in rows.into_values() {
        let list =
            |items: &[String]| if items.is_empty() { "-".to_owned() } else { output::safe(&items.join(","), 60) };
        table.add_row([
            row.lane,
            list(&row.tags),
            if row.protected { "yes" } else { "no" }.to_owned(),
            list(&row.requires),
            row.jobs.to_string(),
            row.buckets.to_string(),
            row.tenants.map_or_else(|| "-".to_owned(), |tenants| tenants.to_string()),
            row.pods_waiting.to_string(),
            if row.paused { "yes" } else { "no" }.to_owned(),
            row.order.to_owned(),
        ]);
    }
    output::print(&table)
}

async fn add_partition(redis: &Redis, prefix: &str, rows: &mut BTreeMap<Lane, Row>) -> anyhow::Result<()> {
    let lanes = jobs::hash(redis.command("HGETALL", [format!("{prefix}lanes").into()]).await?)?;
    let capabilities = jobs::hash(redis.command("HGETALL", [format!("{prefix}capabilities").into()]).await?)?;
    let policy = Partition::new(redis.clone(), prefix).policy().await?;
    let paused = jobs::hash(redis.command("HGETALL", [format!("{prefix}paused").into()]).await?)?;
    for name in lanes.into_keys() {
        let lane: Lane = name.parse().context("a lane of another version")?;
        let capability: Capability = capabilities
            .get(&lane.fingerprint.to_string())
            .and_then(|json| serde_json::from_str(json).ok())
            .with_context(|| format!("lane {name} has no capability"))?;
        let row = rows.entry(lane).or_insert_with(|| Row::new(lane, &capability));
        row.order = policy.order_of(lane).as_str();
        row.paused |= paused.contains_key("all") || paused.contains_key(&format!("lane:{name}"));
        let members = members(redis, &format!("{prefix}lane:{name}")).await?;
        let mut buckets = Vec::new();
        if lane.scope == Scope::Instance {
            row.tenants = Some(row.tenants.unwrap_or(0) + members.len() as u64);
            for tenant in &members {
                buckets.extend(self::members(redis, &format!("{prefix}lane:{name}:{tenant}")).await?);
            }
        } else {
            buckets = members;
        }
        row.buckets += buckets.len() as u64;
        for bucket in buckets {
            row.jobs += queued(redis, &format!("{prefix}bucket:{}:{bucket}", lane.fingerprint)).await?;
        }
        row.pods_waiting += redis.command("ZCARD", [format!("{prefix}waiting:{name}").into()]).await?.as_u64()?;
    }
    Ok(())
}

/// All members of a sorted set, in order.
pub(super) async fn members(redis: &Redis, key: &str) -> anyhow::Result<Vec<String>> {
    let members = redis.command("ZRANGE", [key.into(), 0_i64.into(), (-1_i64).into()]).await?.into_array()?;
    members.iter().map(|member| Ok(member.as_str()?.to_owned())).collect()
}

/// Queued jobs of a bucket: its entries but those held by a pod. It may be gone since it was listed.
pub(super) async fn queued(redis: &Redis, bucket: &str) -> anyhow::Result<u64> {
    let entries = redis.command("XLEN", [bucket.into()]).await?.as_u64()?;
    let Ok(pending) = redis.command("XPENDING", [bucket.into(), "dispatchers".into()]).await else {
        return Ok(entries);
    };
    let [count, _, _, consumers] = pending.into_tuple()?;
    let mut held = count.as_u64()?;
    for consumer in consumers.into_option().map_or_else(|| Ok(Vec::new()), |consumers| consumers.into_array())? {
        let [name, count] = consumer.into_tuple()?;
        if name.as_str()? == "returned" {
            held -= count.as_u64()?;
        }
    }
    Ok(entries.saturating_sub(held))
}

// === impl Row ===

impl Row {
    fn new(lane: Lane, capability: &Capability) -> Self {
        Self {
            lane: lane.to_string(),
            scope: lane.scope.to_string(),
            tags: capability.tags.iter().map(str::to_owned).collect(),
            protected: capability.protected,
            requires: capability.requires.iter().map(str::to_owned).collect(),
            jobs: 0,
            buckets: 0,
            tenants: None,
            pods_waiting: 0,
            paused: false,
            order: "",
        }
    }
}
