//! Who may run what: every runner of a cross product against every job of another, by the rules as they are written; in the
//! matching of the pods, and, for some, through the scripts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::support::rules::may_run;
use crate::support::{World, name, offers};
use itertools::iproduct;
use job_router::contract::{Limits, Message};
use job_router::job::{JobId, PendingJob};
use job_router::redis::{Return, Taken};
use job_router::runner::{Lane, RunnerClass, Scope};
use job_router::tags::TagSet;
use serde_json::{Value, json};

const FEATURES: [&[&str]; 3] = [&[], &["x"], &["x", "y"]];

/// All runners, without their features.
fn runners() -> Vec<Value> {
    let scopes = [
        json!({"type": "instance"}),
        json!({"type": "group", "group_ids": [1]}),
        json!({"type": "group", "group_ids": [2, 9]}),
        json!({"type": "project", "project_ids": [10]}),
        json!({"type": "project", "project_ids": [11, 15]}),
    ];
    let tags = [json!([]), json!(["a"]), json!(["a", "b"]), json!(["b", "c"])];
    let switches = [false, true];
    let made = iproduct!(&scopes, &tags, switches, switches, switches).enumerate();
    made.map(|(n, (scope, tags, run_untagged, protected_only, paused))| {
        let mut runner = json!({
            "id": n + 1, "token_sha256": format!("{n:064x}"), "tags": tags,
            "run_untagged": run_untagged, "protected_only": protected_only, "paused": paused,
        });
        let scope = scope.as_object().expect("an object").clone();
        runner.as_object_mut().expect("an object").extend(scope);
        runner
    })
    .collect()
}

/// All jobs. Switches belong to a project, so each project has its own.
fn jobs() -> Vec<Value> {
    let namespaces = [json!([1]), json!([1, 2]), json!([3])];
    let switches = [false, true];
    let projects = iproduct!(&namespaces, switches, switches).enumerate();
    let tags = [json!([]), json!(["a"]), json!(["b"]), json!(["a", "b"]), json!(["d"])];
    let requires = [json!([]), json!(["x"]), json!(["y"])];
    let projects: Vec<_> = projects.collect();
    iproduct!(&projects, &tags, switches, &requires)
        .enumerate()
        .map(|(n, ((project, (namespaces, instance, group)), tags, protected, requires))| {
            json!({
                "id": n + 1, "project_id": 10 + project, "namespace_ids": namespaces, "instance_runners": instance,
                "group_runners": group, "tags": tags, "protected": protected, "requires": requires,
                "payload": {"steps": []},
            })
        })
        .collect()
}

fn message(kind: &str, data: &Value) -> Message {
    let data = data.to_string();
    let fields = [("v", "1"), ("type", kind), ("data", &data)];
    job_router::contract::parse(&fields, &Limits::default()).unwrap_or_else(|refused| panic!("{data}: {refused:?}"))
}

fn pending(job: &Value) -> PendingJob {
    let Message::JobPending(job) = message("job.pending", job) else { panic!("a job") };
    *job
}

fn class(runner: &Value, features: &[&str]) -> RunnerClass {
    let Message::RunnerUpserted(record) = message("runner.upserted", runner) else { panic!("a runner") };
    record.class(&TagSet::new(features.iter().copied()).expect("short features"))
}

fn lanes(job: &PendingJob) -> Vec<Lane> {
    let fingerprint = job.capability.fingerprint();
    Scope::of_project(&job.project).map(|scope| Lane { scope, fingerprint }).collect()
}

#[test]
fn pods_match_as_the_rules_say_for_every_runner_and_every_job() {
    let (runners, jobs) = (runners(), jobs());
    let parsed: Vec<PendingJob> = jobs.iter().map(pending).collect();
    let (mut pairs, mut may) = (0, 0);
    for (runner, features) in iproduct!(&runners, FEATURES) {
        let class = class(runner, features);
        for (job, parsed) in jobs.iter().zip(&parsed) {
            let matches = lanes(parsed).iter().any(|lane| class.matches(lane.scope, &parsed.capability));
            for lane in lanes(parsed) {
                let missing = class.missing(lane.scope, &parsed.capability);
                assert_eq!(
                    missing.is_empty(),
                    class.matches(lane.scope, &parsed.capability),
                    "{missing:?}: {runner} {job}"
                );
            }
            assert_eq!(matches, may_run(runner, features, job), "{runner} {features:?} {job}");
            (pairs, may) = (pairs + 1, may + usize::from(matches));
        }
    }
    assert!(pairs >= 100_000 && may > pairs / 100, "{may} of {pairs}");
    println!("{pairs} pairs, {may} may");
}

#[tokio::test]
async fn what_a_runner_takes_through_the_scripts_is_what_the_rules_say() {
    let scopes = [1, 2, 3, 9].map(Scope::Group).into_iter().chain([Scope::Instance]);
    let scopes: Vec<Scope> = scopes.chain((10..=21).map(Scope::Project)).collect();
    let world = World::with_scopes(&scopes).await;
    let jobs = jobs();
    for job in &jobs {
        world.queue(pending(job)).await;
    }
    let known: BTreeMap<Lane, _> = world.partition.lanes().await.expect("lanes").into_iter().collect();
    let mut takes = 0;
    // A prime step, so that all values of all fields are met.
    for (runner, features) in iproduct!(&runners(), FEATURES).step_by(7) {
        let class = class(runner, features);
        let matched = known.iter().filter(|(lane, capability)| class.matches(lane.scope, capability));
        let matched: Vec<Lane> = matched.map(|(lane, _)| *lane).collect();
        let mut taken = Vec::new();
        loop {
            let slots = offers(64);
            let answer = world.partition.take(&name("pod"), Duration::from_secs(60), 0, &matched, &slots).await;
            let Taken { jobs: page, again, .. } = answer.expect("takes");
            taken.extend(page.iter().map(|job| job.lease));
            if page.len() < slots.len() && again.is_empty() {
                break;
            }
        }
        let ids: BTreeSet<JobId> = taken.iter().map(|lease| lease.job_id).collect();
        let right = jobs.iter().filter(|job| may_run(runner, features, job));
        let right: BTreeSet<JobId> = right.map(|job| JobId(job["id"].as_u64().expect("an id"))).collect();
        assert_eq!(ids, right, "{runner} {features:?}");
        takes += ids.len();
        let backs = taken.iter().map(|lease| Return { lease: *lease, reason: "drain", failed_delivery: false });
        for backs in backs.collect::<Vec<_>>().chunks(64) {
            world.partition.give_back(&name("pod"), 3, Duration::from_secs(60), backs).await.expect("gives back");
        }
    }
    assert!(takes > 300, "{takes}");
}
