//! What users see, over a real Redis and real gRPC: pods and runners of one process.

mod support;

use serde_json::json;
use support::pods::{Installation, Noting};

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
    let mut ran = noting.ran.lock().expect("no panic").clone();
    ran.sort_unstable();
    assert_eq!(ran, (1..=20).collect::<Vec<_>>());
    let counts = installation.counts().await;
    for kind in ["job.queued", "job.assigned", "job.running", "job.finished"] {
        assert_eq!(counts[kind], 20, "{counts:?}");
    }
    assert_eq!(runner.stop().await.succeeded, 20);
    pod.stop().await;
}
