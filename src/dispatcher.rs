//! dispatcher: one pod. The only place that spawns; what it spawns, it waits for.
//!
//! Stages and the channels between them:
//!
//! ```text
//!            inbox ─► fan_out ──wake──┐            ┌── mail ◄─ mailbox
//!                                     ▼            ▼
//! runner ─hello─► admit ──opened──► take ◄─wake── recover
//!    ▲  └─slots, closed─────────────► │ └─undelivered─► give_back ◄─declined─ runner
//!    └──────────Assign────────────────┘
//! runner ─accepted─► start ─Start─► runner ─beat─► running ─BeatAck─► runner ─finished─► finish ─FinishedAck─► runner
//! ```

mod drain;
mod redis_up;

use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::{self, Config};
use crate::grpc::{self, Doors, Tls, TlsFiles};
use crate::redis::{Keys, Partition, Password, RedisSettings, Runners};
use crate::stages::held::Held;
use crate::stages::instance::Instances;
use crate::stages::sessions::Sessions;
use crate::stages::{
    Pod, admit, explain, fan_out, finish, give_back, mail, presence, recover, registry, resume, running, scopes, start,
    stuck, take,
};
use crate::telemetry::admin::{self, Admin};
use crate::telemetry::{Readiness, registry as metrics_registry, samplers};

/// Where a pod listens.
pub struct Listeners {
    /// For runners.
    pub grpc: TcpListener,
    /// For probes and metrics.
    pub admin: TcpListener,
}

/// Messages on their way between two stages: a few batches, so that a stage can collect the next while its call is under way,
/// and a slow one is felt by those before it.
const CHANNEL: usize = 1024;

/// Questions that wait to be answered: people ask one by one, and an answer takes milliseconds.
const QUESTIONS: usize = 16;

/// Runs a pod until `shutdown`, then drains it.
///
/// # Errors
///
/// When what is configured cannot be, or a stage ends by itself, which is a bug. A Redis that is away is waited for.
pub async fn run(config: Config, listeners: Listeners, shutdown: CancellationToken) -> anyhow::Result<()> {
    refuse_what_is_not_there(&config)?;
    let tls = tls(&config).await?;
    let config = Arc::new(config);
    let readiness = Arc::new(Readiness::default());
    let (draining, stopped, gone) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let mut tasks = JoinSet::new();

    let (questions_in, questions) = mpsc::channel(QUESTIONS);
    let (path, service) = grpc::admin_service(questions_in);
    let gitlab_server_url = config.gitlab_server_url.clone();
    let router = admin::router(Admin { readiness: readiness.clone(), registry: metrics_registry(), gitlab_server_url });
    let router = router.route_service(&format!("{path}/{{*call}}"), service);
    tasks.spawn(ended("admin", admin::serve(listeners.admin, router, gone.clone())));

    let settings = redis_settings(&config)?;
    let redis = redis_up::connect(&settings, &shutdown).await.context("redis")?;
    let keys = Keys::new(&config.key_prefix, config.redis_partitions);
    let prefixes = (0..keys.partitions()).map(|number| keys.partition(number));
    let partitions = prefixes.map(|prefix| Partition::new(redis.clone(), &prefix)).collect();
    let runners = Runners::new(redis.clone(), keys.runners());
    let pod = Pod {
        name: config.pod_id.clone(),
        config: config.clone(),
        redis,
        keys,
        partitions,
        runners,
        sessions: Arc::<Sessions>::default(),
        held: Arc::<Held>::default(),
        instances: Arc::new(Instances::new(config.redis_partitions)),
        draining: draining.clone(),
        stopped: stopped.clone(),
    };
    let changes_from = tokio::select! {
        begun = redis_up::begin(&pod) => begun.context("redis")?,
        () = shutdown.cancelled() => {
            info!(pod = %pod.name, "pod stopped before it had begun");
            return Ok(());
        }
    };
    readiness.set_redis_up(true);
    readiness.set_scripts_loaded(true);

    let (to_take, from_stages) = mpsc::channel(CHANNEL);
    let (slots_in, slots) = mpsc::channel(CHANNEL);
    let (closed_in, closed) = mpsc::unbounded_channel(); // one for each session; see `Doors::closed`
    let (give_back_in, returns) = mpsc::channel(CHANNEL);
    let (scopes_in, scopes_used) = mpsc::channel(CHANNEL);
    let (presence_in, seen) = mpsc::channel(1); // what is not told yet stays with the fleet
    let (over_in, over) = mpsc::channel(resume::CHANNEL);
    let (knocks_in, knocks) = mpsc::channel(CHANNEL);
    let (accepted_in, accepted) = mpsc::channel(CHANNEL);
    let (declined_in, declined) = mpsc::channel(CHANNEL);
    let (beats_in, beats) = mpsc::channel(CHANNEL);
    let (finished_in, finished) = mpsc::channel(CHANNEL);

    for number in 0..pod.keys.partitions() {
        let mail_read = Arc::new(watch::Sender::new("0-0".to_owned()));
        let mail = mail::run(pod.clone(), number, pod.redis.reader(), to_take.clone(), mail_read.clone());
        tasks.spawn(ended_ok("mail", mail));
        let recover = recover::run(pod.clone(), number, to_take.clone(), over_in.clone(), mail_read);
        tasks.spawn(ended_ok("recover", recover));
    }
    tasks.spawn(ended_ok("registry", registry::run(pod.clone(), pod.redis.reader(), changes_from, to_take.clone())));
    let inputs = take::Inputs { stages: from_stages, slots, closed };
    tasks.spawn(ended_ok("take", take::run(pod.clone(), inputs, give_back_in.clone(), scopes_in, presence_in)));
    tasks.spawn(ended_ok("presence", presence::run(pod.clone(), seen)));
    tasks.spawn(ended_ok("explain", explain::run(pod.clone(), questions)));
    tasks.spawn(ended_ok("stuck", stuck::run(pod.clone())));
    tasks.spawn(ended_ok("scopes", scopes::run(pod.clone(), scopes_used, to_take.clone())));
    tasks.spawn(ended_ok("resume", resume::run(pod.clone(), over)));
    tasks.spawn(ended_ok("admit", admit::run(pod.clone(), knocks, to_take.clone(), closed_in.clone())));
    tasks.spawn(ended_ok("start", start::run(pod.clone(), accepted)));
    tasks.spawn(ended_ok("running", running::run(pod.clone(), beats)));
    tasks.spawn(ended_ok("finish", finish::run(pod.clone(), finished, give_back_in)));
    tasks.spawn(ended_ok("give_back", give_back::run(pod.clone(), returns, declined, to_take.clone())));
    let mut fan_out = JoinSet::new();
    fan_out.spawn(fan_out::run(pod.clone(), pod.redis.reader(), to_take.clone()));

    tasks.spawn(ended_ok("redis", redis_up::follow(pod.clone(), readiness.clone(), to_take)));
    tasks.spawn(ended_ok("watchdog", pod.redis.clone().watch(stopped.clone())));
    tasks.spawn(ended_ok("upkeep", samplers::run_upkeep(metrics_registry(), stopped.clone())));
    let lag = &crate::telemetry::metrics().event_loop_lag_seconds;
    tasks.spawn(ended_ok("event loop probe", samplers::run_event_loop_probe(lag, stopped.clone())));
    let doors = Doors {
        knocks: knocks_in,
        slots: slots_in,
        accepted: accepted_in,
        declined: declined_in,
        beats: beats_in,
        finished: finished_in,
        closed: closed_in,
        draining,
    };
    let grpc_address = listeners.grpc.local_addr().context("gRPC address")?;
    tasks.spawn(ended("grpc", grpc::serve(listeners.grpc, tls, limits(&config), doors, stopped.clone())));
    info!(pod = %pod.name, grpc = %grpc_address, partitions = pod.keys.partitions(), "pod ready");

    let early = tokio::select! {
        () = shutdown.cancelled() => None,
        early = first_to_end(&mut tasks, &mut fan_out) => Some(early),
    };
    if let Some(early) = early {
        stopped.cancel();
        return Err(early);
    }
    readiness.set_draining();
    drain::drain(&pod, fan_out).await;
    gone.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.context("a stage panicked")??;
    }
    pod.redis.quit().await;
    info!(pod = %pod.name, "pod stopped");
    Ok(())
}

/// Waits for a stage that ends by itself, which none may; why it did.
async fn first_to_end(tasks: &mut JoinSet<anyhow::Result<&'static str>>, fan_out: &mut JoinSet<()>) -> anyhow::Error {
    let ended = tokio::select! {
        Some(ended) = tasks.join_next() => ended,
        Some(ended) = fan_out.join_next() => ended.map(|()| Ok("fan_out")),
        else => return anyhow::anyhow!("there are no stages"),
    };
    match ended {
        Ok(Ok(name)) => anyhow::anyhow!("{name} ended by itself"),
        Ok(Err(error)) => error,
        Err(error) => anyhow::Error::new(error).context("a stage panicked"),
    }
}

async fn ended<E: Into<anyhow::Error>>(
    name: &'static str,
    task: impl Future<Output = Result<(), E>>,
) -> anyhow::Result<&'static str> {
    task.await.map_err(|error| error.into().context(name))?;
    Ok(name)
}

async fn ended_ok(name: &'static str, task: impl Future<Output = ()>) -> anyhow::Result<&'static str> {
    task.await;
    Ok(name)
}

/// Settings whose promise this version does not keep: better no pod than one that is trusted for nothing.
fn refuse_what_is_not_there(config: &Config) -> anyhow::Result<()> {
    anyhow::ensure!(
        config.require_replicas == 0 || !config.redis_url.is_cluster(),
        "require_replicas: this version does not wait for replicas in a Redis Cluster; set 0, or use Sentinel"
    );
    Ok(())
}

/// The certificates for runners, if there are to be any.
async fn tls(config: &Config) -> anyhow::Result<Option<Tls>> {
    let (certificate, key) = (config.grpc_tls_cert_file.clone(), config.grpc_tls_key_file.clone());
    let Some((certificate, key)) = certificate.zip(key) else { return Ok(None) };
    let files = TlsFiles { certificate, key, client_ca: config.grpc_tls_client_ca_file.clone() };
    Tls::load(files).await.map(Some).context("TLS for runners (grpc_tls_…)")
}

/// How a pod of this configuration reaches Redis.
///
/// # Errors
///
/// When the file with the password cannot be read.
pub fn redis_settings(config: &Config) -> anyhow::Result<RedisSettings> {
    Ok(RedisSettings {
        command_timeout: config.redis_command_timeout,
        username: config.redis_username.clone(),
        password: password(config).context("cannot read the password file of Redis")?,
        ca_file: config.redis_ca_file.clone(),
        identity: config.redis_cert_file.clone().zip(config.redis_key_file.clone()),
        replicas: config.require_replicas,
        ..RedisSettings::new(config.redis_url.expose())
    })
}

fn password(config: &Config) -> std::io::Result<Option<Password>> {
    let Some(now) = config.read_redis_password()? else { return Ok(None) };
    let Some(path) = config.redis_password_file.clone() else { return Ok(Some(now.into())) };
    Ok(Some(Password::read_by(move || config::read_secret(&path))))
}

fn limits(config: &Config) -> grpc::Limits {
    grpc::Limits {
        max_connections: config.max_connections,
        max_connections_per_address: config.max_connections_per_address,
        max_streams_per_connection: config.max_streams_per_connection,
        max_sessions: config.max_sessions,
        max_sessions_per_token: config.max_sessions_per_token,
        max_slots_per_session: config.max_slots_per_session,
        message_max_bytes: config.message_max_bytes,
        hello_timeout: config.hello_timeout,
        hold: config.gitlab_hold,
        keepalive_interval: config.keepalive_interval,
        keepalive_timeout: config.keepalive_timeout,
        auth_failures_per_minute: config.auth_failures_per_minute.try_into().expect("the configuration is at least 1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of two stages of which one panics.
    async fn panicking(fan_out_panics: bool) -> String {
        let stage = async |panics: bool| if panics { panic!("a bug") } else { std::future::pending().await };
        let (mut tasks, mut fan_out) = (JoinSet::new(), JoinSet::new());
        tasks.spawn(ended_ok("take", stage(!fan_out_panics)));
        fan_out.spawn(stage(fan_out_panics));
        first_to_end(&mut tasks, &mut fan_out).await.to_string()
    }

    #[tokio::test]
    async fn the_panic_of_any_stage_ends_the_pod() {
        assert_eq!(panicking(false).await, "a stage panicked");
        assert_eq!(panicking(true).await, "a stage panicked");
    }
}
