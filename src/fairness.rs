//! Who goes next: the rule of DESIGN 8, as pure functions.
//!
//! Arrives: plain facts about tenants, projects and buckets of one lane. Leaves: the next bucket, and the scores by
//! which Redis keeps that order. The scores mirror `lua/lib/score.lua` bit for bit (`tests/scripts/scores.rs` runs both);
//! the functions `next_in_…` are what `take` must choose (`tests/scripts/model.rs`).
//!
//! Precision: shares differ when they differ by more than one part in 64; running jobs of a project count up to
//! 1,023; queue times count in ms from 2025 to 2059, turns of tenants in quarters of one. Equal scores go by name, byte by byte, as in a sorted set.

use crate::job::{Priority, ProjectId};

/// 2025-01-01 in Unix ms: queue times count from here.
const EPOCH_MS: u64 = 1_735_689_600_000;
const HEAD_BITS: u32 = 40;
const HEAD_MAX: u64 = (1 << HEAD_BITS) - 1;
const PRIORITY_BITS: u32 = 50;
/// Turns of tenants count in quarters of a ms, so that few share one.
const TURNS_PER_MS: u64 = 4;
const SINCE_BITS: u32 = 42;
const SINCE_MAX: u64 = (1 << SINCE_BITS) - 1;
const RANK_MAX: u64 = 2047;
const RUNNING_MAX: u32 = 1023;

/// A tenant in an instance lane.
#[derive(Debug, Clone)]
pub struct TenantInLane<'a> {
    /// Its name in keys.
    pub key: &'a str,
    /// Its share against others', from 1.
    pub weight: u32,
    /// Its jobs on instance runners now, in all lanes.
    pub running: u32,
    /// The most of them it may have.
    pub max_running: Option<u32>,
    /// Its last turn: when one of its jobs went to an instance runner, in quarters of a ms of Unix time; 0: never.
    pub served: u64,
    /// Its buckets in this lane.
    pub buckets: Vec<BucketInLane>,
}

/// A bucket in a lane: queued jobs of one project and priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketInLane {
    /// Whose jobs.
    pub project: ProjectId,
    /// The project's jobs on instance runners now, in all lanes.
    pub project_running: u32,
    /// The most of them it may have.
    pub project_max_running: Option<u32>,
    /// Their rank within the tenant.
    pub priority: Priority,
    /// Queue time of the first queued job, in Unix ms.
    pub queued_at_ms: u64,
}

/// The next bucket of an instance lane, and the score of its tenant, by which lanes compare. Tenants by running jobs
/// per weight, then by who waits longest: since the head of its next bucket was queued, or it was served; within the tenant by
/// priority, then by the project's running jobs, then the oldest head. Who is at a cap is left out.
pub fn next_in_instance_lane(tenants: &[TenantInLane<'_>]) -> Option<(u64, BucketInLane)> {
    let nexts = tenants.iter().filter(|tenant| !at_cap(tenant.running, tenant.max_running)).filter_map(|tenant| {
        let bucket = next_of_tenant(tenant)?;
        let since = waits_since(head_of(bucket.queued_at_ms), tenant.served);
        let score = tenant_score(tenant.running, tenant.weight, since);
        Some((score, tenant.key, bucket))
    });
    nexts.min_by_key(|(score, key, _)| (*score, *key)).map(|(score, _, bucket)| (score, bucket))
}

/// The next bucket of one tenant in an instance lane, its own cap apart.
pub fn next_of_tenant(tenant: &TenantInLane<'_>) -> Option<BucketInLane> {
    let free = tenant.buckets.iter().filter(|bucket| !at_cap(bucket.project_running, bucket.project_max_running));
    let score =
        |bucket: &BucketInLane| bucket_score(bucket.priority, bucket.project_running, head_of(bucket.queued_at_ms));
    free.min_by_key(|bucket| (score(bucket), member(bucket))).copied()
}

/// The next bucket of an instance lane that is a plain queue, its tenant's key, and its score: the oldest head, be it whose it may;
/// with `ageing_ms` as [`aged_head`] has it. Who is at a cap is left out.
pub fn next_in_plain_lane<'a>(
    tenants: &[TenantInLane<'a>],
    ageing_ms: Option<u64>,
) -> Option<(u64, &'a str, BucketInLane)> {
    let free = tenants.iter().filter(|tenant| !at_cap(tenant.running, tenant.max_running));
    let buckets = free.flat_map(|tenant| tenant.buckets.iter().map(|bucket| (tenant.key, *bucket)));
    let nexts = buckets
        .filter(|(_, bucket)| !at_cap(bucket.project_running, bucket.project_max_running))
        .map(|(key, bucket)| (plain_head(&bucket, ageing_ms), key, bucket));
    nexts.min_by_key(|(score, key, bucket)| (*score, *key, member(bucket)))
}

/// The next bucket of a group's fair lane, and its score: priority, then the project's running jobs, which are those on the
/// group's runners, then the oldest head.
pub fn next_in_fair_lane(buckets: &[BucketInLane]) -> Option<(u64, BucketInLane)> {
    let score =
        |bucket: &BucketInLane| bucket_score(bucket.priority, bucket.project_running, head_of(bucket.queued_at_ms));
    buckets.iter().map(|bucket| (score(bucket), *bucket)).min_by_key(|(score, bucket)| (*score, member(bucket)))
}

/// The next bucket of a group or project lane where priorities age, and its score.
pub fn next_in_aged_lane(buckets: &[BucketInLane], ageing_ms: u64) -> Option<(u64, BucketInLane)> {
    let score = |bucket: &BucketInLane| plain_head(bucket, Some(ageing_ms));
    buckets.iter().map(|bucket| (score(bucket), *bucket)).min_by_key(|(score, bucket)| (*score, member(bucket)))
}

fn plain_head(bucket: &BucketInLane, ageing_ms: Option<u64>) -> u64 {
    let head = head_of(bucket.queued_at_ms);
    ageing_ms.map_or(head, |ageing_ms| aged_head(bucket.priority, head, ageing_ms))
}

/// The next bucket of a group or project lane, and its score, by which lanes compare: priority, then the oldest head.
pub fn next_in_fifo_lane(buckets: &[BucketInLane]) -> Option<(u64, BucketInLane)> {
    let score = |bucket: &BucketInLane| fifo_score(bucket.priority, head_of(bucket.queued_at_ms));
    buckets.iter().map(|bucket| (score(bucket), *bucket)).min_by_key(|(score, bucket)| (*score, member(bucket)))
}

/// Whether a cap is reached.
pub fn at_cap(running: u32, max_running: Option<u32>) -> bool {
    max_running.is_some_and(|max| running >= max)
}

/// Queue time as 40 bits of ms; what lies outside counts as the first or last of them.
pub fn head_of(queued_at_ms: u64) -> u64 {
    queued_at_ms.saturating_sub(EPOCH_MS).min(HEAD_MAX)
}

/// Running jobs and a half, per weight, as 11 bits: a small float with 6 bits of mantissa. The half rounds each tenant's
/// share of few slots to the nearest whole job (Webster's method of apportionment); without it, small weights get too much.
pub fn share_rank(running: u32, weight: u32) -> u64 {
    let share = 1.0 + 64.0 * (f64::from(running) + 0.5) / f64::from(weight);
    // Exponent and the first 6 bits of the mantissa, as they lie in the double, counted from those of 1.0.
    ((share.to_bits() >> 46) - (1.0f64.to_bits() >> 46)).min(RANK_MAX)
}

/// Since when a tenant waits, as 42 bits of quarters of a ms: since its first job was queued, or since its last turn where that
/// is later.
pub fn waits_since(head: u64, served: u64) -> u64 {
    (head * TURNS_PER_MS).max(served.saturating_sub(EPOCH_MS * TURNS_PER_MS).min(SINCE_MAX))
}

/// The first turn of a ms of Unix time.
pub fn first_turn_of(ms: u64) -> u64 {
    ms * TURNS_PER_MS
}

/// A tenant in an instance lane: smallest share first, then who waits longest.
pub fn tenant_score(running: u32, weight: u32, since: u64) -> u64 {
    (share_rank(running, weight) << SINCE_BITS) + since
}

/// A bucket of a tenant in an instance lane: priority, then the project's running jobs, then the oldest head.
pub fn bucket_score(priority: Priority, running: u32, head: u64) -> u64 {
    (u64::from(running.min(RUNNING_MAX)) << HEAD_BITS) + fifo_score(priority, head)
}

/// A bucket in a group or project lane: priority, then the oldest head.
pub fn fifo_score(priority: Priority, head: u64) -> u64 {
    ((2 - i64::from(priority.rank())) as u64) * (1 << PRIORITY_BITS) + head
}

/// Queue time where priorities hold across tenants, and each step of one is worth `ageing_ms` of waiting: a job is overtaken
/// by none that was queued more than four such steps after it.
pub fn aged_head(priority: Priority, head: u64, ageing_ms: u64) -> u64 {
    let worth = i64::from(priority.rank()) * ageing_ms as i64;
    (head as i64 - worth).clamp(0, HEAD_MAX as i64) as u64
}

/// The share's part of a tenant's score.
pub fn share_rank_in(score: u64) -> u64 {
    score >> SINCE_BITS
}

/// The part of a tenant's score that says since when it waits.
pub fn since_in(score: u64) -> u64 {
    score & SINCE_MAX
}

/// The head's part of a bucket's score.
pub fn head_in(score: u64) -> u64 {
    score & HEAD_MAX
}

/// A bucket's name in a lane: buckets of equal scores go by it, byte by byte.
pub fn bucket_name(project: ProjectId, priority: Priority) -> String {
    format!("{project}:{priority}")
}

fn member(bucket: &BucketInLane) -> String {
    bucket_name(bucket.project, bucket.priority)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn priority() -> impl Strategy<Value = Priority> {
        (-2i64..=2).prop_map(|rank| Priority::new(rank).expect("in range"))
    }

    fn queued_at() -> impl Strategy<Value = u64> {
        EPOCH_MS..=EPOCH_MS + HEAD_MAX
    }

    proptest! {
        #[test]
        fn tenants_go_by_share_unless_it_differs_by_less_than_one_part_in_64(
            a in (0u32..100_000, 1u32..1000, queued_at()), b in (0u32..100_000, 1u32..1000, queued_at())
        ) {
            let share =
                |(running, weight, _): (u32, u32, u64)| 1.0 + 64.0 * (f64::from(running) + 0.5) / f64::from(weight);
            let score = |(running, weight, at)| tenant_score(running, weight, waits_since(head_of(at), 0));
            if share(a) * (1.0 + 1.0 / 64.0) < share(b) {
                prop_assert!(score(a) < score(b));
            }
            if share(a) < share(b) && score(a) > score(b) {
                prop_assert!(share_rank(a.0, a.1) == share_rank(b.0, b.1) && a.2 > b.2);
            }
            if share(a) == share(b) {
                prop_assert_eq!(score(a).cmp(&score(b)), a.2.cmp(&b.2));
            }
        }

        #[test]
        fn buckets_go_by_priority_then_running_then_head(
            a in (priority(), 0u32..1024, queued_at()), b in (priority(), 0u32..1024, queued_at())
        ) {
            let score = |(priority, running, at)| bucket_score(priority, running, head_of(at));
            let rule = |(priority, running, at): (Priority, u32, u64)| (-priority.rank(), running, at);
            prop_assert_eq!(score(a).cmp(&score(b)), rule(a).cmp(&rule(b)));
            let fifo = |(priority, _, at)| fifo_score(priority, head_of(at));
            let rule = |(priority, _, at): (Priority, u32, u64)| (-priority.rank(), at);
            prop_assert_eq!(fifo(a).cmp(&fifo(b)), rule(a).cmp(&rule(b)));
        }

        #[test]
        fn every_score_is_a_whole_double_that_gives_its_head_back(
            running: u32, weight in 1u32.., priority in priority(), at: u64
        ) {
            let head = head_of(at);
            for score in [bucket_score(priority, running, head), fifo_score(priority, head)] {
                prop_assert!(score < 1 << 53);
                prop_assert_eq!(head_in(score), head);
            }
            let since = waits_since(head, at);
            let score = tenant_score(running, weight, since);
            prop_assert!(score < 1 << 53);
            prop_assert_eq!((share_rank_in(score), since_in(score)), (share_rank(running, weight), since));
        }

        #[test]
        fn one_more_running_job_never_makes_a_tenant_or_bucket_go_sooner(
            running in 0u32..u32::MAX, weight in 1u32.., priority in priority()
        ) {
            prop_assert!(tenant_score(running, weight, 0) <= tenant_score(running + 1, weight, 0));
            prop_assert!(tenant_score(running, weight, 0) >= tenant_score(running, weight.saturating_add(1), 0));
            prop_assert!(bucket_score(priority, running, 0) <= bucket_score(priority, running + 1, 0));
        }
    }

    proptest! {
        #[test]
        fn a_job_is_overtaken_by_none_that_was_queued_more_than_four_steps_after_it(
            a in (priority(), 1u64 << 38..1 << 39), b in (priority(), 1u64 << 38..1 << 39), ageing_ms in 1u64..1 << 30
        ) {
            let head = |(priority, head)| aged_head(priority, head, ageing_ms);
            if a.1 + 4 * ageing_ms < b.1 {
                prop_assert!(head(a) < head(b));
            }
            if a.1 == b.1 {
                prop_assert_eq!(head(a).cmp(&head(b)), b.0.cmp(&a.0));
            }
        }
    }

    #[test]
    fn of_equal_tenants_the_one_goes_first_that_waits_longest() {
        let tenant = |key, served_at_ms, queued_at_ms| TenantInLane {
            key,
            weight: 1,
            running: 1,
            max_running: None,
            served: first_turn_of(EPOCH_MS + served_at_ms),
            buckets: vec![BucketInLane {
                project: ProjectId(queued_at_ms),
                project_running: 0,
                project_max_running: None,
                priority: Priority::default(),
                queued_at_ms: EPOCH_MS + queued_at_ms,
            }],
        };
        let flood = tenant("a", 500, 1);
        let other = tenant("b", 400, 2);
        let new = tenant("c", 0, 450);
        let next = |tenants: &[TenantInLane<'_>]| next_in_instance_lane(tenants).map(|(_, next)| next.project.0);
        assert_eq!(next(&[flood.clone(), other, new.clone()]), Some(2), "served longest ago");
        assert_eq!(next(&[flood, new]), Some(450), "queued later than the other, but that one was served since");
    }

    #[test]
    fn shares_of_few_slots_round_to_the_nearest_job() {
        // 10 slots, weights 4, 2 and 1: 5.7, 2.9 and 1.4 of them.
        let mut running = [0u32; 3];
        for _ in 0..10 {
            let next = (0..3).min_by_key(|tenant| tenant_score(running[*tenant], [4, 2, 1][*tenant], 0)).expect("some");
            running[next] += 1;
        }
        assert_eq!(running, [6, 3, 1]);
    }

    #[test]
    fn a_tenant_at_its_cap_and_a_project_at_its_cap_are_left_out() {
        let bucket = |project, running, cap| BucketInLane {
            project: ProjectId(project),
            project_running: running,
            project_max_running: cap,
            priority: Priority::default(),
            queued_at_ms: EPOCH_MS + project,
        };
        let tenant = |key, running, max_running, buckets| TenantInLane {
            key,
            weight: 1,
            running,
            max_running,
            served: 0,
            buckets,
        };
        let quiet = tenant("a", 1, Some(1), vec![bucket(1, 0, None)]);
        let busy = tenant("b", 9, Some(10), vec![bucket(2, 3, Some(3)), bucket(3, 6, Some(7))]);
        let next = next_in_instance_lane(&[quiet.clone(), busy.clone()]).map(|(_, bucket)| bucket.project);
        assert_eq!(next, Some(ProjectId(3)));
        assert_eq!(next_in_instance_lane(&[quiet]), None);
        assert_eq!(next_in_fifo_lane(&busy.buckets).map(|(_, bucket)| bucket.project), Some(ProjectId(2)));
    }
}
