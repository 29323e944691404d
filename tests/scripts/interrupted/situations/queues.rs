//! Jobs come in, and lanes open.

use job_router::job::{ProjectId, Tenant};
use job_router::pause::Target;
use job_router::redis::LaneOrder;
use job_router::runner::Scope::{Group, Instance, Project};

use super::{
    Situation, affinity, attempts, batch, cancel, cap_project, cap_tenant, lane, open, queue, run, second, situations,
    slot, tagged, tagged_lane, take, take_as, terms, wait, with_key,
};
use crate::interrupted::calls::Call::{FanOut, Index, Opened, Scope};
use crate::support::{job, name, of_tenant};

pub fn all() -> Vec<Situation> {
    let mut all = queued();
    all.extend(handed_over());
    all.extend(lanes_open());
    all
}

fn queued() -> Vec<Situation> {
    situations! {
        "a job while no runner is there": |world| {
            open(world, &[]).await;
            FanOut(terms(), batch([job(1)]), Vec::new())
        }
        "the first job of a lane": |world| {
            open(world, &[Instance]).await;
            FanOut(terms(), batch([attempts(job(1), 2)]), Vec::new())
        }
        "a job for which another pod waits": |world| {
            open(world, &[Instance]).await;
            wait(world, "other", lane(Instance)).await;
            FanOut(terms(), batch([job(1)]), Vec::new())
        }
        "a job for which this pod waits": |world| {
            open(world, &[Instance]).await;
            wait(world, "pod", lane(Instance)).await;
            FanOut(terms(), batch([job(1)]), Vec::new())
        }
        "jobs of many kinds": |world| {
            open(world, &[Instance, Group(1), Project(2)]).await;
            wait(world, "other", lane(Group(1))).await;
            let jobs = [job(1), second(2), tagged(job(3)), attempts(job(4), 3), tagged(second(5))];
            FanOut(terms(), batch(jobs), Vec::new())
        }
        "jobs behind others": |world| {
            open(world, &[Instance, Group(1)]).await;
            queue(world, [job(1), second(2)]).await;
            FanOut(terms(), batch([job(3), job(4), second(5)]), Vec::new())
        }
        "jobs that are known, and one that is not": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), job(2), job(3)]).await;
            take(world, lane(Instance), 1).await;
            cancel(world, 2).await;
            wait(world, "other", tagged_lane(Instance)).await;
            FanOut(terms(), batch([job(1), job(2), job(3), job(4)]), Vec::new())
        }
        "a job whose project is another's now": |world| {
            open(world, &[Instance, Group(1)]).await;
            queue(world, [job(1)]).await;
            let mut moved = job(2);
            (moved.tenant, moved.project.group_runners) = (Tenant::of_namespace(3), false);
            FanOut(terms(), batch([moved]), Vec::new())
        }
        "a known job whose project is another's now": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1)]).await;
            let mut moved = job(1);
            moved.tenant = Tenant::of_namespace(3);
            FanOut(terms(), batch([moved]), Vec::new())
        }
        "a job whose manager is another pod's": |world| {
            open(world, &[Instance]).await;
            queue(world, [with_key(job(1))]).await;
            take_as(world, "other", lane(Instance), 1).await;
            wait(world, "other", lane(Instance)).await;
            FanOut(affinity(false), batch([with_key(job(2))]), Vec::new())
        }
        "jobs of a tenant at its cap": |world| {
            open(world, &[Instance]).await;
            cap_tenant(world, 0).await;
            FanOut(terms(), batch([job(1), second(2)]), Vec::new())
        }
        "a job where groups are fair and a project is paused": |world| {
            open(world, &[Instance, Group(1), Group(2)]).await;
            world.partition.configure(LaneOrder::Fair, None).await.expect("sets");
            let paused = Target::Project(ProjectId(2));
            world.partition.pause(&paused, None, &Default::default(), &Default::default()).await.expect("pauses");
            FanOut(terms(), batch([job(1), second(2)]), Vec::new())
        }
    }
}

fn handed_over() -> Vec<Situation> {
    situations! {
        "a job with a slot": |world| {
            open(world, &[Instance]).await;
            wait(world, "pod", lane(Instance)).await;
            FanOut(affinity(false), batch([with_key(attempts(job(1), 2))]), vec![slot(1, lane(Instance))])
        }
        "a job with a slot, of a bucket that runs": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1)]).await;
            run(world, lane(Instance), 1).await;
            FanOut(terms(), batch([job(2)]), vec![slot(2, lane(Instance))])
        }
        "jobs with slots, of several lanes": |world| {
            open(world, &[Instance, Group(2), Project(3)]).await;
            world.partition.configure(LaneOrder::Fair, None).await.expect("sets");
            let third = of_tenant(job(3), 3, 3);
            let jobs = batch([job(1), second(2), third, tagged(job(4)), job(5)]);
            let lanes = [lane(Instance), lane(Group(2)), lane(Project(3)), tagged_lane(Instance)];
            let slots = (1..).zip(lanes).map(|(id, lane)| slot(id, lane)).collect();
            FanOut(affinity(true), jobs, slots)
        }
        "two jobs of a bucket with slots": |world| {
            open(world, &[Instance]).await;
            FanOut(terms(), batch([job(1), job(2)]), vec![slot(1, lane(Instance)), slot(2, lane(Instance))])
        }
        "a job with a slot that another stands before": |world| {
            open(world, &[Instance]).await;
            queue(world, [second(1)]).await;
            FanOut(terms(), batch([job(2)]), vec![slot(2, lane(Instance))])
        }
        "a job with the slot of a manager that it does not like": |world| {
            open(world, &[Instance]).await;
            queue(world, [with_key(job(1))]).await;
            take_as(world, "other", lane(Instance), 1).await;
            let mut slot = slot(2, lane(Instance));
            slot.offer.system_id = name("s_9");
            FanOut(affinity(true), batch([with_key(job(2))]), vec![slot])
        }
        "a job that was handed over before": |world| {
            open(world, &[Instance]).await;
            let (jobs, slots) = (batch([job(1), second(2)]), vec![slot(1, lane(Instance)), slot(2, lane(Instance))]);
            world.partition.fan_out(&name("pod"), &jobs, terms(), &slots).await.expect("fans out");
            FanOut(terms(), jobs, slots)
        }
        "jobs with slots, up to a cap": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(9)]).await;
            cap_project(world, 2).await;
            run(world, lane(Instance), 1).await;
            let jobs = batch([job(1), tagged(job(2))]);
            FanOut(terms(), jobs, vec![slot(1, lane(Instance)), slot(2, tagged_lane(Instance))])
        }
    }
}

fn lanes_open() -> Vec<Situation> {
    situations! {
        "a scope opens": |world| {
            open(world, &[]).await;
            queue(world, [job(1), second(2), tagged(job(3))]).await;
            wait(world, "other", lane(Instance)).await;
            Scope(Instance)
        }
        "a scope is open": |world| {
            open(world, &[Instance]).await;
            Scope(Instance)
        }
        "a scope is indexed": |world| {
            open(world, &[]).await;
            Opened(Group(1))
        }
        "all buckets are indexed": |world| {
            open(world, &[Instance, Group(1)]).await;
            queue(world, (1..40).map(|id| of_tenant(job(id), id, id))).await;
            wait(world, "other", tagged_lane(Instance)).await;
            queue(world, [tagged(job(50))]).await;
            Index(None)
        }
        "a project that has moved is indexed": |world| {
            open(world, &[Instance, Group(1)]).await;
            queue(world, [job(1), tagged(job(2))]).await;
            let mut moved = job(3);
            moved.tenant = Tenant::of_namespace(3);
            queue(world, [moved]).await;
            wait(world, "other", tagged_lane(Project(1))).await;
            Index(Some(ProjectId(1)))
        }
    }
}
