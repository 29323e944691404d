//! `job-router explain`: why a job is where it is. Reads Redis; changes nothing.

use job_router::job::{JobId, Tenant};
use job_router::redis::{Explainer, ExplainerKeys};

use super::connection::{self, RedisArgs};
use super::{Usage, output};

/// Explain why a job waits: what holds it up, its place, and which runners could take it and why they do not
///
/// The first line is the answer. A number behind "about" is a guess from what was started lately.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  job-router explain 42\n  job-router explain 42 --tenant ns:3\n  \
    job-router explain 42 --json | jq -r .reason\n\n\
    The codes of `reason`: docs/explain.md. A job that is not known is no error: the answer says so.")]
pub(super) struct Args {
    /// The job's id
    #[arg(value_name = "ID", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    id: u64,
    /// Its tenant, where known: only its partition is looked at [default: all are]
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

/// Explains the job.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let tenant = args.tenant.as_deref().map(Tenant::new).transpose();
    let tenant = tenant.map_err(|must| {
        Usage(format!("--tenant {must}; is text of {} bytes", args.tenant.as_deref().unwrap_or("").len()))
    })?;
    let config = args.redis.config()?;
    let redis = connection::connect(&config).await?;
    let keys = ExplainerKeys {
        keys: connection::keys(&config),
        inbox_stream: config.inbox_stream.clone(),
        lease: config.lease,
        affinity_wait: config.affinity_wait,
    };
    let told = Explainer::new(&redis, keys).explain(JobId(args.id), tenant.as_ref()).await?;
    redis.quit().await;
    output::line(if args.json { told.to_json() } else { told.to_text() }.trim_end())
}
