//! `job-router runner-add`: register a runner, as Rails would, and make its token.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::ValueEnum;
use job_router::contract::{Entry, Limits};
use job_router::redis::Redis;
use rand::{Rng, RngCore};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::connection::{self, RedisArgs};
use super::{Usage, output, publish};

/// What a token begins with, so that leaked ones can be searched for.
const TOKEN_PREFIX: &str = "jrt-";
/// Random bytes of a token: 32 characters of base64.
const TOKEN_BYTES: usize = 24;

/// Register a runner and make its token
///
/// Publishes `runner.upserted` with the token's SHA-256. The token itself is shown once, and kept nowhere but in
/// --token-file.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    job-router runner-add --tags linux,docker --run-untagged --token-file token\n  \
    job-router runner --url http://127.0.0.1:7460 --token-file token --slots 4\n\n  \
    job-router runner-add --type group --group-ids 3 --tags gpu --token-file gpu-token")]
pub(super) struct Args {
    #[command(flatten)]
    runner: RunnerArgs,
    /// Write the token to this new file, which only you can read, and do not show it
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print the token and nothing else
    #[arg(long, short, conflicts_with = "token_file")]
    quiet: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

/// What a runner is.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct RunnerArgs {
    /// The runner's id; one that exists is replaced [default: a random one]
    #[arg(long, value_name = "ID")]
    pub(super) id: Option<u64>,
    /// Whose jobs it takes
    #[arg(long = "type", value_enum, default_value_t = RunnerKind::Instance)]
    pub(super) kind: RunnerKind,
    /// Its tags, comma-separated: it takes jobs that ask for no others
    #[arg(long, value_delimiter = ',')]
    pub(super) tags: Vec<String>,
    /// Take jobs without tags too
    #[arg(long)]
    pub(super) run_untagged: bool,
    /// Take only jobs on protected refs
    #[arg(long)]
    pub(super) protected_only: bool,
    /// The groups of a group runner, comma-separated
    #[arg(long, value_delimiter = ',', value_name = "IDS")]
    pub(super) group_ids: Vec<u64>,
    /// The projects of a project runner, comma-separated
    #[arg(long, value_delimiter = ',', value_name = "IDS")]
    pub(super) project_ids: Vec<u64>,
    /// Higher is asked first, -100 to 100
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub(super) priority: i32,
    /// The most jobs at once over all its managers [default: no cap]
    #[arg(long, value_name = "COUNT")]
    pub(super) max_running: Option<u32>,
}

/// The kinds of runners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum RunnerKind {
    /// Of every project that allows instance runners
    Instance,
    /// Of the projects below its groups
    Group,
    /// Of its projects
    Project,
}

/// Registers the runner and shows its token.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let config = args.redis.config()?;
    let token = new_token();
    let id = args.runner.id.unwrap_or_else(random_id);
    let entry = args.runner.upserted(id, &token)?;
    let redis = connection::connect(&config).await?;
    // First: a token that was published and then not written would be lost.
    if let Some(path) = &args.token_file {
        write_token(path, &token)?;
    }
    if let Err(error) = append(&redis, &config.inbox_stream, &entry).await {
        // Its token is of no use, and would be in the way of the next try. If the entry is in the inbox after all,
        // nobody knows the token of that runner, which is as well.
        if let Some(path) = &args.token_file {
            std::fs::remove_file(path)
                .with_context(|| format!("{error:#}; cannot remove {} either", path.display()))?;
        }
        return Err(error);
    }
    redis.quit().await;
    match &args.token_file {
        _ if args.quiet => output::line(token.expose_secret()),
        Some(path) => output::line(&format!("runner {id} registered; its token is in {}", path.display())),
        None => output::line(&format!("runner {id} registered; its token, shown only now:\n{}", token.expose_secret())),
    }
}

/// A new token.
pub(super) fn new_token() -> SecretString {
    let mut bits = [0; TOKEN_BYTES];
    rand::rng().fill_bytes(&mut bits);
    format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(bits)).into()
}

/// Appends one entry to the inbox; answers its id.
pub(super) async fn append(redis: &Redis, inbox: &str, entry: &Entry) -> anyhow::Result<String> {
    let reply = redis.command("XADD", publish::xadd_args(inbox, entry)).await.context("cannot publish")?;
    Ok(reply.as_str()?.to_owned())
}

/// An id that no other is likely to have, and none of Rails': those count up from 1.
fn random_id() -> u64 {
    rand::rng().random_range(1_000_000_000..(1 << 53))
}

fn write_token(path: &Path, token: &SecretString) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let write = |mut file: std::fs::File| writeln!(file, "{}", token.expose_secret());
    file.and_then(write).with_context(|| format!("cannot write the token to {}", path.display()))
}

// === impl RunnerArgs ===

impl RunnerArgs {
    /// An instance runner with these tags.
    pub(super) fn with_tags(tags: &[&str]) -> Self {
        Self {
            id: None,
            kind: RunnerKind::Instance,
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            run_untagged: true,
            protected_only: false,
            group_ids: Vec::new(),
            project_ids: Vec::new(),
            priority: 0,
            max_running: None,
        }
    }

    /// The message that registers this runner.
    pub(super) fn upserted(&self, id: u64, token: &SecretString) -> anyhow::Result<Entry> {
        let (kind, missing) = match self.kind {
            RunnerKind::Instance => ("instance", None),
            RunnerKind::Group => ("group", self.group_ids.is_empty().then_some("--group-ids")),
            RunnerKind::Project => ("project", self.project_ids.is_empty().then_some("--project-ids")),
        };
        if let Some(flag) = missing {
            return Err(Usage(format!("a {kind} runner needs {flag}")).into());
        }
        let data = json!({
            "id": id,
            "token_sha256": hex::encode(Sha256::digest(token.expose_secret())),
            "type": kind,
            "group_ids": self.group_ids,
            "project_ids": self.project_ids,
            "tags": self.tags,
            "run_untagged": self.run_untagged,
            "protected_only": self.protected_only,
            "priority": self.priority,
            "max_running": self.max_running,
        });
        let line = json!({ "type": "runner.upserted", "data": data }).to_string();
        let entry = Entry::from_line(&line).expect("a line in the shape that from_line documents");
        match entry.check(&Limits::default()) {
            Ok(_) => Ok(entry),
            Err(rejection) => {
                let flag = rejection.field.trim_start_matches("data.").replace('_', "-");
                Err(Usage(format!("--{flag} {}", rejection.reason)).into())
            }
        }
    }
}
