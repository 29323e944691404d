//! Redis has lost its data.

use std::sync::Arc;

use job_router::job::Lease;
use job_router::pause::{Note, Target};
use job_router::redis::{LaneOrder, Remembered, Started};
use job_router::runner::Lane;
use job_router::runner::Scope::{Group, Instance};

use super::{Situation, cap_project, cap_tenant, lane, open, queue, report, second, situations, take};
use crate::interrupted::calls::Call::{Heartbeat, Reassert};
use crate::interrupted::calls::LONG;
use crate::support::{World, job};

/// So many jobs of a lane run; then all is lost, and the pods beat again.
async fn run_and_lose(world: &World, lane: Lane, n: usize) -> Vec<(Lease, Remembered)> {
    let leases = take(world, lane, n).await;
    let started = world.partition.start(LONG, &leases).await.expect("starts");
    world.lose().await;
    let remembered = leases.into_iter().zip(started).map(|(lease, started)| {
        let Started::Running(record) = started else { panic!("it was taken") };
        (lease, Remembered { job_id: lease.job_id, record, end: None })
    });
    remembered.collect()
}

fn still(jobs: Vec<(Lease, Remembered)>) -> Vec<Remembered> {
    jobs.into_iter().map(|(_, job)| job).collect()
}

fn ended(jobs: Vec<(Lease, Remembered)>) -> Vec<Remembered> {
    let ended = jobs
        .into_iter()
        .map(|(lease, job)| Remembered { end: Some(Arc::new(report(lease.job_id.0, Some(lease)))), ..job });
    ended.collect()
}

pub fn all() -> Vec<Situation> {
    situations! {
        "Redis is empty": |world| {
            world.lose().await;
            Heartbeat("pod", "0".to_owned())
        }
        "Redis is empty, and somebody has paused all": |world| {
            world.lose().await;
            world.partition.pause(&Target::All, None, &Note::default(), &Note::default()).await.expect("pauses");
            Heartbeat("pod", "0".to_owned())
        }
        "Redis is empty, and somebody has paused all for a moment": |world| {
            world.lose().await;
            world.partition.pause(&Target::All, Some(1), &Note::default(), &Note::default()).await.expect("pauses");
            Heartbeat("pod", "0".to_owned())
        }
        "jobs run on": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), second(2)]).await;
            let jobs = run_and_lose(world, lane(Instance), 2).await;
            open(world, &[Instance]).await;
            Reassert(still(jobs))
        }
        "jobs run on, published again, and others": |world| {
            open(world, &[Instance, Group(1)]).await;
            queue(world, [job(1), job(2), second(3)]).await;
            let jobs = run_and_lose(world, lane(Instance), 3).await;
            open(world, &[Instance, Group(1)]).await;
            queue(world, [job(9), job(1), job(2), job(8), second(3)]).await;
            Reassert(still(jobs))
        }
        "jobs of a group run on": |world| {
            open(world, &[Group(1)]).await;
            queue(world, [job(1), job(2)]).await;
            let jobs = run_and_lose(world, lane(Group(1)), 2).await;
            open(world, &[Group(1)]).await;
            world.partition.configure(LaneOrder::Fair, None).await.expect("sets");
            queue(world, [job(1), job(3)]).await;
            Reassert(still(jobs))
        }
        "jobs run on, up to a cap": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), job(2)]).await;
            let jobs = run_and_lose(world, lane(Instance), 2).await;
            open(world, &[Instance]).await;
            cap_tenant(world, 2).await;
            queue(world, [job(1), job(3)]).await;
            cap_project(world, 2).await;
            Reassert(still(jobs))
        }
        "jobs had ended": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), second(2)]).await;
            let jobs = run_and_lose(world, lane(Instance), 2).await;
            open(world, &[Instance]).await;
            Reassert(ended(jobs))
        }
        "jobs had ended, and are published again": |world| {
            open(world, &[Instance, Group(1)]).await;
            queue(world, [job(1), job(2), second(3)]).await;
            let jobs = run_and_lose(world, lane(Instance), 3).await;
            open(world, &[Instance, Group(1)]).await;
            queue(world, [job(1), job(9), second(3)]).await;
            Reassert(ended(jobs))
        }
    }
}
