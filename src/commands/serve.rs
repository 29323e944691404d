//! `job-router serve`: one pod.

use anyhow::Context;
use clap::{ArgMatches, Command, FromArgMatches};
use job_router::config::{self, Config};
use job_router::dispatcher::{self, Listeners};
use job_router::telemetry::logging;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::rig;

const ABOUT: &str = "Run one pod: take jobs from Redis, push them to the runners that connect";

const EXAMPLE: &str = "\
Examples:
  job-router serve --redis-url redis://127.0.0.1:6379
  JOB_ROUTER_LOG=debug job-router serve --config /etc/job-router.toml

Each setting is a flag, a variable and a key of the file: --lease, JOB_ROUTER_LEASE, lease. A flag wins over a variable, a
variable over the file. All mistakes are told at once; the exit code is then 64.

The first SIGTERM or Ctrl-C drains: runners are sent to other pods, their jobs run on. The second ends the pod at once.";

/// The flags of [`config::flags`], as they were given.
#[derive(Debug)]
pub(super) struct Args(ArgMatches);

/// Runs a pod until `stop`, and then until it has drained.
pub(super) async fn run(args: &Args, stop: CancellationToken) -> anyhow::Result<()> {
    let config = Config::load(&args.0, std::env::vars_os())?;
    logging::init(config.log_format, &config.log)?;
    if fail::has_failpoints() {
        std::mem::forget(fail::FailScenario::setup()); // as long as the process lives
    }
    let grpc = bind(&config.grpc_listen, "grpc_listen").await?;
    let admin = bind(&config.admin_listen, "admin_listen").await?;
    info!(
        pod = %config.pod_id,
        grpc = %grpc.local_addr()?,
        admin = %admin.local_addr()?,
        redis = %config.redis_url,
        version = env!("CARGO_PKG_VERSION"),
        "{}",
        rig::LISTENING
    );
    run_pod(config, grpc, admin, stop).await
}

/// The one place where the binary enters the pod.
pub(super) async fn run_pod(
    config: Config,
    grpc: TcpListener,
    admin: TcpListener,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    Box::pin(dispatcher::run(config, Listeners { grpc, admin }, stop)).await
}

/// A listener on this address, or why there is none and which setting names it.
pub(super) async fn bind(address: &std::net::SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} ({setting})"))
}

// === impl Args ===

impl clap::Args for Args {
    fn augment_args(command: Command) -> Command {
        command.about(ABOUT).after_help(EXAMPLE).args(config::flags())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(matches.clone()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0 = matches.clone();
        Ok(())
    }
}
