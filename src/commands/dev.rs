//! `job-router dev`: a Redis and a pod of your own, in one terminal.

use std::net::SocketAddr;

use anyhow::Context;
use job_router::redis::{PrivateRedis, PrivateRedisOptions};
use job_router::telemetry::logging::{self, LogFormat};
use tokio_util::sync::CancellationToken;

use super::connection::{self, RedisArgs};
use super::{Usage, output, serve};

/// How long a runner may keep the pod from ending: there is no other pod to go to.
const DRAIN_MAX: &str = "2s";

/// Run a private Redis and one pod, until Ctrl-C
///
/// Needs redis-server on this machine. Redis keeps its data in a temporary directory, which goes with it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    job-router dev                    # prints the next commands to type, in another terminal\n  \
    job-router dev --grpc 127.0.0.1:0 --admin 127.0.0.1:0 --log info")]
pub(super) struct Args {
    /// Where runners connect; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7460")]
    grpc: SocketAddr,
    /// Where /metrics, /livez and /readyz are
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7461")]
    admin: SocketAddr,
    /// What the pod logs: a level, or module=level
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

/// Runs both until `stop`.
pub(super) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    if let Err(error) = logging::check_filter(&args.log) {
        return Err(Usage(format!("--log: {error}")).into());
    }
    logging::init(LogFormat::Human, &args.log)?;
    let options = PrivateRedisOptions { append_only: true, tcp: true, ..Default::default() };
    let redis = tokio::task::spawn_blocking(move || PrivateRedis::start(&options)).await??;
    let redis_url = redis.tcp_url().expect("it was asked to listen on TCP");
    let flags = RedisArgs { redis_url: Some(redis_url.clone()), ..RedisArgs::default() };
    // Its Redis is new, and no runner is left over from before.
    let own = vec![format!("--drain-timeout={DRAIN_MAX}"), "--rebuild-hold=0s".to_owned()];
    let config = connection::config_of(&[flags.flags(), own].concat(), [])?;
    let grpc = serve::bind(&args.grpc, "--grpc").await?;
    let admin = serve::bind(&args.admin, "--admin").await?;
    output::line(&next_steps(&redis_url, grpc.local_addr()?, admin.local_addr()?))?;
    let ended = serve::run_pod(config, grpc, admin, stop).await;
    tokio::task::spawn_blocking(move || drop(redis)).await.context("redis-server did not end")?;
    ended
}

fn next_steps(redis_url: &str, grpc: SocketAddr, admin: SocketAddr) -> String {
    let job = r#"{"type":"job.pending","data":{"id":1,"project_id":7,"namespace_ids":[3],"tags":["linux"],"payload":{"steps":[{"name":"script","script":["echo hello from $(hostname)"]}]}}}"#;
    format!(
        "\
redis  {redis_url}
grpc   http://{grpc}
admin  http://{admin}

Next, in another terminal:

  export JOB_ROUTER_REDIS_URL={redis_url}
  job-router runner-add --tags linux --run-untagged --token-file token
  job-router runner --url http://{grpc} --token-file token --slots 4 &
  job-router events --follow &
  echo '{job}' | job-router publish
  job-router jobs show 1
  job-router lanes
  curl -s http://{admin}/metrics

Ctrl-C stops all of it."
    )
}
