//! How it is chosen who is next, where that is not the default; and that a change acts at once on what is queued.

use std::time::Duration;

use crate::support::pods::Installation;
use crate::support::{World, instance_lane, job, name, of_tenant, offers, tags};
use job_router::config::{GroupLaneOrder, PriorityReach};
use job_router::job::{PendingJob, Priority};
use job_router::redis::{LaneOrder, TakenJob};
use job_router::runner::{Lane, Scope};
use job_router::tags::Capability;

const LONG: Duration = Duration::from_secs(3600);
const AT_MS: u64 = 1_780_000_000_000;

fn group_lane() -> Lane {
    Lane { scope: Scope::Group(9), ..instance_lane() }
}

/// A job of a tenant and its project of the same number, queued so many seconds after the first.
fn at(id: u64, tenant: u64, seconds: u64) -> PendingJob {
    let mut job = of_tenant(job(id), tenant, tenant);
    job.project.namespace_ids = vec![tenant, 9];
    job.queued_at_ms = Some(AT_MS + seconds * 1_000);
    job
}

fn of_priority(mut job: PendingJob, rank: i64) -> PendingJob {
    job.priority = Priority::new(rank).expect("in range");
    job
}

async fn take(world: &World, lanes: &[Lane], n: usize) -> Vec<TakenJob> {
    world.partition.take(&name("pod"), LONG, 0, lanes, &offers(n)).await.expect("takes").jobs
}

fn ids(taken: &[TakenJob]) -> Vec<u64> {
    taken.iter().map(|job| job.lease.job_id.0).collect()
}

#[tokio::test]
async fn an_instance_lane_turned_to_a_plain_queue_gives_the_oldest_first_and_shares_again_when_turned_back() {
    for lane in [None, Some(instance_lane())] {
        let world = World::with_scopes(&[Scope::Instance]).await;
        for id in 1..=6 {
            world.queue(at(id, 1, id)).await;
        }
        world.queue(of_priority(at(7, 1, 7), 2)).await;
        for id in 8..=9 {
            world.queue(at(id, 2, id)).await;
        }
        assert_eq!(ids(&take(&world, &[instance_lane()], 2).await), [7, 8], "by shares, and by priority within one");
        assert!(world.partition.set_lane_order(lane, LaneOrder::Fifo).await.expect("sets"));
        assert!(!world.partition.set_lane_order(lane, LaneOrder::Fifo).await.expect("sets"), "it was so");
        assert_eq!(ids(&take(&world, &[instance_lane()], 3).await), [1, 2, 3]);
        assert!(world.partition.set_lane_order(lane, LaneOrder::Fair).await.expect("sets"));
        assert_eq!(ids(&take(&world, &[instance_lane()], 2).await), [9, 4], "tenant 2 has fewer running");
        assert!(world.partition.set_lane_order(None, LaneOrder::Fair).await.is_ok());
        assert!(!world.snapshot().await.contains_key("policy"), "all is as by default");
    }
}

#[tokio::test]
async fn a_plain_queue_beside_fair_lanes_leaves_them_their_turns() {
    let world = World::with_scopes(&[Scope::Instance]).await;
    let tagged = Capability { tags: tags(&["docker"]), ..Capability::default() };
    let docker = Lane { scope: Scope::Instance, fingerprint: tagged.fingerprint() };
    for id in 1..=10 {
        world.queue(at(id, 1, id)).await;
    }
    for id in 11..=13 {
        let mut job = at(id, 2, id);
        job.capability = tagged.clone().into();
        world.queue(job).await;
    }
    world.partition.set_lane_order(Some(instance_lane()), LaneOrder::Fifo).await.expect("sets");
    let taken = take(&world, &[instance_lane(), docker], 6).await;
    assert_eq!(ids(&taken), [1, 11, 2, 12, 3, 13]);
}

#[tokio::test]
async fn in_a_groups_fair_lane_the_project_with_fewer_jobs_on_its_runners_goes_first() {
    let world = World::with_scopes(&[Scope::Instance, Scope::Group(9)]).await;
    for id in 1..=4 {
        world.queue(at(id, 1, id)).await;
    }
    for id in 5..=8 {
        world.queue(at(id, 2, id)).await;
    }
    // What runs on instance runners is of no matter here; what runs on the group's is counted before it matters too.
    assert_eq!(ids(&take(&world, &[instance_lane()], 2).await), [1, 5]);
    let first = take(&world, &[group_lane()], 2).await;
    assert_eq!(ids(&first), [2, 3], "the oldest");
    assert!(world.partition.configure(LaneOrder::Fair, None).await.expect("sets"));
    let second = take(&world, &[group_lane()], 2).await;
    assert_eq!(ids(&second), [6, 7]);
    world.finish(first[0].lease).await;
    world.finish(first[1].lease).await;
    assert_eq!(ids(&take(&world, &[group_lane()], 1).await), [4], "project 1 has none running, project 2 two");
    world.queue(of_priority(at(9, 2, 9), 1)).await;
    assert_eq!(ids(&take(&world, &[group_lane()], 2).await), [9, 8], "priority goes before");
}

#[tokio::test]
async fn a_global_priority_goes_before_other_tenants_jobs_until_they_have_waited_for_it() {
    for (scope, lane) in [(Scope::Instance, instance_lane()), (Scope::Group(9), group_lane())] {
        let world = World::with_scopes(&[scope]).await;
        assert!(world.partition.configure(LaneOrder::Fifo, Some(Duration::from_secs(60))).await.expect("sets"));
        world.queue(of_priority(at(1, 1, 0), -2)).await;
        world.queue(at(2, 1, 0)).await;
        world.queue(of_priority(at(3, 2, 50), 1)).await;
        world.queue(of_priority(at(4, 2, 70), 1)).await;
        world.queue(of_priority(at(5, 3, 119), 2)).await;
        world.queue(at(6, 3, 121)).await;
        // Each as if it had come 60 s sooner for each step: 120, 0, -10, 10, -1 and 121 s.
        assert_eq!(ids(&take(&world, &[lane], 6).await), [3, 5, 2, 4, 1, 6], "{lane}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_pods_go_by_the_policy_of_the_one_that_connected_last() {
    let mut installation = Installation::new().await;
    let first = installation.pod("a").await;
    installation.until("it is ready", async || (first.admin("/readyz").await.0 == 200).then_some(())).await;
    let partition = installation.partition();
    let set = |order, ageing| {
        let partition = partition.clone();
        async move || {
            let policy = partition.policy().await.ok()?;
            ((policy.group, policy.ageing) == (order, ageing)).then_some(())
        }
    };
    installation.until("all is as by default", set(LaneOrder::Fifo, None)).await;
    installation.config.group_lane_order = GroupLaneOrder::Fair;
    let second = installation.pod("b").await;
    installation.until("jobs of groups go by running jobs", set(LaneOrder::Fair, None)).await;
    installation.config.group_lane_order = GroupLaneOrder::Fifo;
    installation.config.priority = PriorityReach::Global;
    let third = installation.pod("c").await;
    installation.until("priorities hold for all", set(LaneOrder::Fifo, Some(Duration::from_secs(600)))).await;
    for pod in [first, second, third] {
        pod.stop().await;
    }
}
