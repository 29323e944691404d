//! From a taken job to its end, or back.

use job_router::job::{JobId, Lease, LeaseId, OfferId, RunnerId};
use job_router::redis::LaneOrder;
use job_router::runner::Scope::{Group, Instance, Project};

use super::{
    Situation, attempts, back, cancel, cap_project, cap_tenant, give_back, lane, open, queue, report, reports, run,
    second, situations, tagged, tagged_lane, take, take_as, wait, with_key,
};
use crate::interrupted::calls::Call::{Acknowledge, Bury, Cancel, Expire, Finish, GiveBack, Renew, Start};
use crate::support::{job, name, of_tenant};

pub fn all() -> Vec<Situation> {
    let mut all = begun();
    all.extend(given_back());
    all.extend(finished());
    all.extend(canceled());
    all.extend(expired());
    all
}

/// Job 1 goes back, or ends; nothing else is there.
pub fn that_lose_their_caller() -> Vec<Situation> {
    situations! {
        "a job goes back": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1)]).await;
            let leases = take(world, lane(Instance), 1).await;
            GiveBack(3, vec![back(leases[0])])
        }
        "a job ends": |world| {
            open(world, &[Instance]).await;
            queue(world, [attempts(job(1), 2)]).await;
            Finish(reports(&run(world, lane(Instance), 1).await))
        }
    }
}

fn begun() -> Vec<Situation> {
    situations! {
        "jobs start": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), attempts(second(2), 2), job(3), job(4)]).await;
            let leases = take(world, lane(Instance), 4).await;
            give_back(world, &leases[3..]).await;
            Start([leases, vec![Lease { job_id: JobId(9), lease_id: LeaseId::random(0) }]].concat())
        }
        "a job starts again": |world| {
            open(world, &[Instance]).await;
            queue(world, [attempts(job(1), 2)]).await;
            let leases = run(world, lane(Instance), 1).await;
            world.partition.expire(&name("pod"), super::LONG, &[(leases[0], "0".into())]).await.expect("expires");
            let leases = take(world, lane(Instance), 1).await;
            Start(leases)
        }
        "Rails says that a job runs where it was handed to": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1)]).await;
            take(world, lane(Instance), 1).await;
            Acknowledge(1, OfferId::random(0), Some((RunnerId(1), name("s_1"))))
        }
        "it runs elsewhere than where it was handed to": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), job(2)]).await;
            take_as(world, "other", lane(Instance), 1).await;
            Acknowledge(1, OfferId::random(0), Some((RunnerId(7), name("s_7"))))
        }
        "it was given back meanwhile": |world| {
            open(world, &[Instance, Group(1)]).await;
            queue(world, [job(1), job(2)]).await;
            let leases = take(world, lane(Group(1)), 1).await;
            give_back(world, &leases).await;
            Acknowledge(1, OfferId::random(0), Some((RunnerId(1), name("s_1"))))
        }
        "it was never handed out, and is the last of its bucket": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1)]).await;
            Acknowledge(1, OfferId::random(0), Some((RunnerId(1), name("s_1"))))
        }
        "beats": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), second(2), job(3)]).await;
            let leases = run(world, lane(Instance), 3).await;
            cancel(world, leases[2].job_id.0).await;
            Renew("pod", leases)
        }
        "beats on another pod": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), second(2), job(3)]).await;
            let leases = run(world, lane(Instance), 3).await;
            cancel(world, leases[2].job_id.0).await;
            Renew("other", leases)
        }
    }
}

fn given_back() -> Vec<Situation> {
    situations! {
        "a job goes back": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1)]).await;
            let leases = take(world, lane(Instance), 1).await;
            GiveBack(3, vec![back(leases[0])])
        }
        "jobs go back, and another pod waits": |world| {
            open(world, &[Instance, Group(1)]).await;
            queue(world, [job(1), job(2), second(3), tagged(job(4))]).await;
            let mut leases = take(world, lane(Instance), 3).await;
            leases.extend(take(world, tagged_lane(Instance), 1).await);
            wait(world, "other", lane(Instance)).await;
            wait(world, "pod", tagged_lane(Instance)).await;
            GiveBack(3, leases.into_iter().map(back).collect())
        }
        "jobs go back, one for good": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), job(2), job(3)]).await;
            let leases = take(world, lane(Instance), 1).await;
            give_back(world, &leases).await;
            let leases = take(world, lane(Instance), 2).await;
            GiveBack(1, leases.into_iter().map(back).collect())
        }
        "jobs of groups go back": |world| {
            open(world, &[Instance, Group(1)]).await;
            world.partition.configure(LaneOrder::Fair, None).await.expect("sets");
            queue(world, [job(1), job(2), job(3)]).await;
            let leases = take(world, lane(Group(1)), 2).await;
            GiveBack(3, leases.into_iter().map(back).collect())
        }
        "a job goes back from a cap": |world| {
            open(world, &[Instance]).await;
            cap_tenant(world, 1).await;
            queue(world, [job(1), job(2), tagged(job(3))]).await;
            cap_project(world, 1).await;
            let leases = take(world, lane(Instance), 1).await;
            wait(world, "other", tagged_lane(Instance)).await;
            GiveBack(3, vec![back(leases[0])])
        }
        "a pod is gone": |world| {
            open(world, &[Instance]).await;
            wait(world, "other", tagged_lane(Instance)).await;
            wait(world, "pod", tagged_lane(Instance)).await;
            queue(world, [job(1), second(2), job(3)]).await;
            take_as(world, "other", lane(Instance), 2).await;
            run(world, lane(Instance), 1).await;
            queue(world, [tagged(job(4))]).await;
            Bury("other", None)
        }
        "a pod is dead": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), second(2)]).await;
            take_as(world, "other", lane(Instance), 2).await;
            let seen = world.heartbeat("pod").await;
            let heartbeat = seen.into_iter().find(|(pod, _)| pod.as_str() == "other").expect("it lived").1;
            Bury("other", Some(heartbeat))
        }
        "a pod lives": |world| {
            open(world, &[Instance]).await;
            Bury("other", Some("1".to_owned()))
        }
    }
}

fn finished() -> Vec<Situation> {
    situations! {
        "the only job ends": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1)]).await;
            Finish(reports(&run(world, lane(Instance), 1).await))
        }
        "one of a bucket ends": |world| {
            open(world, &[Instance, Group(1)]).await;
            queue(world, [job(1), job(2), job(3)]).await;
            let leases = run(world, lane(Instance), 2).await;
            Finish(reports(&leases[..1]))
        }
        "jobs of several tenants end": |world| {
            open(world, &[Instance, Project(1)]).await;
            queue(world, [job(1), job(2), second(3), of_tenant(job(4), 2, 7), tagged(job(5)), job(6)]).await;
            let mut leases = run(world, lane(Instance), 4).await;
            leases.extend(run(world, tagged_lane(Project(1)), 1).await);
            cancel(world, leases[1].job_id.0).await;
            Finish(reports(&leases))
        }
        "jobs of fair groups end": |world| {
            open(world, &[Group(1), Group(2)]).await;
            world.partition.configure(LaneOrder::Fair, None).await.expect("sets");
            queue(world, [job(1), job(2), second(3), job(4), tagged(job(5))]).await;
            let mut leases = run(world, lane(Group(1)), 2).await;
            leases.extend(run(world, lane(Group(2)), 1).await);
            Finish(reports(&leases))
        }
        "jobs at caps end, and others wait for theirs": |world| {
            open(world, &[Instance]).await;
            cap_tenant(world, 2).await;
            queue(world, [job(1), job(2), job(3), tagged(job(4)), second(5)]).await;
            cap_project(world, 2).await;
            let leases = run(world, lane(Instance), 3).await;
            wait(world, "other", tagged_lane(Instance)).await;
            Finish(reports(&leases))
        }
        "Rails ends jobs in every state": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), job(2), job(3), job(4), second(5)]).await;
            let leases = take(world, lane(Instance), 3).await;
            super::start(world, &leases[1..]).await;
            cancel(world, leases[2].job_id.0).await;
            Finish((1..=6).map(|id| report(id, None)).collect())
        }
        "reports that are late": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), job(2)]).await;
            let leases = run(world, lane(Instance), 2).await;
            world.finish(leases[0]).await;
            world.partition.finish(super::LONG, &[report(leases[1].job_id.0, None)]).await.expect("finishes");
            Finish(reports(&leases))
        }
    }
}

fn canceled() -> Vec<Situation> {
    situations! {
        "an unknown job": |world| {
            open(world, &[]).await;
            Cancel(1)
        }
        "the only queued one": |world| {
            open(world, &[Instance, Group(1)]).await;
            queue(world, [job(1)]).await;
            Cancel(1)
        }
        "the first of two": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), job(2)]).await;
            Cancel(1)
        }
        "one that was given back": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), job(2)]).await;
            let leases = take(world, lane(Instance), 1).await;
            give_back(world, &leases).await;
            Cancel(leases[0].job_id.0)
        }
        "an assigned one": |world| {
            open(world, &[Instance]).await;
            queue(world, [with_key(job(1)), job(2)]).await;
            Cancel(take_as(world, "other", lane(Instance), 1).await[0].job_id.0)
        }
        "a running one": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1)]).await;
            Cancel(run(world, lane(Instance), 1).await[0].job_id.0)
        }
        "one that is canceled already": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1)]).await;
            let id = run(world, lane(Instance), 1).await[0].job_id.0;
            cancel(world, id).await;
            Cancel(id)
        }
    }
}

fn expired() -> Vec<Situation> {
    situations! {
        "one is not accepted": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1), job(2)]).await;
            let leases = take_as(world, "other", lane(Instance), 1).await;
            wait(world, "other", tagged_lane(Instance)).await;
            Expire(vec![(leases[0], String::new())])
        }
        "its runner is lost, and another may try": |world| {
            open(world, &[Instance, Group(1)]).await;
            queue(world, [attempts(job(1), 2)]).await;
            Expire(vec![(run(world, lane(Group(1)), 1).await[0], "0".to_owned())])
        }
        "its runner is lost": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1)]).await;
            Expire(vec![(run(world, lane(Instance), 1).await[0], "0".to_owned())])
        }
        "runners are lost, of jobs in every state": |world| {
            open(world, &[Instance]).await;
            cap_tenant(world, 4).await;
            queue(world, [job(1), job(2), attempts(job(3), 2), second(4), second(5)]).await;
            let leases = take(world, lane(Instance), 5).await;
            super::start(world, &leases[1..]).await;
            cancel(world, leases[2].job_id.0).await;
            let beat = |at: usize| if at == 0 { "" } else { "0" }.to_owned();
            Expire(leases.iter().enumerate().map(|(at, lease)| (*lease, beat(at))).collect())
        }
        "a beat came": |world| {
            open(world, &[Instance]).await;
            queue(world, [job(1)]).await;
            Expire(vec![(run(world, lane(Instance), 1).await[0], "7".to_owned())])
        }
    }
}
