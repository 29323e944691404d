//! What users see, over a real Redis and real gRPC: pods and runners of one process.

use std::collections::BTreeSet;

use crate::support::pods::{Gate, Installation, LIMIT, Noting, entry, pending, token};
use crate::support::raw::{self, Raw};
use job_router::contract::samples::malformed_entries;
use job_router::proto::router_message::Kind as Down;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

fn sorted(mut ids: Vec<u64>) -> Vec<u64> {
    ids.sort_unstable();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_job_is_pushed_runs_and_is_told_to_rails() {
    let installation = Installation::new().await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let noting = Noting::default();
    let runner = installation.runner(&pod.url, 1, "s_1", 2, noting.clone());
    for id in 1..=20 {
        installation.job(id, json!({})).await;
    }
    installation.until_events("job.finished", 20).await;
    assert_eq!(sorted(noting.ran.lock().expect("no panic").clone()), (1..=20).collect::<Vec<_>>());
    for id in 1..=20 {
        assert_eq!(installation.story_of(id).await, ["queued", "assigned", "running", "finished"]);
    }
    for event in installation.events().await.iter().filter(|event| event.id.is_some()) {
        assert_eq!(event.attempt, Some(u32::from(event.event_type.to_string() != "job.queued")));
        if event.attempt == Some(1) {
            assert_eq!(event.runner_id.map(|id| id.0), Some(1), "{event:?}");
            assert_eq!(event.system_id.as_ref().map(|id| id.as_str()), Some("s_1"), "{event:?}");
            assert_eq!(event.pod.as_ref().map(|pod| pod.as_str()), Some("a"), "{event:?}");
            assert!(event.lease_id.is_some(), "{event:?}");
        }
    }
    assert_eq!(runner.stop().await.succeeded, 20);
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_comes_alone_is_handed_over_in_the_call_that_queues_it() {
    let installation = Installation::new().await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let runner = installation.runner(&pod.url, 1, "s", 1, Noting::default());
    for id in 1..=20 {
        installation.job(id, json!({})).await;
        installation.until_events("job.finished", id as usize).await;
        assert_eq!(installation.story_of(id).await, ["queued", "assigned", "running", "finished"]);
    }
    let (_, metrics) = pod.admin("/metrics").await;
    let line = metrics.lines().find(|line| line.contains("slots_sent_along_total{outcome=\"handed_over\"}"));
    let handed: u64 = line.and_then(|line| line.split(' ').next_back()).expect("a count").parse().expect("a number");
    assert!(handed > 10, "all but those that came before the pod was waiting: {handed}");
    runner.stop().await;
    pod.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payload_and_trace_context_reach_the_runner_byte_for_byte() {
    let installation = Installation::new().await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let (mut runner, welcome) = Raw::open(&pod.url, 1, raw::hello("s_1", 1)).await;
    assert_eq!(welcome.pod, "a");
    let payload = r#"{ "z":1,  "a":[1e3, 12345678901234567890, "\u00e9é", ""], "empty":[], "a":{} }"#;
    let data = format!(r#"{{"id":1,"project_id":1,"namespace_ids":[1],"timeout_s":7,"payload":{payload}}}"#);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    installation.xadd(&[("v", "1"), ("type", "job.pending"), ("data", &data), ("traceparent", trace)]).await;
    let assign = runner.assign().await;
    assert_eq!(std::str::from_utf8(&assign.payload), Ok(payload));
    assert_eq!((assign.traceparent.as_str(), assign.attempt, assign.timeout_ms), (trace, 1, 7_000));
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_run_only_on_runners_that_match() {
    let installation = Installation::new().await;
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    // (runner, its record, which jobs it may run)
    type May = fn(tag: &str, project: u64, namespace: u64, protected: bool) -> bool;
    let runners: [(u64, Value, May); 5] = [
        (1, json!({"tags": ["linux"]}), |tag, _, _, _| tag != "gpu"),
        (2, json!({"tags": ["gpu", "linux"], "run_untagged": false}), |tag, _, _, _| !tag.is_empty()),
        (3, json!({"type": "group", "group_ids": [2]}), |tag, _, namespace, _| tag.is_empty() && namespace == 2),
        (4, json!({"type": "project", "project_ids": [11]}), |tag, project, _, _| tag.is_empty() && project == 11),
        (5, json!({"tags": ["gpu"], "protected_only": true}), |tag, _, _, protected| tag != "linux" && protected),
    ];
    let mut connected = Vec::new();
    for (id, record, may) in runners {
        installation.register(id, record).await;
        let noting = Noting::default();
        let url = if id % 2 == 0 { &a.url } else { &b.url };
        connected.push((installation.runner(url, id, "s", 2, noting.clone()), noting, may));
    }
    let of = |id: u64| (["", "linux", "gpu"][id as usize % 3], 10 + id % 4, 1 + id % 2, id.is_multiple_of(5));
    for id in 1..=300 {
        let (tag, project_id, namespace, protected) = of(id);
        let tags: Vec<&str> = Some(tag).filter(|tag| !tag.is_empty()).into_iter().collect();
        let job = json!({"project_id": project_id, "namespace_ids": [namespace], "tags": tags, "protected": protected});
        installation.job(id, job).await;
    }
    installation.until_events("job.finished", 300).await;
    let mut all = Vec::new();
    for (runner, noting, may) in connected {
        let ran = noting.ran.lock().expect("no panic").clone();
        for id in &ran {
            let (tag, project, namespace, protected) = of(*id);
            assert!(may(tag, project, namespace, protected), "job {id}");
        }
        all.extend(ran);
        runner.stop().await;
    }
    assert_eq!(sorted(all), (1..=300).collect::<Vec<_>>());
    a.stop().await;
    b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_many_kinds_at_once_each_wake_who_waits_for_their_kind() {
    let installation = Installation::new().await;
    let pod = installation.pod("a").await;
    const KINDS: u64 = 4;
    let tag = |kind: u64| format!("kind-{kind}");
    let mut runners = Vec::new();
    for kind in 1..=KINDS {
        installation.register(kind, json!({"tags": [tag(kind)]})).await;
        runners.push(installation.runner(&pod.url, kind, "s", 1, Noting::default()));
    }
    // More than there are slots: takes are under way for some kinds while others wait, and the next jobs meet any of them.
    let mut rng = rand::rng();
    let mut published = 0;
    for _ in 0..300 {
        let jobs = (0..rng.random_range(1..=5)).map(|_| {
            published += 1;
            let mut job = pending(published);
            job["tags"] = json!([tag(rng.random_range(1..=KINDS))]);
            entry("job.pending", &job)
        });
        let jobs = jobs.collect::<Vec<_>>();
        installation.publish_all(jobs).await;
        tokio::time::sleep(std::time::Duration::from_micros(rng.random_range(0..8_000))).await;
    }
    installation.until_events("job.finished", published as usize).await;
    for runner in runners {
        runner.stop().await;
    }
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_a_runner_acts_at_once_on_what_is_queued_and_connected() {
    let installation = Installation::new().await;
    let pod = installation.pod("a").await;
    installation.job(1, json!({"tags": ["late"]})).await;
    installation.until_events("job.queued", 1).await;
    installation.register(1, json!({})).await;
    let gate = Gate::default();
    gate.open.cancel();
    let runner = installation.runner(&pod.url, 1, "s_1", 1, gate.clone());
    installation.job(2, json!({})).await;
    installation.until_events("job.finished", 1).await;
    assert_eq!(gate.started(), [2], "it has no such tag");
    installation.register(1, json!({"tags": ["late"]})).await;
    installation.until_events("job.finished", 2).await;
    assert_eq!(gate.started(), [2, 1]);

    let (mut watched, _) = Raw::open(&pod.url, 1, raw::hello("s_2", 0)).await;
    runner.stop().await;
    installation.register(1, json!({"paused": true})).await;
    installation.job(3, json!({})).await;
    installation.until_events("job.queued", 3).await;
    watched.say(raw::slots(1, 0)).await;
    let said = watched.so_far(1).await;
    assert!(said.is_empty(), "a paused runner is given nothing: {said:?}");
    installation.register(1, json!({})).await;
    let job = watched.assign().await.lease.expect("a lease");
    assert_eq!(job.job_id, 3);
    installation.publish("runner.deleted", json!({"id": 1})).await;
    assert_eq!(watched.end().await.expect_err("it is cut").code(), tonic::Code::Unauthenticated);
    installation
        .until("it is given back", async || {
            (installation.story_of(3).await == ["queued", "assigned", "requeued"]).then_some(())
        })
        .await;
    let mut refused = Raw::greet(&pod.url, 1, raw::hello("s_2", 1)).await;
    assert_eq!(refused.next().await.expect_err("it is gone").code(), tonic::Code::Unauthenticated);
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_cuts_the_session_of_the_old_one() {
    let installation = Installation::new().await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let (mut runner, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 1)).await;
    let other = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(token(2)));
    installation.register(1, json!({"token_sha256": other})).await;
    assert_eq!(runner.end().await.expect_err("it is cut").code(), tonic::Code::Unauthenticated);
    let (mut again, _) = Raw::open(&pod.url, 2, raw::hello("s_1", 1)).await;
    installation.job(1, json!({})).await;
    assert_eq!(again.assign().await.lease.expect("a lease").job_id, 1);
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_malformed_entries_stop_none_of_a_thousand_good_jobs() {
    let installation = Installation::new().await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let runner = installation.runner(&pod.url, 1, "s_1", 50, Noting::default());
    let seed = rand::random();
    println!("SEED={seed}");
    let mut bad = malformed_entries(seed).filter(|fields| !fields.is_empty());
    for batch in 0..10 {
        let mut entries: Vec<_> = bad.by_ref().take(1_000).collect();
        entries.extend((0..100).map(|n| entry("job.pending", &pending(2_000_000_000 + batch * 100 + n))));
        entries.shuffle(&mut rand::rngs::StdRng::seed_from_u64(seed));
        installation.publish_all(entries).await;
    }
    installation.until_inbox_empty().await;
    installation.until_events("job.finished", 1_000).await;
    let mut counts = installation.counts().await;
    counts.remove("runner.online"); // about once a second it is told
    assert_eq!((counts["message.rejected"], counts["job.finished"], counts["job.queued"]), (10_000, 1_000, 1_000));
    assert_eq!(counts.len(), 6, "these, what becomes of jobs, and that Redis was empty: {counts:?}");
    runner.stop().await;
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shuffled_and_repeated_inbox_ends_the_same() {
    let installation = Installation::new().await;
    let seed = rand::random();
    println!("SEED={seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut entries = Vec::new();
    let (mut canceled, mut finished) = (BTreeSet::new(), BTreeSet::new());
    for id in 1..=400 {
        entries.push(entry("job.pending", &pending(id)));
        match id % 4 {
            0 => {
                canceled.insert(id);
                entries.push(entry("job.canceled", &json!({"id": id, "tenant": "ns:1", "reason": "no"})));
            }
            1 => {
                finished.insert(id);
                entries.push(entry("job.finished", &json!({"id": id, "tenant": "ns:1", "status": "success"})));
            }
            _ => {}
        }
    }
    let record = |id: u64| {
        json!({"id": id, "token_sha256": hex::encode(<sha2::Sha256 as sha2::Digest>::digest(token(id))),
        "type": "instance", "run_untagged": true})
    };
    entries.extend((1..=20).map(|id| entry("runner.upserted", &record(id))));
    entries.push(entry("tenant.upserted", &json!({"tenant": "ns:1", "weight": 3})));
    entries.push(entry("project.upserted", &json!({"project_id": 1, "tenant": "ns:1"})));
    let again: Vec<_> = entries.iter().filter(|_| random.random_bool(0.5)).cloned().collect();
    entries.extend(again);
    entries.shuffle(&mut random);
    installation.publish_all(entries).await;
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    installation.until_inbox_empty().await;
    let runners: Vec<_> = (1..=20)
        .map(|id| {
            let noting = Noting::default();
            (installation.runner([&a.url, &b.url][id as usize % 2], id, "s", 2, noting.clone()), noting)
        })
        .collect();
    installation
        .until("all others ran", async || {
            let ran: usize = runners.iter().map(|(_, noting)| noting.ran.lock().expect("no panic").len()).sum();
            (ran == 200 && installation.counts().await["job.running"] == 200).then_some(())
        })
        .await;
    let mut ran = Vec::new();
    for (runner, noting) in runners {
        runner.stop().await;
        ran.extend(noting.ran.lock().expect("no panic").clone());
    }
    let left = (1..=400).filter(|id| !canceled.contains(id) && !finished.contains(id)).collect::<Vec<_>>();
    assert_eq!(sorted(ran), left);
    for id in &canceled {
        let ends = installation.story_of(*id).await;
        assert_eq!(ends.iter().filter(|word| *word == "canceled").count(), 1, "job {id}: {ends:?}");
    }
    a.stop().await;
    b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_never_has_more_jobs_than_slots_whatever_it_says_of_them() {
    let installation = Installation::new().await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    for id in 1..=40 {
        installation.job(id, json!({})).await;
    }
    let (mut runner, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 3)).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(runner.assign().await);
    }
    // Late: it had three free before it saw any of the three.
    runner.say(raw::slots(3, 0)).await;
    runner.say(raw::slots(3, 0)).await;
    assert!(runner.so_far(1).await.is_empty());
    runner.say(raw::slots(2, 1)).await;
    runner.say(raw::slots(1, 2)).await;
    runner.say(raw::slots(0, 3)).await;
    assert!(runner.so_far(2).await.is_empty());
    // One ends: one comes.
    let lease = runner.accept(&held[0]).await;
    runner.say(raw::finished(&lease)).await;
    runner.say(raw::slots(1, 3)).await;
    runner.assign().await;
    runner.say(raw::slots(0, 4)).await;
    let lease = runner.accept(&held[1]).await;
    runner.say(raw::finished(&lease)).await;
    let said = runner.so_far(3).await;
    assert!(!said.iter().any(|kind| matches!(kind, Down::Assign(_))), "it said no slots: {said:?}");
    runner.say(job_router::proto::runner_message::Kind::Goodbye(Default::default())).await;
    runner.say(raw::slots(0, 4)).await;
    assert!(!runner.so_far(4).await.iter().any(|kind| matches!(kind, Down::Assign(_))));
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_wins_wherever_the_job_is() {
    let installation = Installation::new().await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let cancel = async |id: u64| {
        installation.publish("job.canceled", json!({"id": id, "tenant": "ns:1", "reason": "no more"})).await;
    };
    // Before its pending.
    cancel(1).await;
    installation.job(1, json!({})).await;
    // Queued.
    installation.job(2, json!({})).await;
    cancel(2).await;
    installation.until_events("job.canceled", 2).await;
    // Assigned.
    let (mut runner, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 2)).await;
    installation.job(3, json!({})).await;
    let assign = runner.assign().await;
    cancel(3).await;
    runner.until(|kind| matches!(&kind, Down::Revoked(revoked) if revoked.lease == assign.lease).then_some(())).await;
    runner.say(raw::accepted(assign.lease.as_ref().expect("a lease"))).await;
    assert!(runner.so_far(1).await.is_empty(), "it is not told to start");
    // Running.
    runner.say(raw::slots(2, 1)).await;
    installation.job(4, json!({})).await;
    let assign = runner.assign().await;
    let lease = runner.accept(&assign).await;
    cancel(4).await;
    let told = runner.until(|kind| if let Down::Cancel(cancel) = kind { Some(cancel.clone()) } else { None }).await;
    assert_eq!((told.lease.as_ref(), told.reason.as_str()), (Some(&lease), "no more"));
    assert_eq!(installation.counts().await["job.canceled"], 3, "it still runs");
    runner.say(raw::finished(&lease)).await;
    runner.until(|kind| matches!(&kind, Down::FinishedAck(ack) if ack.recorded).then_some(())).await;
    installation.until_events("job.canceled", 4).await;
    assert_eq!(installation.story_of(1).await, ["canceled"]);
    assert_eq!(installation.story_of(2).await, ["queued", "canceled"]);
    assert_eq!(installation.story_of(3).await, ["queued", "assigned", "canceled"]);
    assert_eq!(installation.story_of(4).await, ["queued", "assigned", "running", "canceled"]);
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_does_not_hear_a_cancel_loses_the_job_when_its_grace_and_a_lease_are_over() {
    let mut installation = Installation::new().await;
    installation.config.cancel_grace = std::time::Duration::from_secs(1);
    installation.config.lease = std::time::Duration::from_secs(3);
    installation.config.beat_interval = std::time::Duration::from_millis(500);
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let (mut runner, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 1)).await;
    installation.job(1, json!({})).await;
    let assign = runner.assign().await;
    let lease = runner.accept(&assign).await;
    let since = std::time::Instant::now();
    installation.publish("job.canceled", json!({"id": 1, "tenant": "ns:1"})).await;
    let revoked = runner
        .until(|kind| matches!(&kind, Down::Revoked(revoked) if revoked.lease.as_ref() == Some(&lease)).then_some(()));
    tokio::time::timeout(LIMIT, revoked).await.expect("it is revoked");
    let took = since.elapsed();
    assert!(
        took >= std::time::Duration::from_millis(2_900),
        "a runner whose Start is on its way has let go by then: {took:?}"
    );
    assert_eq!(installation.story_of(1).await, ["queued", "assigned", "running", "canceled"]);
    runner.say(raw::finished(&lease)).await;
    runner.until(|kind| matches!(kind, Down::FinishedAck(_)).then_some(())).await;
    assert_eq!(installation.story_of(1).await.len(), 4, "told once");
    pod.end().await;
}
