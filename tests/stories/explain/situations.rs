//! The situations: what happens, and what is then to be said of job 1.

use job_router::explain::Reason;
use serde_json::{Value, json};

use Step::{Assign, Cancel, Decline, Finish, Ghost, Job, Off, On, OnWith, Pause, Project, Run, Runner};

use crate::support;

/// What happens before the question.
pub(crate) enum Step {
    /// A runner is registered: an instance runner that takes jobs without tags, unless said otherwise.
    Runner(u64, Value),
    /// It connects, with so many slots.
    On(u64, u32),
    /// The same, with features.
    OnWith(u64, u32, &'static [&'static str]),
    /// It leaves.
    Off(u64),
    /// Some pod says that it has a free slot.
    Ghost(u64),
    /// A job of project 1 in group 1, unless said otherwise, is published.
    Job(u64, Value),
    /// A job is published, and this runner has it, not accepted.
    Assign(u64, u64),
    /// The same, and declines it.
    Decline(u64, u64),
    /// The same, and runs it.
    Run(u64, u64),
    /// It ends.
    Finish(u64),
    /// A job is canceled.
    Cancel(u64),
    /// What Rails says of a tenant or a project: a message of this type.
    Project(&'static str, Value),
    /// A field of `paused`.
    Pause(&'static str, Value),
}

/// (what it is, what happens, the reason for job 1, what the sentence names)
pub(crate) type Situation = (&'static str, Vec<Step>, Reason, &'static [&'static str]);

fn runner(id: u64) -> Step {
    Runner(id, json!({}))
}

/// Runner 7 is connected and runs job 2; job 1 waits for it.
fn waits_for_7() -> Vec<Step> {
    vec![runner(7), On(7, 1), Run(7, 2), Job(1, json!({}))]
}

fn waits_for_7_and(more: Step) -> Vec<Step> {
    let mut steps = waits_for_7();
    steps.push(more);
    steps
}

/// Runner 7 is like this and connected; job 1 is like that.
fn one(record: Value, job: Value) -> Vec<Step> {
    vec![Runner(7, record), On(7, 1), Job(1, job)]
}

pub(crate) fn situations() -> Vec<Situation> {
    let long_ago = json!({"note": "", "since_ms": 1, "until_ms": 2});
    let pause = || json!({"note": "a fire", "by": "ops", "since_ms": 1, "until_ms": null});
    let lane = Box::leak(format!("lane:instance:{}", support::instance_lane().fingerprint).into_boxed_str());
    vec![
        ("a job nobody published", vec![], Reason::Unknown, &["never published", "ended too long ago"]),
        ("no runner at all", vec![Job(1, json!({}))], Reason::NoRunnerRegistered, &["no runner is registered"]),
        ("one runner, offline", vec![runner(7), Job(1, json!({}))], Reason::RunnersOffline, &["runner 7", "offline"]),
        (
            "all runners offline",
            vec![runner(7), runner(8), Job(1, json!({}))],
            Reason::RunnersOffline,
            &["all 2 runners", "(7, 8)", "offline"],
        ),
        (
            "a runner that left",
            vec![runner(7), On(7, 1), Run(7, 2), Job(1, json!({})), Off(7)],
            Reason::RunnersOffline,
            &["runner 7", "offline"],
        ),
        ("no free slot", waits_for_7(), Reason::NoSlot, &["only runner that could take it, runner 7, is busy", "next"]),
        (
            "no free slot at two runners",
            vec![runner(7), On(7, 1), Run(7, 2), runner(8), On(8, 1), Run(8, 3), Job(1, json!({}))],
            Reason::NoSlot,
            &["all 2 runners that could take it are busy"],
        ),
        (
            "the only runner is paused",
            one(json!({"paused": true}), json!({})),
            Reason::RunnersPaused,
            &["every online runner that could take it is paused", "runner 7"],
        ),
        (
            "one tag is missing",
            one(json!({"tags": ["linux"]}), json!({"tags": ["linux", "gpu"]})),
            Reason::MissingTag,
            &["no online runner has tag `gpu`", "the nearest, runner 7, lacks tag `gpu`"],
        ),
        (
            "two tags are missing",
            vec![
                Runner(7, json!({"tags": ["a"]})),
                On(7, 1),
                Runner(8, json!({"tags": ["z"]})),
                On(8, 1),
                Job(1, json!({"tags": ["a", "b", "c"]})),
            ],
            Reason::MissingTag,
            &["no online runner has all that it needs", "the nearest, runner 7, lacks tag `b` and tag `c`"],
        ),
        (
            "every tag is somewhere, all at no runner",
            vec![
                Runner(7, json!({"tags": ["a", "b"]})),
                On(7, 1),
                Runner(8, json!({"tags": ["c"]})),
                On(8, 1),
                Job(1, json!({"tags": ["a", "b", "c"]})),
            ],
            Reason::MissingTag,
            &["the nearest, runner 7, lacks tag `c`"],
        ),
        (
            "a tag that only an offline runner has",
            vec![Runner(7, json!({"tags": ["gpu"]})), runner(8), On(8, 1), Job(1, json!({"tags": ["gpu"]}))],
            Reason::RunnersOffline,
            &["only runner that could take it, runner 7, is offline"],
        ),
        (
            "nobody takes jobs without tags",
            one(json!({"tags": ["linux"], "run_untagged": false}), json!({})),
            Reason::NoUntagged,
            &["it has no tags, and no online runner", "runner 7, takes no jobs without tags"],
        ),
        (
            "only protected runners",
            one(json!({"protected_only": true}), json!({})),
            Reason::NotProtected,
            &["not on a protected ref, and every online runner", "runner 7"],
        ),
        (
            "a feature is missing",
            vec![runner(7), OnWith(7, 1, &["shared"]), Job(1, json!({"requires": ["shared", "vault"]}))],
            Reason::MissingFeature,
            &["no online runner has feature `vault`", "runner 7"],
        ),
        (
            "a project that forbids instance runners",
            one(json!({}), json!({"instance_runners": false})),
            Reason::InstanceRunnersOff,
            &["project 1 allows no instance runners", "runner 7"],
        ),
        (
            "a project that forbids group runners",
            one(json!({"type": "group", "group_ids": [1]}), json!({"group_runners": false})),
            Reason::GroupRunnersOff,
            &["project 1 allows no group runners", "runner 7"],
        ),
        (
            "a runner of another group",
            one(json!({"type": "group", "group_ids": [5]}), json!({})),
            Reason::OtherGroup,
            &[
                "every online runner with what it needs serves groups that project 1 is not in",
                "runner 7, serves other groups",
            ],
        ),
        (
            "a runner of another project",
            one(json!({"type": "project", "project_ids": [5]}), json!({})),
            Reason::OtherProject,
            &["every online runner with what it needs serves other projects than 1", "runner 7"],
        ),
        (
            "things of several kinds are missing",
            one(json!({"type": "group", "group_ids": [5], "paused": true}), json!({"tags": ["gpu"]})),
            Reason::MissingSeveral,
            &["runner 7, lacks tag `gpu`, and is paused, and serves other groups"],
        ),
        (
            "its tenant's cap is reached",
            vec![
                Project("tenant.upserted", json!({"tenant": "ns:1", "max_running": 1})),
                runner(7),
                On(7, 2),
                Run(7, 2),
                Job(1, json!({})),
            ],
            Reason::TenantCap,
            &["its tenant `ns:1`", "1 of at most 1"],
        ),
        (
            "its project's cap is reached",
            vec![
                Project("project.upserted", json!({"project_id": 1, "tenant": "ns:1", "max_running": 1})),
                runner(7),
                On(7, 2),
                Run(7, 2),
                Job(1, json!({})),
            ],
            Reason::ProjectCap,
            &["its project 1", "1 of at most 1"],
        ),
        (
            "a runner that declined it",
            vec![runner(7), On(7, 1), Decline(7, 1)],
            Reason::BackingOff,
            &["runner 7", "declined a job a moment ago"],
        ),
        (
            "the runner that had its affinity key is busy",
            vec![runner(7), On(7, 1), Run(7, 2), runner(8), On(8, 1), Job(1, json!({"affinity": "job:2"}))],
            Reason::AffinityWait,
            &["it waits for runner 7 (s_7)", "runner 8 has a free slot"],
        ),
        (
            "everything is paused",
            waits_for_7_and(Pause("all", pause())),
            Reason::PausedAll,
            &["everything is paused", "a fire"],
        ),
        (
            "its tenant is paused",
            waits_for_7_and(Pause("tenant:ns%3A1", pause())),
            Reason::PausedTenant,
            &["its tenant `ns:1` is paused by `ops` (`a fire`)"],
        ),
        (
            "its project is paused",
            waits_for_7_and(Pause("project:1", pause())),
            Reason::PausedProject,
            &["project 1 is paused"],
        ),
        (
            "its lane is paused",
            waits_for_7_and(Pause(lane, pause())),
            Reason::PausedLane,
            &["its lane instance is paused"],
        ),
        ("a pause that is over", waits_for_7_and(Pause("all", long_ago)), Reason::NoSlot, &["runner 7, is busy"]),
        (
            "behind another job of its tenant",
            vec![runner(7), On(7, 1), Run(7, 2), Job(3, json!({})), Job(1, json!({}))],
            Reason::BehindJobs,
            &["runner 7, is busy", "1 job of its tenant `ns:1` goes first"],
        ),
        (
            "behind jobs of its tenant's other project",
            vec![
                runner(7),
                On(7, 1),
                Run(7, 2),
                Job(3, json!({"project_id": 2})),
                Job(4, json!({"project_id": 2})),
                Job(1, json!({"priority": -1})),
            ],
            Reason::BehindJobs,
            &["2 jobs of its tenant `ns:1` go first"],
        ),
        (
            "behind another tenant",
            vec![
                runner(7),
                On(7, 1),
                Run(7, 2),
                Job(1, json!({})),
                Job(3, json!({"project_id": 2, "namespace_ids": [2]})),
            ],
            Reason::BehindTenants,
            &["runner 7, is busy", "1 other tenant is served before its tenant"],
        ),
        (
            "behind another job at a group runner",
            vec![
                Runner(7, json!({"type": "group", "group_ids": [1]})),
                On(7, 1),
                Run(7, 2),
                Job(3, json!({})),
                Job(1, json!({})),
            ],
            Reason::BehindJobs,
            &["runner 7, is busy", "1 job goes first"],
        ),
        (
            "a free slot that it is about to get",
            vec![runner(7), Job(1, json!({})), Ghost(7)],
            Reason::SlotFree,
            &["runner 7 has a free slot"],
        ),
        (
            "assigned",
            vec![runner(7), On(7, 1), Assign(7, 1)],
            Reason::Assigned,
            &["runner 7 (s_7) at pod a", "left to accept it"],
        ),
        (
            "running",
            vec![runner(7), On(7, 1), Run(7, 1)],
            Reason::Running,
            &["runner 7 (s_7) at pod a", "last heard of"],
        ),
        (
            "being canceled",
            vec![runner(7), On(7, 1), Run(7, 1), Cancel(1)],
            Reason::Canceling,
            &["`enough`", "runner 7 (s_7)", "left to stop"],
        ),
        ("canceled", vec![Job(1, json!({})), Cancel(1)], Reason::Ended, &["it was canceled"]),
        ("ended", vec![runner(7), On(7, 1), Run(7, 1), Finish(1)], Reason::Ended, &["it ended with success"]),
    ]
}
