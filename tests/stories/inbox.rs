//! How the inbox is read: who waits for whom.

use std::time::Duration;

use crate::support::pods::{Installation, entry, pending};
use job_router::redis::{Arg, ReadFrom};
use serde_json::json;

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

/// An entry that a pod named `other` has read and will never apply.
async fn read_by_another(installation: &Installation) -> String {
    let (inbox, group) = (&installation.config.inbox_stream, &installation.config.inbox_group);
    let id = installation.job(1, json!({})).await;
    let mut reader = installation.redis.reader();
    let read = reader.read_group(inbox, group.as_str(), "other", 1, None, ReadFrom::New).await.expect("reads");
    assert_eq!(read.len(), 1);
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_pods_entries_are_taken_over_while_nothing_else_comes() {
    let installation = Installation::new().await;
    read_by_another(&installation).await;
    let pod = installation.pod("a").await;
    installation.until_events("job.queued", 1).await;
    installation.job(2, json!({})).await;
    installation.until_events("job.queued", 2).await; // and it reads on
    installation.until_inbox_empty().await;
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_pending_with_a_pod_that_does_not_know_of_it_is_applied() {
    let mut installation = Installation::new().await;
    installation.config.pod_dead_after = Duration::from_secs(8); // nobody claims it from whom has it first
    let id = read_by_another(&installation).await;
    let pod = installation.pod("a").await;
    installation.job(2, json!({})).await;
    installation.until_events("job.queued", 1).await; // it has looked for what it has pending, and reads on
    // As a claim of the pod does, whose answer is lost.
    let group = installation.config.inbox_group.as_str();
    let claim = [installation.config.inbox_stream.as_str(), group, "a", "0", &id].map(Arg::from);
    let claimed = installation.redis.command("XCLAIM", claim).await.expect("a reply");
    assert_eq!(claimed.into_entries().expect("entries").len(), 1);
    installation.until_events("job.queued", 2).await;
    installation.until_inbox_empty().await;
    pod.end().await;
}
