//! From where calls are made: worlds in many states, each with a call of which something is special there.

pub mod ends;
pub mod losses;
pub mod operators;
pub mod queues;
pub mod takes;

use std::time::Duration;

use futures::future::BoxFuture;
use job_router::job::{JobId, Lease, PendingJob, ProjectId, Tenant};
use job_router::redis::{HandOver, Offer, Report, Return, Terms};
use job_router::runner::{Lane, Scope};
use std::sync::Arc;

use crate::interrupted::calls::{Call, LONG};
use crate::support::{World, instance_lane, job, name, of_tenant, offers, tags};

/// A world to be made, and the call that is made in it.
#[derive(Clone)]
pub struct Situation {
    pub name: &'static str,
    pub make: for<'a> fn(&'a World) -> BoxFuture<'a, Call>,
}

macro_rules! situations {
    ($($name:literal: |$world:ident| $body:block)*) => {
        vec![$($crate::interrupted::situations::Situation { name: $name, make: |$world| Box::pin(async move $body) }),*]
    };
}
pub(crate) use situations;

/// Plain terms.
pub fn terms() -> Terms {
    Terms::from(LONG)
}

/// With affinity; a job may wait for its manager.
pub fn affinity(wait: bool) -> Terms {
    let affinity_wait = if wait { LONG } else { Duration::ZERO };
    Terms { accept_timeout: LONG, affinity_memory: LONG, affinity_wait }
}

/// Two pods live, and these scopes are open.
pub async fn open(world: &World, scopes: &[Scope]) {
    world.heartbeat("pod").await;
    world.heartbeat("other").await;
    for scope in scopes {
        world.open(*scope).await;
    }
}

/// The second tenant's project.
pub fn second(id: u64) -> PendingJob {
    of_tenant(job(id), 2, 2)
}

/// Of another lane.
pub fn tagged(mut job: PendingJob) -> PendingJob {
    let capability = (*job.capability).clone();
    job.capability = Arc::new(job_router::tags::Capability { tags: tags(&["a"]), ..capability });
    job
}

pub fn attempts(mut job: PendingJob, max: u32) -> PendingJob {
    job.max_attempts = max;
    job
}

pub fn with_key(mut job: PendingJob) -> PendingJob {
    job.affinity = "key".into();
    job
}

pub fn lane(scope: Scope) -> Lane {
    Lane { scope, ..instance_lane() }
}

pub fn tagged_lane(scope: Scope) -> Lane {
    Lane { scope, fingerprint: tagged(job(1)).capability.fingerprint() }
}

pub fn queue(world: &World, jobs: impl IntoIterator<Item = PendingJob>) -> BoxFuture<'_, ()> {
    let jobs: Vec<PendingJob> = jobs.into_iter().collect();
    Box::pin(async move {
        for job in jobs {
            world.queue(job).await;
        }
    })
}

/// This pod takes so many jobs of a lane.
pub async fn take(world: &World, lane: Lane, n: usize) -> Vec<Lease> {
    take_as(world, "pod", lane, n).await
}

pub async fn take_as(world: &World, pod: &str, lane: Lane, n: usize) -> Vec<Lease> {
    let taken = world.partition.take(&name(pod), affinity(false), 0, &[lane], &offers(n)).await.expect("takes");
    assert_eq!(taken.jobs.len(), n, "they were queued");
    taken.jobs.iter().map(|job| job.lease).collect()
}

pub async fn start(world: &World, leases: &[Lease]) {
    world.partition.start(LONG, leases).await.expect("starts");
}

/// So many jobs of a lane are taken and run.
pub async fn run(world: &World, lane: Lane, n: usize) -> Vec<Lease> {
    let leases = take(world, lane, n).await;
    start(world, &leases).await;
    leases
}

pub async fn give_back(world: &World, leases: &[Lease]) {
    let backs: Vec<_> = leases.iter().map(|lease| back(*lease)).collect();
    world.partition.give_back(&name("pod"), 9, LONG, &backs).await.expect("gives back");
}

/// A pod with free slots finds nothing in a lane.
pub async fn wait(world: &World, pod: &str, lane: Lane) {
    let taken = world.partition.take(&name(pod), terms(), 0, &[lane], &offers(1)).await.expect("takes");
    assert!(taken.jobs.is_empty(), "nothing is queued");
}

pub async fn cap_tenant(world: &World, cap: u32) {
    let tenant = Tenant::of_namespace(1);
    world.partition.tenant(&tenant, "1780000000000-0", 1, Some(cap)).await.expect("stores");
}

pub async fn cap_project(world: &World, cap: u32) {
    let (id, tenant) = (ProjectId(1), Tenant::of_namespace(1));
    world.partition.project(id, "1780000000000-0", &tenant, None, None, Some(cap)).await.expect("stores");
    world.partition.index(&name("pod"), Some(id)).await.expect("indexes");
}

/// A batch of new messages.
pub fn batch(jobs: impl IntoIterator<Item = PendingJob>) -> Vec<(String, PendingJob)> {
    jobs.into_iter().enumerate().map(|(i, job)| (format!("1785000000000-{i}"), job)).collect()
}

/// A slot that comes along with a job.
pub fn slot(job_id: u64, lane: Lane) -> HandOver {
    HandOver { job_id: JobId(job_id), lane, rank: 0, offer: offers(1).remove(0) }
}

/// Slots of two managers.
pub fn slots_of_two(n: usize) -> Vec<Offer> {
    let mut offers = offers(n);
    for offer in offers.iter_mut().skip(1) {
        offer.system_id = name("s_2");
    }
    offers
}

pub fn back(lease: Lease) -> Return {
    Return { lease, reason: "declined", failed_delivery: true }
}

pub fn report(id: u64, lease: Option<Lease>) -> Report {
    Report {
        job_id: JobId(id),
        lease_id: lease.map(|lease| lease.lease_id),
        status: "failed",
        exit_code: 1,
        failure_reason: "script_failure".into(),
    }
}

/// Running jobs, each of which its own runner reports.
pub fn reports(leases: &[Lease]) -> Vec<Report> {
    leases.iter().map(|lease| report(lease.job_id.0, Some(*lease))).collect()
}

pub async fn cancel(world: &World, id: u64) {
    world.partition.cancel(JobId(id), "why not", LONG, LONG).await.expect("cancels");
}
