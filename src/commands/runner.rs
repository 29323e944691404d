//! `job-router runner`: the reference runner, which runs jobs with `bash`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use job_router::client::shell::{LogTo, Shell};
use job_router::client::{self, ClientError, Options, SLOTS_MAX, Shutdown};
use job_router::config;
use job_router::job::{NAME_MAX_BYTES, Name};
use job_router::tags::TagSet;
use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};

use super::Usage;

/// Connect to a router and run its jobs with bash.
///
/// Jobs are GitLab's job JSON: the script of each step runs with bash in a scratch directory that is removed
/// afterwards. There is no sandbox: whoever may publish jobs runs code as this user.
///
/// The first SIGTERM or Ctrl-C takes no more jobs, hands back those not started and waits for the others;
/// the second kills them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    echo -n glrt-secret > token && chmod 600 token\n  \
    job-router runner --url http://127.0.0.1:7460 --token-file token --slots 4 --features shell\n\n\
    The token's SHA-256 must be in the registry (`runner.upserted`); until it is, the runner says so and retries.")]
pub(crate) struct Args {
    /// The router's native door: http://host:port or https://host:port
    #[arg(long, env = config::RUNNER_URL, default_value = "http://127.0.0.1:7460")]
    url: String,
    /// File that holds the runner's token (never on the command line, where every user could read it)
    #[arg(long, env = config::RUNNER_TOKEN_FILE, value_name = "FILE")]
    token_file: PathBuf,
    /// Jobs to run at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(SLOTS_MAX)))]
    slots: u32,
    /// Which manager of the runner this is: stable over restarts, different on every machine [default: from the host's name]
    #[arg(long)]
    name: Option<Name>,
    /// PEM file of certificates that the router's must be signed by [default: the system's]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// PEM file with the certificate to show to a router that asks for one
    #[arg(long, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// PEM file with the private key of --cert-file
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// Write each job's output to a file in this directory, not to standard output
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// How long running jobs may go on after the first signal
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    shutdown_grace: Duration,
    /// What this runner can do, matched against a job's `requires`; comma-separated
    #[arg(long, value_delimiter = ',')]
    features: Vec<String>,
    /// What is logged: a level, or module=level
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub(super) log: String,
}

/// Runs until a signal ends it, or the router refuses the runner.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let token = tokio::fs::read_to_string(&args.token_file).await;
    let token = token.with_context(|| format!("cannot read the token file {}", args.token_file.display()))?;
    ensure!(!token.trim().is_empty(), "the token file {} is empty", args.token_file.display());
    let token = SecretString::from(token.trim());
    let name = args.name.unwrap_or_else(default_name);
    let mut options = Options::new(args.url, token, name, args.slots);
    options.features = TagSet::new(args.features).map_err(|error| Usage(format!("--features: {error}")))?;
    options.shutdown_grace = args.shutdown_grace;
    if let Some(path) = &args.ca_file {
        options.ca_pem = Some(read(path).await?);
    }
    if let (Some(certificate), Some(key)) = (&args.cert_file, &args.key_file) {
        let key = String::from_utf8(read(key).await?).map_err(|_| Usage("--key-file: is not PEM".to_owned()))?;
        options.identity_pem = Some((read(certificate).await?, key.into()));
    }
    let log = match args.log_dir {
        Some(dir) => {
            tokio::fs::create_dir_all(&dir).await.with_context(|| format!("cannot create {}", dir.display()))?;
            LogTo::Dir(dir)
        }
        None => LogTo::Stdout,
    };

    let shutdown = Shutdown::default();
    // Aborted when it leaves the scope, with the runner.
    let mut signals = tokio::task::JoinSet::new();
    signals.spawn(watch_signals(shutdown.clone()));
    let summary = client::run(options, Shell::new(log), shutdown).await.map_err(|error| match error {
        ClientError::Options(mistake) => anyhow::Error::from(Usage(mistake)),
        refused @ ClientError::Refused(_) => refused.into(),
    })?;
    tracing::info!(
        succeeded = summary.succeeded,
        failed = summary.failed,
        canceled = summary.canceled,
        lost = summary.lost,
        unacknowledged = summary.unacknowledged,
        "runner ended"
    );
    Ok(())
}

async fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    tokio::fs::read(path).await.with_context(|| format!("cannot read {}", path.display()))
}

/// The first signal stops, the second kills.
async fn watch_signals(shutdown: Shutdown) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    for token in [shutdown.stop, shutdown.kill] {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    }
    Ok(())
}

/// The host's name, with what a name cannot hold replaced.
fn default_name() -> Name {
    let host = gethostname::gethostname().to_string_lossy().into_owned();
    let safe = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '-' };
    let name: String = host.chars().map(safe).take(NAME_MAX_BYTES).collect();
    Name::new(&name).unwrap_or_else(|_| Name::new("runner").expect("letters"))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn the_arguments_are_sound_and_the_help_teaches() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["runner", "--token-file", "t", "--features", "a,b"]).expect("parses");
        assert_eq!((cli.args.slots, cli.args.features.len()), (1, 2));
        assert!(Cli::try_parse_from(["runner", "--token-file", "t", "--slots", "0"]).is_err());
        assert!(Cli::command().render_long_help().to_string().contains("Example:"));
    }

    #[test]
    fn the_default_name_is_the_same_every_time() {
        assert_eq!(default_name(), default_name());
    }
}
