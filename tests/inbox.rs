//! How the inbox is read: who waits for whom.

mod support;

use serde_json::json;
use support::pods::{Installation, entry, pending};

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_one_tenant_is_read_past_and_all_of_it_is_queued_in_order() {
    const FLOOD: u64 = 4_000;
    let installation = Installation::new().await;
    installation.publish_all((1..=FLOOD).map(|id| entry("job.pending", &pending(id)))).await;
    let quiet = json!({"id": FLOOD + 1, "project_id": 9, "namespace_ids": [9], "payload": {}});
    installation.publish_all([entry("job.pending", &quiet)]).await;
    let pod = installation.pod("a").await;
    installation.until_inbox_empty().await;
    let queued: Vec<u64> = installation.events().await.iter().filter_map(|event| Some(event.id?.0)).collect();
    assert_eq!(queued.len() as u64, FLOOD + 1, "each once");
    let place = queued.iter().position(|id| *id == FLOOD + 1).expect("it is queued");
    assert!(place < queued.len() / 2, "it came after {place} of the flood");
    let flood: Vec<u64> = queued.into_iter().filter(|id| *id <= FLOOD).collect();
    assert!(flood.is_sorted(), "in order");
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_never_passes_its_job_however_many_messages_are_on_their_way() {
    const JOBS: u64 = 2_000;
    let installation = Installation::new().await;
    // One more in front, so that calls part a job from its cancel.
    let others = [entry("tenant.upserted", &json!({"tenant": "ns:1", "weight": 2}))];
    let of_job = |id| {
        let cancel = json!({"id": id, "tenant": "ns:1", "reason": "not needed"});
        [entry("job.pending", &pending(id)), entry("job.canceled", &cancel)]
    };
    installation.publish_all(others.into_iter().chain((1..=JOBS).flat_map(of_job))).await;
    let pod = installation.pod("a").await;
    installation.until_inbox_empty().await;
    let counts = installation.counts().await;
    assert_eq!((counts["job.queued"], counts["job.canceled"]), (JOBS as usize, JOBS as usize), "{counts:?}");
    pod.end().await;
}
