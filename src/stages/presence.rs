//! presence: tells who is connected here. The other pods, and those who explain, hear of managers and their free slots; Rails hears of
//! managers that come, are still there, and have gone.
//!
//! In: what has changed, about once a second, from the take stage. Out: this pod's hash in Redis, which goes a few seconds
//! after the last word; and by the scripts `online` and `offline` events for Rails. Nobody decides by any of it about a job, so a word
//! that fails is not repeated at once: with the next one all is told again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use super::Pod;
use crate::clock::jitter;
use crate::explain::facts::Seen;
use crate::redis::{Change, Manager, Presence, RedisError};

/// Managers told of in one call.
const PAGE: usize = 256;
/// How often in `offline_after` a pod says of a manager that it is connected: one word may be late, and one may be lost.
const WORDS: u32 = 3;

/// Managers that are connected here.
type Connected = HashMap<Manager, (Seen, Arc<str>)>;

/// What Rails hears.
struct Rails {
    pod: Pod,
    /// Managers it has not heard of yet.
    new: VecDeque<Manager>,
    /// When to say of all again that they are connected.
    all_again_at: Instant,
    /// Since when all was said that was to be said, so that who is not heard of is not there.
    whole_since: Option<Instant>,
}

/// What the other pods were told.
enum Told {
    News,
    All,
}

/// Tells until the pod has stopped.
pub async fn run(pod: Pod, mut changes: mpsc::Receiver<Vec<Change>>) {
    let presence = Presence::new(pod.redis.clone(), pod.runners.prefix());
    let mut connected = Connected::new();
    let mut rails = Rails::new(pod.clone());
    let mut all_again = false;
    loop {
        let changed = tokio::select! {
            () = pod.stopped.cancelled() => break,
            changed = changes.recv() => match changed { Some(changed) => changed, None => break },
        };
        let (news, new) = news(&mut connected, changed);
        let said = if std::mem::take(&mut all_again) {
            tell_all(&pod, &presence, &connected).await.map(|()| Told::All)
        } else {
            say(&pod, &presence, &connected, &news).await
        };
        match said {
            Ok(Told::News) => {}
            // Redis lost it perhaps, and with it what Rails was told.
            Ok(Told::All) => rails.all_again_at = Instant::now(),
            Err(error) => {
                debug!(%error, "presence not told; all of it is, with the next word");
                all_again = true;
            }
        }
        rails.new.extend(new);
        rails.tell(&connected).await;
    }
    if let Err(error) = presence.forget(&pod.name).await {
        debug!(%error, "presence not taken back; it expires");
    }
}

/// Takes down what has changed; answers what is news, and which managers are new.
fn news(connected: &mut Connected, changed: Vec<Change>) -> (Vec<Change>, Vec<Manager>) {
    let (mut news, mut new) = (Vec::new(), Vec::new());
    for change in changed {
        let manager = (change.runner_id, change.system_id.clone());
        let is_news = match &change.seen {
            Some(seen) => {
                let before = connected.insert(manager.clone(), (seen.clone(), change.info.clone()));
                if before.is_none() {
                    new.push(manager);
                }
                before.map(|(seen, _)| seen).as_ref() != Some(seen)
            }
            None => connected.remove(&manager).is_some(),
        };
        news.extend(is_news.then_some(change));
    }
    (news, new)
}

async fn say(pod: &Pod, presence: &Presence, connected: &Connected, news: &[Change]) -> Result<Told, RedisError> {
    // The word before is gone: Redis lost it, or was away for long.
    if !presence.keep(&pod.name).await? {
        return tell_all(pod, presence, connected).await.map(|()| Told::All);
    }
    for page in news.chunks(PAGE) {
        presence.tell(&pod.name, page).await?;
    }
    Ok(Told::News)
}

async fn tell_all(pod: &Pod, presence: &Presence, connected: &Connected) -> Result<(), RedisError> {
    presence.begin(&pod.name).await?;
    let all = connected.iter().map(|((runner_id, system_id), (seen, info))| Change {
        runner_id: *runner_id,
        system_id: system_id.clone(),
        seen: Some(seen.clone()),
        info: info.clone(),
    });
    for page in all.collect::<Vec<_>>().chunks(PAGE) {
        presence.tell(&pod.name, page).await?;
    }
    Ok(())
}

// === impl Rails ===

impl Rails {
    fn new(pod: Pod) -> Self {
        Self { pod, new: VecDeque::new(), all_again_at: Instant::now(), whole_since: None }
    }

    /// Tells of managers that are new, a page each time, so that one that invents managers writes only so much; and from time to time
    /// of all, and of those that are gone.
    async fn tell(&mut self, connected: &Connected) {
        let now = Instant::now();
        let every = self.pod.config.offline_after / WORDS;
        let all = now >= self.all_again_at;
        // It was held up, and cannot say whether others could tell meanwhile.
        if now >= self.all_again_at + self.pod.config.offline_after {
            self.whole_since = None;
        }
        let said = if all {
            self.all_again_at = now + jitter(every, 0.1);
            let new: HashSet<_> = self.new.iter().collect();
            let known = connected.keys().filter(|manager| !new.contains(manager)).cloned().collect();
            self.online(known, connected).await
        } else {
            Ok(())
        };
        let page: Vec<_> = self.new.drain(..self.new.len().min(PAGE)).collect();
        let said = match self.online(page, connected).await {
            Ok(()) => said,
            failed => failed,
        };
        let told = match said {
            Ok(()) if all => self.offline(now).await,
            other => other,
        };
        if let Err(error) = told {
            debug!(%error, "Rails not told who is connected; of all again, with the next word");
            self.all_again_at = now;
            self.whole_since = None;
        }
    }

    async fn online(&self, managers: Vec<Manager>, connected: &Connected) -> Result<(), RedisError> {
        let (pod, again) = (&self.pod, self.pod.config.online_interval);
        let there: Vec<_> = managers
            .into_iter()
            .filter_map(|manager| connected.get(&manager).map(|(_, info)| info.clone()).map(|info| (manager, info)))
            .collect();
        for page in there.chunks(PAGE) {
            pod.partitions[0].online(&pod.name, again, page).await?;
        }
        Ok(())
    }

    /// Only once all pods have had the time to say who is there, since they could.
    async fn offline(&mut self, now: Instant) -> Result<(), RedisError> {
        let silent: Duration = self.pod.config.offline_after;
        if now < *self.whole_since.get_or_insert(now) + silent {
            return Ok(());
        }
        let pod = &self.pod;
        while pod.partitions[0].offline(&pod.name, silent, PAGE as u64).await? == PAGE as u64 {}
        Ok(())
    }
}
