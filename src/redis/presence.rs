//! Which managers are connected where, and their free slots: told by each pod, for those who explain.
//!
//! One hash per pod, in the registry's slot: `{jr:runners}:fleet:<pod>`, a field for each manager, `<runner id>:<system id>`.
//! A field `v` stands beside them, so that a pod without runners is told from one that says nothing, of an older version say.
//! A pod writes what has changed about once a second, so what is read is up to that old, and the whole goes with the pod:
//! it expires [`FLEET_TTL`] after the last word. Nobody decides by it about a job.

use std::sync::Arc;
use std::time::Duration;

use super::partition::{ms, parse};
use super::{Arg, Redis, RedisError};
use crate::explain::facts::{Manager, Seen};
use crate::job::{Name, RunnerId};

/// How long what a pod said of its runners stays after its last word.
pub const FLEET_TTL: Duration = Duration::from_secs(10);
/// The field that stands there once all was told.
const MARK: &str = "v";
/// Managers of one read: what Redis answers in well below a millisecond.
const PAGE: u64 = 500;

/// What the pods say of their runners.
#[derive(Clone)]
pub struct Presence {
    redis: Redis,
    prefix: String,
}

/// What is to be said of one manager; none: it has gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its runner.
    pub runner_id: RunnerId,
    /// Its name.
    pub system_id: Name,
    /// What is seen of it.
    pub seen: Option<Seen>,
    /// What it says of itself, for Rails: a JSON object. Nothing of one that has gone.
    pub info: Arc<str>,
}

// === impl Presence ===

impl Presence {
    /// The presence beside the registry whose keys begin with `prefix` (`{jr:runners}:`).
    pub fn new(redis: Redis, prefix: &str) -> Self {
        Self { redis, prefix: prefix.to_owned() }
    }

    /// Says that all of a pod's managers will be told from here on; what was told before goes.
    pub async fn begin(&self, pod: &Name) -> Result<(), RedisError> {
        self.forget(pod).await?;
        self.redis.command("HSET", [self.key(pod), MARK.into(), "1".into()]).await?;
        self.keep(pod).await.map(drop)
    }

    /// Says what has changed at a pod. May be repeated. Does not write the mark: where Redis has lost what was told before, what
    /// is written now stands without it, and [`keep`](Self::keep) tells.
    pub async fn tell(&self, pod: &Name, changes: &[Change]) -> Result<(), RedisError> {
        let (mut now, mut gone) = (vec![self.key(pod)], vec![self.key(pod)]);
        for change in changes {
            let field = format!("{}:{}", change.runner_id, change.system_id);
            match &change.seen {
                Some(seen) => now.extend([field.into(), serde_json::to_string(seen).expect("it is JSON").into()]),
                None => gone.push(field.into()),
            }
        }
        if gone.len() > 1 {
            self.redis.command("HDEL", gone).await?;
        }
        if now.len() > 1 {
            self.redis.command("HSET", now).await?;
        }
        self.keep(pod).await.map(drop)
    }

    /// A pod's word holds for another [`FLEET_TTL`]. Answers whether all of it is there: if not, tell all again.
    pub async fn keep(&self, pod: &Name) -> Result<bool, RedisError> {
        self.redis.command("PEXPIRE", [self.key(pod), ms(FLEET_TTL)]).await?;
        self.is_told(pod).await
    }

    async fn is_told(&self, pod: &Name) -> Result<bool, RedisError> {
        Ok(self.redis.command("HEXISTS", [self.key(pod), MARK.into()]).await?.as_i64()? == 1)
    }

    /// A pod leaves.
    pub async fn forget(&self, pod: &Name) -> Result<(), RedisError> {
        self.redis.command("UNLINK", [self.key(pod)]).await.map(drop)
    }

    /// All managers that are connected to these pods, and those of the pods that say nothing.
    pub async fn of(&self, pods: &[Name]) -> Result<(Vec<(RunnerId, Manager)>, Vec<Name>), RedisError> {
        let (mut all, mut silent) = (Vec::new(), Vec::new());
        for pod in pods {
            let mut cursor = "0".to_owned();
            if !self.is_told(pod).await? {
                silent.push(pod.clone());
                continue;
            }
            loop {
                let args = [self.key(pod), cursor.into(), "COUNT".into(), PAGE.into()];
                let [next, page] = self.redis.command("HSCAN", args).await?.into_tuple()?;
                for pair in page.into_array()?.chunks_exact(2) {
                    // What another version wrote and this one cannot read is no manager.
                    all.extend(read(pod, pair[0].as_str()?, pair[1].as_str()?));
                }
                cursor = next.as_str()?.to_owned();
                if cursor == "0" {
                    break;
                }
            }
        }
        all.sort_by(|(a, one), (b, other)| (a, &one.system_id, &one.pod).cmp(&(b, &other.system_id, &other.pod)));
        all.dedup(); // a scan may tell one twice
        Ok((all, silent))
    }

    /// The pods that are known in a partition.
    pub(super) async fn pods(&self, pods_key: String) -> Result<Vec<Name>, RedisError> {
        let pods = self.redis.command("ZRANGE", [pods_key.into(), 0_i64.into(), 999_i64.into()]).await?.into_array()?;
        pods.iter().map(parse).collect()
    }

    fn key(&self, pod: &Name) -> Arg {
        format!("{}fleet:{pod}", self.prefix).into()
    }
}

fn read(pod: &Name, field: &str, json: &str) -> Option<(RunnerId, Manager)> {
    let (runner_id, system_id) = field.split_once(':')?;
    let seen: Seen = serde_json::from_str(json).ok()?;
    Some((runner_id.parse().ok()?, Manager { system_id: Name::new(system_id).ok()?, pod: pod.clone(), seen }))
}
