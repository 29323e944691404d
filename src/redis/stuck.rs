//! The calls of stage `stuck`: a page of buckets, and what is to be told of them.

use std::collections::HashMap;
use std::time::Duration;

use super::explain::project_of;
use super::partition::{capability_of, ms, parse};
use super::{Partition, RedisError, scripts};
use crate::job::{Name, ProjectFacts};
use crate::tags::{Capability, Fingerprint};

/// Buckets with queued jobs.
#[derive(Debug)]
pub struct BucketPage {
    /// Where to go on; empty: these were the last.
    pub next: String,
    /// The buckets.
    pub buckets: Vec<BucketKind>,
}

/// A bucket, and what decides who may take its jobs.
#[derive(Debug)]
pub struct BucketKind {
    /// `<fp>:<project>:<priority>`.
    pub name: String,
    /// What its jobs need.
    pub capability: Capability,
    /// Whose they are.
    pub project: ProjectFacts,
}

/// What is found of a bucket.
#[derive(Debug)]
pub struct Verdict {
    /// `<fp>:<project>:<priority>`.
    pub bucket: String,
    /// Why no online runner could ever take its jobs; none: one could.
    pub stuck: Option<StuckReason>,
}

/// Why, as it is remembered and as it is told.
#[derive(Debug, Clone)]
pub struct StuckReason {
    /// Another one is news.
    pub hash: String,
    /// JSON members, each with a comma before it.
    pub members: String,
}

// === impl Partition ===

impl Partition {
    /// `buckets`: a page of buckets after a bound (`-`: from the start).
    pub async fn buckets(&self, after: &str) -> Result<BucketPage, RedisError> {
        let reply = self.call(&scripts::BUCKETS, vec![after.into()]).await?;
        let [next, buckets, capabilities] = reply.into_tuple()?;
        let mut known: HashMap<Fingerprint, Capability> = HashMap::new();
        for pair in capabilities.into_array()?.chunks_exact(2) {
            if !pair[1].as_str()?.is_empty() {
                known.insert(parse(&pair[0])?, capability_of(&pair[1])?);
            }
        }
        let mut page = BucketPage { next: next.as_str()?.to_owned(), buckets: Vec::new() };
        for pair in buckets.into_array()?.chunks_exact(2) {
            page.buckets.extend(bucket_of(pair[0].as_str()?, pair[1].as_str()?, &known));
        }
        Ok(page)
    }

    /// `stuck`: tells of stuck buckets what is news. Answers how many events were written.
    pub async fn stuck(
        &self,
        stuck_after: Duration,
        memory: Duration,
        verdicts: &[Verdict],
    ) -> Result<u64, RedisError> {
        let mut args = vec![ms(stuck_after), ms(memory)];
        for Verdict { bucket, stuck } in verdicts {
            let (hash, members) = stuck.as_ref().map_or(("", ""), |stuck| (&stuck.hash, &stuck.members));
            args.extend([bucket.into(), hash.into(), members.into()]);
        }
        self.call(&scripts::STUCK, args).await?.as_u64()
    }

    /// Where the last look ended; `-`: at the end.
    pub async fn stuck_from(&self) -> Result<String, RedisError> {
        let from = self.redis.command("GET", [self.key("stuck_from").into()]).await?.into_option();
        from.map_or_else(|| Ok("-".to_owned()), |from| from.as_str().map(str::to_owned))
    }

    /// Remembers where a look ended; empty: at the end.
    pub async fn set_stuck_from(&self, after: &str, memory: Duration) -> Result<(), RedisError> {
        let key = self.key("stuck_from").into();
        if after.is_empty() {
            return self.redis.command("DEL", [key]).await.map(drop);
        }
        self.redis.command("SET", [key, after.into(), "PX".into(), ms(memory)]).await.map(drop)
    }

    /// Whether this pod is the one that looks for stuck jobs for the next `time`.
    pub async fn claim_stuck(&self, pod: &Name, time: Duration) -> Result<bool, RedisError> {
        let args = [self.key("stuck").into(), pod.as_str().into(), "NX".into(), "PX".into(), ms(time)];
        Ok(!self.redis.command("SET", args).await?.is_nil())
    }
}

/// None: a bucket that this version cannot read.
fn bucket_of(member: &str, facts: &str, known: &HashMap<Fingerprint, Capability>) -> Option<BucketKind> {
    let (project_id, rest) = member.split_once(':')?;
    let (fingerprint, priority) = rest.rsplit_once(':')?;
    Some(BucketKind {
        name: format!("{fingerprint}:{project_id}:{priority}"),
        capability: known.get(&fingerprint.parse().ok()?)?.clone(),
        project: project_of(project_id.parse().ok()?, facts)?,
    })
}
