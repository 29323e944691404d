//! scopes: opens lanes for the scopes that this pod's runners have.
//!
//! In: a scope, whenever a runner with it connects, and again from time to time. Out: the lanes reach every pod by mail; wakes
//! for this pod go to the take stage.

use std::collections::HashMap;
use std::time::Instant;

use tokio::sync::mpsc;

use super::{Pod, ToTake, Undone};
use crate::redis::RedisError;
use crate::runner::Scope;

/// Opens scopes until the pod has stopped.
pub async fn run(pod: Pod, mut in_use: mpsc::Receiver<Scope>, take: mpsc::Sender<ToTake>) {
    let mut opened: HashMap<Scope, Instant> = HashMap::new();
    let mut connections = pod.redis.connections();
    connections.mark_unchanged();
    let mut forgotten = pod.redis.forgotten();
    loop {
        let scope = tokio::select! {
            () = pod.stopped.cancelled() => return,
            scope = in_use.recv() => match scope { Some(scope) => scope, None => return },
        };
        if connections.has_changed().unwrap_or(false) || forgotten.has_changed().unwrap_or(false) {
            // Another Redis perhaps, or one that has forgotten what it was told: nothing is known to be open there.
            connections.mark_unchanged();
            forgotten.mark_unchanged();
            opened.clear();
        }
        // A scope goes unless a pod speaks for it within `scope_ttl`; a third of that leaves room for a miss.
        let fresh = pod.config.scope_ttl / 3;
        if opened.get(&scope).is_some_and(|at| at.elapsed() < fresh) {
            continue;
        }
        match open(&pod, scope, &take).await {
            Ok(()) => drop(opened.insert(scope, Instant::now())),
            Err(Undone::Stopped) => return,
            Err(Undone::Failed(_)) => {}
        }
        opened.retain(|_, at| at.elapsed() < fresh);
    }
}

async fn open(pod: &Pod, scope: Scope, take: &mpsc::Sender<ToTake>) -> Result<(), Undone> {
    for (number, partition) in pod.partitions.iter().enumerate() {
        let wakes = pod
            .until_done("scope", || async {
                if partition.scope(scope, false).await? {
                    return Ok::<_, RedisError>(Vec::new());
                }
                let wakes = partition.index(&pod.name, None).await?;
                partition.scope(scope, true).await?;
                Ok(wakes)
            })
            .await?;
        if !wakes.is_empty() {
            let _ = take.send(ToTake::Wake(number as u16, wakes)).await;
        }
    }
    Ok(())
}
