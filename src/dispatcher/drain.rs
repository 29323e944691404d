//! The end of a pod: nothing lost, nobody kept waiting.
//!
//! Order: no new work (the inbox is left, takes end) · every runner is told to reconnect elsewhere, each after its own delay ·
//! what was pushed is accepted or given back · sessions end · the pod leaves: what it still held is given back, wakes in
//! its mail are passed on.

use std::time::Duration;

use rand::Rng;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use crate::proto::{self, router_message::Kind};
use crate::stages::{Pod, fan_out};
use crate::telemetry::labels::SessionClosed;

/// How often to look whether the runners have gone.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How many runners are sent away in a second: a part of what another pod can let in.
const AWAY_PER_SECOND: u32 = 500;

/// Drains a pod; all its stages return after this.
pub(super) async fn drain(pod: &Pod, mut fan_out: JoinSet<()>) {
    let deadline = Instant::now() + pod.config.drain_timeout;
    info!(pod = %pod.name, sessions = pod.sessions.len(), "pod drains");
    pod.draining.cancel();
    send_away(pod);
    // Runners move while the inbox batch in hand is applied; theirs is the longer wait.
    while !pod.sessions.is_empty() && Instant::now() < deadline {
        sleep(LOOK_EVERY).await;
    }
    match tokio::time::timeout_at(deadline + LOOK_EVERY, fan_out.join_next()).await {
        Ok(Some(Err(error))) => error!(%error, "fan_out panicked; another pod takes over what it had read"),
        Ok(_) => {}
        Err(_) => warn!("inbox not left in time; another pod takes over what it had read"),
    }
    let staying = pod.sessions.len();
    if staying > 0 {
        warn!(staying, undelivered = pod.held.undelivered(), "runners cut, the drain timeout is over");
    }
    for outbox in pod.sessions.all() {
        outbox.close(SessionClosed::Drain, Some(tonic::Status::unavailable("the pod has drained")));
    }
    while !pod.sessions.is_empty() && Instant::now() < deadline + Duration::from_secs(1) {
        sleep(LOOK_EVERY).await;
    }
    pod.stopped.cancel();
    leave(pod).await;
}

/// Tells every runner to reconnect elsewhere, each after its own delay.
fn send_away(pod: &Pod) {
    let sessions = pod.sessions.all();
    let spread = Duration::from_secs(1) * sessions.len() as u32 / AWAY_PER_SECOND;
    let spread = spread.min(pod.config.drain_timeout / 2).as_millis() as u32;
    for outbox in sessions {
        let reconnect_after_ms = rand::rng().random_range(0..=spread);
        outbox.send(Kind::Drain(proto::Drain { reconnect_after_ms }));
    }
}

/// Takes the pod out of Redis. What fails here, the other pods do when they find it dead.
async fn leave(pod: &Pod) {
    for partition in pod.partitions.iter() {
        match partition.bury(&pod.name, None).await {
            Ok(given_back) => info!(given_back = given_back.unwrap_or_default(), "pod left"),
            Err(error) => warn!(%error, "pod not taken out of redis; others will find it dead"),
        }
    }
    if let Err(error) = fan_out::leave(pod).await {
        warn!(%error, "inbox consumer not taken out of redis");
    }
}
