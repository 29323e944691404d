//! The pod's connection to Redis: made at the start, followed after that.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::redis::{Finding, Redis, RedisError, RedisSettings, Severity, scripts};
use crate::stages::{Pod, ToTake, Undone, recover};
use crate::telemetry::{Readiness, metrics};

/// Between two tries to reach a Redis that is not there yet.
const RETRY: Duration = Duration::from_secs(1);
/// How often to look whether Redis is there.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Whose log lines those on the state of Redis are: apart, for where it is as it is on purpose.
const HEALTH: &str = "job_router::health";

/// Connects; waits for a Redis that is not there yet, until `shutdown`.
pub(super) async fn connect(settings: &RedisSettings, shutdown: &CancellationToken) -> Result<Redis, RedisError> {
    loop {
        match Redis::connect(settings).await {
            Ok(redis) => return Ok(redis),
            Err(error @ RedisError::Settings(_)) => return Err(error),
            Err(error) => {
                warn!(%error, "redis not reached; trying again");
                tokio::select! {
                    () = shutdown.cancelled() => return Err(error),
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }
}

/// Says in the log what Redis would lose as it is set up. It is no reason not to start.
async fn tell_health(pod: &Pod) {
    let mut prefixes: Vec<String> = pod.partitions.iter().map(|partition| partition.key("")).collect();
    prefixes.push(pod.keys.runners());
    let checkups = match pod.redis.checkups(&prefixes, pod.config.require_replicas, pod.config.lease).await {
        Ok(checkups) => checkups,
        Err(error) => return warn!(%error, "redis not looked at"),
    };
    for (server, finding) in checkups.iter().flat_map(|c| c.findings.iter().map(|finding| (&c.server, finding))) {
        let Finding { severity, what, then, set } = finding;
        match severity {
            Severity::Loss => {
                warn!(target: HEALTH, server, what, then, set, "redis may lose jobs or hold them up; see job-router doctor");
            }
            Severity::Waste => {
                info!(target: HEALTH, server, what, then, set, "redis could do better; see job-router doctor");
            }
        }
    }
}

/// Makes the pod known, with its scripts and its policy, however often Redis is away meanwhile. Answers the id of the last change
/// of the runner registry.
pub(super) async fn begin(pod: &Pod) -> Result<String, Undone> {
    tell_health(pod).await;
    pod.until_done("loading the scripts", || load_scripts(pod)).await?;
    pod.until_done("setting the policy", || set_policy(pod)).await?;
    // The first heartbeat comes before anything waits for mail: mail is only for pods that are known.
    for number in 0..pod.keys.partitions() {
        recover::join(pod, number).await?;
    }
    pod.until_done("the runner registry", || pod.runners.last_change()).await
}

/// Loads the scripts on every node that has keys of ours, so that calls keep their order.
async fn load_scripts(pod: &Pod) -> Result<(), RedisError> {
    for partition in pod.partitions.iter() {
        pod.redis.load(&scripts::ALL, &partition.key("")).await?;
    }
    pod.redis.load(&scripts::ALL, pod.runners.prefix()).await
}

/// Makes the policy in Redis that of this pod's configuration.
async fn set_policy(pod: &Pod) -> Result<(), RedisError> {
    for number in 0..pod.keys.partitions() {
        pod.set_policy(number).await?;
    }
    Ok(())
}

/// Keeps the readiness true, and after each new connection brings the pod and Redis together again, until the pod has stopped.
pub(super) async fn follow(pod: Pod, readiness: Arc<Readiness>, take: mpsc::Sender<ToTake>) {
    let mut connections = pod.redis.connections();
    connections.mark_unchanged();
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            () = pod.stopped.cancelled() => return,
            _ = look.tick() => readiness.set_redis_up(pod.redis.is_up()),
            Ok(()) = connections.changed() => {
                metrics().redis_reconnects_total.increment(1);
                info!("redis connected again");
                if let Err(error) = load_scripts(&pod).await {
                    error!(%error, "scripts not loaded; each is with its next call");
                }
                if let Err(error) = set_policy(&pod).await {
                    error!(%error, "policy not set; it stays as it is");
                }
                // Wakes may have been lost, and with another server all the pod waited for.
                let _ = take.send(ToTake::Resync).await;
            }
        }
    }
}
