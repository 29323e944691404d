//! presence: tells the other pods, and those who explain, which managers are connected here, and their free slots.
//!
//! In: what has changed, about once a second, from the take stage. Out: this pod's hash in Redis, which goes a few seconds
//! after the last word. Nobody decides by it about a job, so a word that fails is not repeated at once: with the next one
//! all is told again.

use std::collections::HashMap;

use tokio::sync::mpsc;
use tracing::debug;

use super::Pod;
use crate::explain::facts::Seen;
use crate::job::{Name, RunnerId};
use crate::redis::{Change, Presence, RedisError};

/// Managers told of in one call.
const PAGE: usize = 256;

/// Tells until the pod has stopped.
pub async fn run(pod: Pod, mut changes: mpsc::Receiver<Vec<Change>>) {
    let presence = Presence::new(pod.redis.clone(), pod.runners.prefix());
    let mut told: HashMap<(RunnerId, Name), Seen> = HashMap::new();
    let mut all_again = false;
    loop {
        let changed = tokio::select! {
            () = pod.stopped.cancelled() => break,
            changed = changes.recv() => match changed { Some(changed) => changed, None => break },
        };
        let news = news(&mut told, changed);
        let said = if std::mem::take(&mut all_again) {
            tell_all(&pod, &presence, &told).await
        } else {
            say(&pod, &presence, &told, &news).await
        };
        if let Err(error) = said {
            debug!(%error, "presence not told; all of it is, with the next word");
            all_again = true;
        }
    }
    if let Err(error) = presence.forget(&pod.name).await {
        debug!(%error, "presence not taken back; it expires");
    }
}

/// Takes down what has changed; answers what is news.
fn news(told: &mut HashMap<(RunnerId, Name), Seen>, changed: Vec<Change>) -> Vec<Change> {
    let mut news = Vec::new();
    for change in changed {
        let manager = (change.runner_id, change.system_id.clone());
        let is_news = match &change.seen {
            Some(seen) => told.insert(manager, seen.clone()).as_ref() != Some(seen),
            None => told.remove(&manager).is_some(),
        };
        news.extend(is_news.then_some(change));
    }
    news
}

async fn say(
    pod: &Pod,
    presence: &Presence,
    told: &HashMap<(RunnerId, Name), Seen>,
    news: &[Change],
) -> Result<(), RedisError> {
    // The word before is gone: Redis lost it, or was away for long.
    if !presence.keep(&pod.name).await? {
        return tell_all(pod, presence, told).await;
    }
    for page in news.chunks(PAGE) {
        presence.tell(&pod.name, page).await?;
    }
    Ok(())
}

async fn tell_all(pod: &Pod, presence: &Presence, told: &HashMap<(RunnerId, Name), Seen>) -> Result<(), RedisError> {
    presence.begin(&pod.name).await?;
    let all = told.iter().map(|((runner_id, system_id), seen)| Change {
        runner_id: *runner_id,
        system_id: system_id.clone(),
        seen: Some(seen.clone()),
    });
    for page in all.collect::<Vec<_>>().chunks(PAGE) {
        presence.tell(&pod.name, page).await?;
    }
    Ok(())
}
