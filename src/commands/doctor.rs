//! `job-router doctor`: what Redis would lose as it is set up, and what to set.

use job_router::redis::{Checkup, Finding, Severity};
use serde_json::json;

use super::connection::{self, RedisArgs};
use super::output;

/// Look whether Redis is set up to keep jobs, and say what to set
///
/// Reads INFO and, where it may, CONFIG GET, of each server that has keys of the router. `loss`: jobs may be lost, or nothing moves;
/// `waste`: it costs memory or time. Exit code 1 if there is a `loss`. What is promised with which set-up: docs/reliability.md.
///
/// `require_replicas` and `lease` are those of JOB_ROUTER_* and of the file that JOB_ROUTER_CONFIG names, as for a pod.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  job-router doctor\n  \
    JOB_ROUTER_REQUIRE_REPLICAS=2 job-router doctor --redis-url 'redis-sentinel://sentinel:26379?sentinelServiceName=main'\n  \
    job-router doctor --json | jq '.[].findings[].set'")]
pub(super) struct Args {
    /// Print one JSON array, an object for each server
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

/// Looks, and fails if jobs may be lost.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let config = args.redis.config()?;
    let redis = connection::connect(&config).await?;
    let mut prefixes = connection::partitions(&config);
    prefixes.push(connection::keys(&config).runners());
    let checkups = redis.checkups(&prefixes, config.require_replicas, config.lease).await?;
    redis.quit().await;
    if args.json {
        let servers: Vec<_> = checkups.iter().map(to_json).collect();
        output::line(&serde_json::to_string(&servers)?)?;
    } else {
        checkups.iter().try_for_each(print)?;
    }
    let losses = checkups.iter().flat_map(|checkup| &checkup.findings).filter(|f| f.severity == Severity::Loss).count();
    anyhow::ensure!(losses == 0, "as it is set up, Redis may lose jobs or hold them up: {losses} findings");
    Ok(())
}

fn to_json(checkup: &Checkup) -> serde_json::Value {
    let finding = |Finding { severity, what, then, set }: &Finding| json!({"severity": severity.as_str(), "what": what, "then": then, "set": set});
    json!({"server": checkup.server, "findings": checkup.findings.iter().map(finding).collect::<Vec<_>>()})
}

fn print(checkup: &Checkup) -> anyhow::Result<()> {
    output::line(&output::safe(&checkup.server, 200))?;
    for Finding { severity, what, then, set } in &checkup.findings {
        output::line(&format!("  {:<6} {}: {then}", severity.as_str(), output::safe(what, 200)))?;
        output::line(&format!("         set: {}", output::safe(set, 200)))?;
    }
    if checkup.findings.is_empty() {
        output::line("  all is well")?;
    }
    Ok(())
}
