//! stuck: tells Rails of queued jobs that no online runner could ever take.
//!
//! In: time. Out: `job.stuck` events. All jobs of a bucket are alike to every runner, so buckets are looked at and not jobs; the
//! head of each that is stuck is told of, with how many jobs stand with it. One pod at a time looks, by a claim that
//! expires; what was told is remembered in Redis, so who looks next goes on.
//!
//! What must stay true:
//!
//! - A look costs a bounded time, however many buckets there are: the next goes on where it ended.
//! - While some living pod does not say which runners it has, nothing is told: they may be what is missing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tracing::{debug, info, warn};

use super::Pod;
use crate::clock::jitter;
use crate::explain::facts::Roster;
use crate::explain::{Why, why_stuck};
use crate::job::ProjectFacts;
use crate::redis::{BucketKind, Explainer, ExplainerKeys, Partition, RedisError, StuckReason, Verdict};
use crate::tags::Fingerprint;
use crate::telemetry::metrics;

/// The longest time between two looks; less where `stuck_after` is short.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY_MIN: Duration = Duration::from_millis(100);
/// How long one look may take. The next goes on.
const LOOK_MAX: Duration = Duration::from_millis(500);
/// How long a stuck bucket is remembered without being found again: many times what all of them take to look at.
const MEMORY: Duration = Duration::from_secs(15 * 60);

/// Looks until the pod has stopped.
pub async fn run(pod: Pod) {
    let keys = ExplainerKeys {
        keys: pod.keys.clone(),
        inbox_stream: pod.config.inbox_stream.clone(),
        lease: pod.config.lease,
        affinity_wait: pod.config.affinity_wait,
    };
    let explainer = Explainer::new(&pod.redis, keys);
    let every = (pod.config.stuck_after / 6).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX);
    loop {
        tokio::select! {
            () = pod.stopped.cancelled() => return,
            () = tokio::time::sleep(jitter(every, 0.2)) => {}
        }
        let mut roster = None; // read at most once a look
        for partition in pod.partitions.iter() {
            // Left over for the next look: nobody waits for it.
            if let Err(error) = look(&pod, partition, &explainer, &mut roster, every).await {
                warn!(%error, "stuck jobs not looked for");
            }
        }
    }
}

async fn look(
    pod: &Pod,
    partition: &Partition,
    explainer: &Explainer,
    roster: &mut Option<Roster>,
    every: Duration,
) -> Result<(), RedisError> {
    if !partition.claim_stuck(&pod.name, every.mul_f64(0.7)).await? {
        return Ok(());
    }
    let began = Instant::now();
    let mut known = HashMap::new();
    let mut after = partition.stuck_from().await?;
    let first = after.clone();
    loop {
        let page = partition.buckets(&after).await?;
        if !page.buckets.is_empty() {
            let roster = match &*roster {
                Some(roster) => roster,
                None => roster.insert(explainer.roster().await?),
            };
            if !roster.silent_pods.is_empty() {
                debug!(
                    silent = roster.silent_pods.len(),
                    "some pods do not say which runners they have; nothing is told"
                );
                return Ok(());
            }
            let mut verdicts = Vec::with_capacity(page.buckets.len());
            for bucket in page.buckets {
                if !known.contains_key(&kind_of(&bucket)) {
                    tokio::task::yield_now().await; // a fleet of thousands takes milliseconds to judge
                }
                verdicts.push(judge(bucket, roster, &mut known));
            }
            let told = partition.stuck(pod.config.stuck_after, MEMORY, &verdicts).await?;
            if told > 0 {
                metrics().jobs_stuck_total.increment(told);
                info!(told, "stuck jobs told of");
            }
        }
        after = page.next;
        if after.is_empty() || began.elapsed() > LOOK_MAX {
            break;
        }
    }
    if after != first {
        partition.set_stuck_from(&after, MEMORY).await?;
    }
    Ok(())
}

/// What decides who may take a job.
type Kind = (ProjectFacts, Fingerprint);

fn kind_of(bucket: &BucketKind) -> Kind {
    (bucket.project.clone(), bucket.capability.fingerprint())
}

fn judge(bucket: BucketKind, roster: &Roster, known: &mut HashMap<Kind, Option<StuckReason>>) -> Verdict {
    let found = known.entry(kind_of(&bucket));
    let stuck = found.or_insert_with(|| why_stuck(&bucket.project, &bucket.capability, roster).map(told)).clone();
    Verdict { bucket: bucket.name, stuck }
}

/// The reason as it is remembered: which runners are nearest is no news while they lack the same; and as members of the event.
#[expect(clippy::needless_pass_by_value, reason = "it is mapped over")]
fn told(why: Why) -> StuckReason {
    let known = serde_json::to_string(&(why.reason, &why.missing)).expect("it is JSON");
    let hash = hex::encode(&Sha256::digest(known)[..8]);
    let members = serde_json::to_string(&why).expect("it is JSON");
    StuckReason { hash, members: format!(",{}", &members[1..members.len() - 1]) }
}
