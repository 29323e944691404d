//! Rails is told of jobs that no online runner could ever take, and nobody else is; and people may ask a pod.

use std::time::Duration;

use crate::support::pods::{Installation, TestPod};
use crate::support::raw::{self, Raw};
use job_router::contract::Event;
use job_router::proto::ExplainRequest;
use job_router::proto::admin_service_client::AdminServiceClient;
use serde_json::{Value, json};
use tonic::Code;

async fn installation(stuck_after_ms: u64) -> Installation {
    let mut installation = Installation::new().await;
    installation.config.stuck_after = Duration::from_millis(stuck_after_ms);
    installation
}

async fn told(installation: &Installation) -> Vec<Event> {
    let mut events = installation.events().await;
    events.retain(|event| event.event_type.to_string() == "job.stuck");
    events
}

/// Waits for the `n`th `job.stuck`.
async fn nth(installation: &Installation, n: usize) -> Event {
    installation.until_events("job.stuck", n).await;
    told(installation).await.remove(n - 1)
}

fn id(event: &Event) -> u64 {
    event.id.expect("a job").0
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_of_jobs_that_are_alike_is_told_of_once_and_again_when_the_reason_is_another() {
    let installation = installation(600).await;
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    for id in 1..=3 {
        installation.job(id, json!({"tags": ["gpu"]})).await;
    }
    let first = nth(&installation, 1).await;
    assert_eq!((id(&first), first.text("reason"), first.attempt), (1, Some("no_runner_registered"), Some(0)));
    assert_eq!(first.rest["jobs"], 3);
    let waited_ms = first.at_ms - installation.events().await[0].at_ms;
    assert!(waited_ms >= 600, "{waited_ms} ms");
    // A runner, but not one for these.
    installation.register(7, json!({"tags": ["linux"]})).await;
    let (_runner, _) = Raw::open(&a.url, 7, raw::hello("s_7", 1)).await;
    let second = installation
        .until("the reason is another", async || {
            let told = told(&installation).await;
            told.into_iter().find(|event| event.text("reason") == Some("missing_tag"))
        })
        .await;
    assert_eq!(second.rest["missing"], json!([{"kind": "tag", "name": "gpu"}]));
    assert_eq!(second.rest["nearest"], json!([7]));
    assert!(second.text("summary").expect("a sentence").contains("`gpu`"));
    // The oldest goes: the next is told of, which has waited long enough.
    let so_far = told(&installation).await.len();
    installation.publish("job.canceled", json!({"id": 1, "tenant": "ns:1", "reason": "no"})).await;
    let third = nth(&installation, so_far + 1).await;
    assert_eq!((id(&third), third.text("reason"), third.rest["jobs"].as_u64()), (2, Some("missing_tag"), Some(2)));
    // Many looks later, nothing more is told: a marker of another kind comes and goes meanwhile.
    installation.job(9, json!({"tags": ["other"]})).await;
    let fourth = nth(&installation, so_far + 2).await;
    assert_eq!(id(&fourth), 9);
    // A runner that can, with no slot: they wait for that, and what was told is forgotten.
    installation.register(8, json!({"tags": ["gpu"]})).await;
    let (_able, _) = Raw::open(&b.url, 8, raw::hello("s_8", 0)).await;
    let key = format!("{{{}:0}}:stuck:*", installation.config.key_prefix);
    installation
        .until("what was remembered of them is forgotten", async || {
            let left = installation.command("KEYS", &[&key]).await.into_array().expect("a list").len();
            (left == 1).then_some(())
        })
        .await;
    // At most one more, if a look came between its registration and its connection.
    let late = told(&installation).await.split_off(so_far + 2);
    assert!(late.len() <= 1 && late.iter().all(|event| event.text("reason") == Some("runners_offline")), "{late:?}");
    a.stop().await;
    b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_only_waits_for_a_slot_or_a_cap_is_not_told_of() {
    let installation = installation(2_500).await; // longer than what pods say of runners is old
    let pod = installation.pod("a").await;
    installation.publish("tenant.upserted", json!({"tenant": "ns:2", "max_running": 0})).await;
    installation.register(7, json!({})).await;
    let (mut runner, _) = Raw::open(&pod.url, 7, raw::hello("s_7", 1)).await;
    installation.job(1, json!({})).await;
    let assign = runner.assign().await;
    runner.accept(&assign).await;
    installation.job(2, json!({})).await; // no slot
    installation.job(3, json!({"project_id": 2, "namespace_ids": [2]})).await; // its tenant's cap
    installation.job(4, json!({"tags": ["gpu"]})).await; // stuck
    // One that stands later in the order of looks, and came later: by then the others have been looked at.
    assert_eq!(id(&nth(&installation, 1).await), 4);
    installation.job(5, json!({"tags": ["gpu"], "priority": 1})).await;
    assert_eq!(id(&nth(&installation, 2).await), 5);
    assert_eq!(told(&installation).await.len(), 2);
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_while_a_living_pod_does_not_say_which_runners_it_has() {
    let installation = installation(600).await;
    let pod = installation.pod("a").await;
    let key = format!("{{{}:0}}:", installation.config.key_prefix);
    let old = job_router::redis::Partition::new(installation.redis.clone(), &key);
    let name = crate::support::name("old");
    let began = std::time::Instant::now();
    installation.job(1, json!({"tags": ["gpu"]})).await;
    while began.elapsed() < Duration::from_millis(2_000) {
        old.heartbeat(&name, "0", Duration::from_secs(60), &crate::support::empty()).await.expect("beats");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(told(&installation).await.len(), 0);
    let told = ask(&pod, 1, "").await.expect("an answer");
    assert!(told.text.contains("pods old do not say which runners they have"), "{}", told.text);
    // It goes silent for good, and is buried.
    assert_eq!(id(&nth(&installation, 1).await), 1);
    pod.end().await;
}

async fn ask(pod: &TestPod, id: u64, tenant: &str) -> Result<job_router::proto::ExplainResponse, tonic::Status> {
    let channel = raw::channel(&format!("http://{}", pod.admin)).await;
    let request = ExplainRequest { id, tenant: tenant.to_owned() };
    Ok(AdminServiceClient::new(channel).explain(request).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_explains_on_its_admin_address_and_names_the_field_of_a_bad_question() {
    let installation = installation(60_000).await;
    let pod = installation.pod("a").await;
    installation.job(1, json!({"tags": ["gpu"], "payload": {"token": "hunter2"}})).await;
    installation.until_events("job.queued", 1).await;
    for tenant in ["", "ns:1"] {
        let told = ask(&pod, 1, tenant).await.expect("an answer");
        assert_eq!((told.state.as_str(), told.reason.as_str(), told.stuck), ("queued", "no_runner_registered", true));
        assert_eq!(told.summary, "no runner is registered");
        let json: Value = serde_json::from_str(&told.json).expect("JSON");
        assert_eq!((&json["v"], &json["id"], &json["tags"]), (&json!(1), &json!(1), &json!(["gpu"])));
        assert!(told.text.starts_with("job 1 queued for "), "{}", told.text);
        assert!(!told.text.contains("hunter2") && !told.json.contains("hunter2"));
    }
    assert_eq!(ask(&pod, 2, "").await.expect("an answer").reason, "unknown");
    let refused = ask(&pod, 0, "").await.expect_err("no such id");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "id: must be 1 to 9223372036854775807, is 0")
    );
    let refused = ask(&pod, 1, &"x".repeat(65)).await.expect_err("no such tenant");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "tenant: must be 1 to 64 bytes without control characters; is text of 65 bytes");
    let refused = ask(&pod, 1, &"x".repeat(2_000)).await.expect_err("too large");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    // The probes and the metrics are still there, over HTTP/1.1.
    assert_eq!(pod.admin("/readyz").await.0, 200);
    pod.end().await;
}
