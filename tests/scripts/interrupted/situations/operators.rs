//! What operators and Rails say of queues, projects and runners; and what pods do by the clock.

use std::time::Duration;

use Scope::{Group, Instance, Project as OfProject};
use job_router::job::{PendingJob, ProjectId, RunnerId, Tenant};
use job_router::pause::Target;
use job_router::redis::{LaneOrder, Runners};
use job_router::runner::{Lane, RunnerRecord, RunnerType, Scope};

use super::{
    Situation, cap_project, cap_tenant, lane, open, queue, run, second, situations, tagged, tagged_lane, take, wait,
};
use crate::interrupted::calls::Call::{
    Configure, Heartbeat, LaneOrder as Order, NoRunner, Offline, Online, Pause, Project, Resume, Runner, Stuck, Sweep,
    Tenant as Payer,
};
use crate::interrupted::calls::{Finding, LONG};
use crate::support::{World, job, tags};

pub fn all() -> Vec<Situation> {
    let mut all = paused();
    all.extend(resumed());
    all.extend(policies());
    all.extend(payers());
    all.extend(runners());
    all.extend(by_the_clock());
    all
}

const UNTIL_MS: u64 = 1_790_000_000_000;

/// Two tenants' jobs, some queued, one running.
async fn busy(world: &World) {
    open(world, &[Instance, Group(1), OfProject(1)]).await;
    queue(world, [job(1), job(2), tagged(job(3)), second(4), second(5)]).await;
    run(world, lane(Instance), 1).await;
}

async fn busy_and(world: &World, target: &Target, until_ms: Option<u64>) {
    busy(world).await;
    let note = Default::default();
    world.partition.pause(target, until_ms, &note, &note).await.expect("pauses");
    let empty = Lane { scope: Group(7), ..lane(Instance) };
    wait(world, "other", empty).await;
}

fn tenant() -> Tenant {
    Tenant::of_namespace(1)
}

fn paused() -> Vec<Situation> {
    situations! {
        "everything": |world| {
            busy(world).await;
            Pause(Target::All, None)
        }
        "a lane for a time": |world| {
            busy(world).await;
            Pause(Target::Lane(lane(Instance)), Some(UNTIL_MS))
        }
        "a tenant": |world| {
            busy(world).await;
            Pause(Target::Tenant(tenant()), None)
        }
        "a project for a time": |world| {
            busy(world).await;
            Pause(Target::Project(ProjectId(1)), Some(UNTIL_MS))
        }
        "a project that is paused": |world| {
            busy_and(world, &Target::Project(ProjectId(1)), Some(UNTIL_MS)).await;
            Pause(Target::Project(ProjectId(1)), None)
        }
    }
}

fn resumed() -> Vec<Situation> {
    situations! {
        "everything goes on": |world| {
            busy_and(world, &Target::All, None).await;
            Resume(Target::All)
        }
        "a lane goes on": |world| {
            busy_and(world, &Target::Lane(lane(Instance)), None).await;
            wait(world, "other", lane(Instance)).await;
            Resume(Target::Lane(lane(Instance)))
        }
        "a tenant goes on": |world| {
            busy_and(world, &Target::Tenant(tenant()), Some(UNTIL_MS)).await;
            wait(world, "other", tagged_lane(Instance)).await;
            Resume(Target::Tenant(tenant()))
        }
        "a project goes on": |world| {
            busy_and(world, &Target::Project(ProjectId(1)), None).await;
            take(world, lane(Instance), 2).await;
            wait(world, "other", lane(Instance)).await;
            Resume(Target::Project(ProjectId(1)))
        }
        "what was never paused": |world| {
            busy(world).await;
            Resume(Target::Tenant(tenant()))
        }
    }
}

fn policies() -> Vec<Situation> {
    situations! {
        "groups become fair": |world| {
            busy(world).await;
            Configure(LaneOrder::Fair, None)
        }
        "priorities hold everywhere": |world| {
            busy(world).await;
            Configure(LaneOrder::Fair, Some(Duration::from_secs(60)))
        }
        "nothing becomes another": |world| {
            busy(world).await;
            Configure(LaneOrder::Fifo, None)
        }
        "one lane becomes a plain queue": |world| {
            busy(world).await;
            Order(Some(lane(Instance)), LaneOrder::Fifo)
        }
        "all lanes become plain queues": |world| {
            busy(world).await;
            world.partition.set_lane_order(Some(lane(Instance)), LaneOrder::Fifo).await.expect("sets");
            world.partition.set_lane_order(Some(tagged_lane(Instance)), LaneOrder::Fair).await.expect("sets");
            Order(None, LaneOrder::Fifo)
        }
        "all lanes become fair again": |world| {
            busy(world).await;
            world.partition.set_lane_order(None, LaneOrder::Fifo).await.expect("sets");
            Order(None, LaneOrder::Fair)
        }
    }
}

fn payers() -> Vec<Situation> {
    situations! {
        "a new tenant": |world| {
            open(world, &[]).await;
            Payer(tenant(), 3, Some(2))
        }
        "a tenant of another weight": |world| {
            busy(world).await;
            Payer(tenant(), 3, None)
        }
        "a tenant comes to its cap": |world| {
            busy(world).await;
            Payer(tenant(), 1, Some(1))
        }
        "a tenant's cap goes, and another pod waits": |world| {
            open(world, &[Instance]).await;
            cap_tenant(world, 0).await;
            queue(world, [job(1), tagged(job(2))]).await;
            wait(world, "other", lane(Instance)).await;
            wait(world, "pod", tagged_lane(Instance)).await;
            Payer(tenant(), 1, None)
        }
        "a new project": |world| {
            open(world, &[Instance]).await;
            Project(ProjectId(1), tenant(), Some(true), Some(3))
        }
        "a project gets a cap": |world| {
            busy(world).await;
            Project(ProjectId(1), tenant(), None, Some(1))
        }
        "a project loses its cap": |world| {
            busy(world).await;
            cap_project(world, 1).await;
            Project(ProjectId(1), tenant(), None, None)
        }
        "a project leaves instance runners and its tenant": |world| {
            busy(world).await;
            Project(ProjectId(1), Tenant::of_namespace(3), Some(false), None)
        }
    }
}

fn record(id: u64, token: &str) -> RunnerRecord {
    serde_json::from_value(serde_json::json!({
        "id": id, "token_sha256": token.repeat(64), "type": RunnerType::Instance, "tags": tags(&["a"]),
    }))
    .expect("a record")
}

async fn known(world: &World, ids: &[u64]) {
    let runners = Runners::new(world.redis.clone(), "{interrupted:runners}:".to_owned());
    for id in ids {
        runners.upsert("1780000000000-0", &record(*id, &id.to_string())).await.expect("stores");
    }
}

fn runners() -> Vec<Situation> {
    situations! {
        "a new runner": |world| {
            known(world, &[2]).await;
            Runner(record(1, "1"))
        }
        "a runner with another token": |world| {
            known(world, &[1, 2]).await;
            Runner(record(1, "3"))
        }
        "a runner is deleted": |world| {
            known(world, &[1, 2]).await;
            NoRunner(1)
        }
        "a runner comes back": |world| {
            known(world, &[1, 2]).await;
            let runners = Runners::new(world.redis.clone(), "{interrupted:runners}:".to_owned());
            runners.delete("1785000000000-0", RunnerId(1)).await.expect("deletes");
            Runner(record(1, "1"))
        }
    }
}

fn by_the_clock() -> Vec<Situation> {
    situations! {
        "a new pod": |world| {
            open(world, &[]).await;
            Heartbeat("third", "0".to_owned())
        }
        "a pod with mail": |world| {
            open(world, &[Instance]).await;
            wait(world, "other", lane(Instance)).await;
            queue(world, [job(1), second(2)]).await;
            Heartbeat("other", "9999999999999-0".to_owned())
        }
        "lanes with work and idle ones": |world| {
            busy(world).await;
            take(world, tagged_lane(Instance), 1).await;
            let target = Target::Tenant(tenant());
            world.partition.pause(&target, Some(1), &Default::default(), &Default::default()).await.expect("pauses");
            Sweep(Duration::ZERO, 1, Duration::ZERO)
        }
        "nothing to sweep": |world| {
            busy(world).await;
            Sweep(LONG, 1000, LONG)
        }
        "buckets are found stuck": |world| {
            busy(world).await;
            Stuck(LONG, stuck(&[(job(1), Some("r")), (second(1), Some("r")), (tagged(job(1)), None)]))
        }
        "stuck buckets are told of": |world| {
            busy(world).await;
            let found = stuck(&[(job(1), Some("r")), (second(1), Some("r")), (tagged(job(1)), Some("r"))]);
            Stuck(Duration::ZERO, found).make(world).await.expect("finds");
            let told = [(job(1), Some("r")), (second(1), Some("q")), (tagged(job(1)), None)];
            Stuck(Duration::ZERO, stuck(&told))
        }
        "managers come, one of which is known": |world| {
            Online(&[(1, "s_1")]).make(world).await.expect("comes");
            Online(&[(1, "s_1"), (1, "s_2"), (2, "s_1")])
        }
        "managers have gone": |world| {
            Online(&[(1, "s_1"), (1, "s_2"), (2, "s_1")]).make(world).await.expect("they come");
            Offline(Duration::ZERO)
        }
        "no manager has gone": |world| {
            Online(&[(1, "s_1")]).make(world).await.expect("comes");
            Offline(LONG)
        }
    }
}

fn stuck(verdicts: &[(PendingJob, Option<&'static str>)]) -> Vec<Finding> {
    let name = |job: &PendingJob| format!("{}:{}:0", job.capability.fingerprint(), job.project.id.0);
    verdicts.iter().map(|(job, reason)| (name(job), *reason)).collect()
}
