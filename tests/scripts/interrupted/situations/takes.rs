//! Free slots ask for jobs.

use job_router::redis::{LaneOrder, Offer};
use job_router::runner::Scope::{Group, Instance, Project};

use super::{
    Situation, affinity, attempts, cap_project, cap_tenant, give_back, lane, open, queue, run, second, situations,
    slots_of_two, tagged, tagged_lane, take, take_as, terms, wait, with_key,
};
use crate::interrupted::calls::Call::Take;
use crate::support::{job, name, of_tenant, offers};

pub fn all() -> Vec<Situation> {
    let mut all = plain();
    all.extend(special());
    all
}

fn plain() -> Vec<Situation> {
    situations! {
        "one job for one slot": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1)]).await;
            Take(terms(), vec![lane(Instance)], offers(1))
        }
        "one of two jobs of a bucket": |world| {
            open(world, &[Instance, Group(1)]).await;
            queue(world, [job(1), job(2)]).await;
            Take(terms(), vec![lane(Instance)], offers(1))
        }
        "jobs of several tenants, and a slot is left": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), job(2), second(3), of_tenant(job(4), 2, 7), attempts(job(5), 2)]).await;
            Take(terms(), vec![lane(Instance)], offers(6))
        }
        "jobs of several tenants, and some are left for another": |world| {
            open(world, &[Instance]).await;
            wait(world, "other", lane(Instance)).await;
            queue(world, [job(1), job(2), second(3), of_tenant(job(4), 2, 7), job(5)]).await;
            Take(terms(), vec![lane(Instance)], offers(3))
        }
        "jobs of several lanes": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), tagged(job(2)), second(3), tagged(second(4))]).await;
            Take(terms(), vec![lane(Instance), tagged_lane(Instance)], offers(3))
        }
        "jobs of fair groups": |world| {
            open(world, &[Instance, Group(1), Group(2)]).await;
            world.partition.configure(LaneOrder::Fair, None).await.expect("sets");
            queue(world, [job(1), job(2), second(3), tagged(job(4))]).await;
            Take(terms(), vec![lane(Group(1)), lane(Group(2)), tagged_lane(Group(1))], offers(3))
        }
        "a job of a project's runner": |world| {
            open(world, &[Instance, Project(1)]).await;
            queue(world, [job(1), job(2)]).await;
            Take(terms(), vec![lane(Project(1))], offers(1))
        }
        "nothing for two slots": |world| {
            open(world, &[Instance]).await;
            Take(terms(), vec![lane(Instance), tagged_lane(Instance)], offers(2))
        }
        "a wake is passed on": |world| {
            open(world, &[Instance]).await;
            wait(world, "pod", lane(Instance)).await;
            wait(world, "other", lane(Instance)).await;
            queue(world, [job(1)]).await;
            Take(terms(), vec![lane(Instance)], Vec::new())
        }
        "the same call again": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), second(2)]).await;
            let slots = offers(2);
            world.partition.take(&name("pod"), terms(), 0, &[lane(Instance)], &slots).await.expect("takes");
            Take(terms(), vec![lane(Instance)], slots)
        }
    }
}

fn special() -> Vec<Situation> {
    situations! {
        "a job that was given back": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1)]).await;
            let leases = take(world, lane(Instance), 1).await;
            give_back(world, &leases).await;
            Take(terms(), vec![lane(Instance)], offers(1))
        }
        "jobs that were given back, and others": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), job(2), job(3), second(4)]).await;
            let leases = take(world, lane(Instance), 3).await;
            give_back(world, &leases).await;
            queue(world, [job(5)]).await;
            Take(terms(), vec![lane(Instance)], offers(4))
        }
        "jobs up to a tenant's cap": |world| {
            open(world, &[Instance]).await;
            cap_tenant(world, 2).await;
            queue(world, [job(1), job(2), job(3), second(4)]).await;
            Take(terms(), vec![lane(Instance)], offers(4))
        }
        "jobs up to a project's cap": |world| {
            open(world, &[Instance, Group(1)]).await;
            queue(world, [job(1), job(2), tagged(job(3)), second(4)]).await;
            cap_project(world, 1).await;
            Take(terms(), vec![lane(Instance), tagged_lane(Instance)], offers(4))
        }
        "scores that are too low": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), tagged(job(2)), tagged(job(3)), second(4), tagged(second(5)), second(6)]).await;
            take(world, tagged_lane(Instance), 2).await;
            Take(terms(), vec![lane(Instance)], offers(2))
        }
        "a bucket that has left its lane": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), second(2)]).await;
            let (id, tenant) = (job(1).project.id, job(1).tenant);
            let upsert = world.partition.project(id, "1785000000000-0", &tenant, Some(false), None, None);
            upsert.await.expect("stores");
            Take(terms(), vec![lane(Instance)], offers(2))
        }
        "affinity chooses among slots": |world| {
            open(world, &[Instance]).await;
            queue(world, [with_key(job(1))]).await;
            run(world, lane(Instance), 1).await;
            queue(world, [second(2), with_key(job(3)), job(4)]).await;
            let mut slots = slots_of_two(3);
            slots.reverse();
            Take(affinity(false), vec![lane(Instance)], slots)
        }
        "a job that waits for its manager": |world| {
            open(world, &[Instance]).await;
            queue(world, [with_key(job(1))]).await;
            take_as(world, "other", lane(Instance), 1).await;
            wait(world, "other", lane(Instance)).await;
            queue(world, [with_key(job(2)), second(3)]).await;
            let slots = slots_of_two(3).into_iter().skip(1).collect::<Vec<Offer>>();
            Take(affinity(true), vec![lane(Instance)], slots)
        }
        "plain queues and fair ones": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), tagged(job(2)), second(3), tagged(second(4))]).await;
            world.partition.set_lane_order(Some(lane(Instance)), LaneOrder::Fifo).await.expect("sets");
            Take(terms(), vec![lane(Instance), tagged_lane(Instance)], offers(3))
        }
        "a paused lane and another": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), tagged(job(2))]).await;
            let target = job_router::pause::Target::Lane(lane(Instance));
            world.partition.pause(&target, None, &Default::default(), &Default::default()).await.expect("pauses");
            Take(terms(), vec![lane(Instance), tagged_lane(Instance)], offers(2))
        }
    }
}
