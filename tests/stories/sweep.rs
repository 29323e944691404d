//! The net under the wakes. A test binary of its own: all others hold that the net is never needed.

use std::time::Duration;

use crate::support::name;
use crate::support::pods::{Installation, Noting};
use job_router::contract::{Limits, Message};
use job_router::redis::{Arg, Partition};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_wake_is_found_by_the_sweep_and_counted() {
    let installation = Installation::new().await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let runner = installation.runner(&pod.url, 1, "s", 1, Noting::default());
    installation.job(1, json!({})).await;
    installation.until_events("job.finished", 1).await;

    // The pod stands in a lane's `waiting`; then its wake is lost: somebody takes it out and tells nobody.
    let prefix = format!("{{{}:0}}:", installation.config.key_prefix);
    let lanes = installation.redis.command("HKEYS", [Arg::from(format!("{prefix}lanes"))]).await;
    let lanes = lanes.expect("a reply").into_array().expect("lanes");
    let instance = lanes.iter().map(|lane| lane.as_str().expect("a name")).find(|lane| lane.starts_with("instance:"));
    let waiting = format!("{prefix}waiting:{}", instance.expect("the lane of job 1"));
    installation
        .until("the pod waits", async || {
            let removed = installation.redis.command("ZREM", [Arg::from(&waiting), "a".into()]).await.ok()?;
            (removed.as_u64().ok()? == 1).then_some(())
        })
        .await;
    // Queued by a pod that has no runner.
    let data = json!({"id": 2, "project_id": 1, "namespace_ids": [1], "payload": {"steps": []}}).to_string();
    let fields = [("v", "1"), ("type", "job.pending"), ("data", &data)];
    let Ok(Message::JobPending(job)) = job_router::contract::parse(&fields, &Limits::default()) else {
        panic!("it is a sound job");
    };
    let partition = Partition::new(installation.redis.clone(), &prefix);
    partition.fan_out(&name("other"), &[("9-0".to_owned(), *job)], Duration::ZERO, &[]).await.expect("queues");

    installation.until_events("job.finished", 2).await;
    let (_, metrics) = pod.admin("/metrics").await;
    assert!(metrics.contains("\njob_router_sweep_rescues_total 1\n"), "it is counted");
    runner.stop().await;
    pod.stop().await;
}
