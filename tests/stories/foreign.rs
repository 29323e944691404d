//! A runner that wants what is not its own.

use std::time::Duration;

use job_router::proto::gitlab::GetJobRequest;
use job_router::proto::gitlab::job_router_client::JobRouterClient;
use job_router::proto::router_message::Kind as Down;
use job_router::proto::runner_message::Kind as Up;
use job_router::proto::{self, Hello};
use serde_json::{Value, json};
use tonic::{Code, Request};

use crate::support::pods::{Gate, Installation, TestPod, entry, pending, token};
use crate::support::raw::{self, Raw};

/// Jobs of a project that the liar has nothing to do with.
const FOREIGN: u64 = 10_000;
/// Those of them that run.
const RUNNING: usize = 5;

fn foreign(id: u64) -> Value {
    let mut job = pending(id);
    (job["project_id"], job["namespace_ids"]) = (json!(2), json!([2]));
    job
}

/// What it says of jobs that it would like to have: leases that are none, and those of other jobs.
fn lies(running: &[(u64, String)]) -> Vec<proto::Lease> {
    let lease = |job_id: u64, lease_id: &str| proto::Lease { job_id, lease_id: lease_id.to_owned() };
    let none = running.iter().flat_map(|(id, _)| ["0", "f"].map(|digit| lease(*id, &digit.repeat(32))));
    let of_others = running.iter().cycle().skip(1).map(|(_, lease_id)| lease_id);
    let swapped = running.iter().zip(of_others).map(|((id, _), other)| lease(*id, other));
    let queued = (FOREIGN - 5..=FOREIGN).map(|id| lease(id, &running[0].1));
    none.chain(swapped).chain(queued).collect()
}

/// Lies at the native door; answers what it heard.
async fn lie_natively(pod: &TestPod, lies: &[proto::Lease]) -> Vec<Down> {
    let hello = Hello {
        features: vec!["everything".to_owned()],
        running: lies.to_vec(),
        ..raw::hello("s_2", 1_000) // the name of another runner's manager
    };
    let (mut liar, welcome) = Raw::open(&pod.url, 1, hello).await;
    assert_eq!(welcome.resumed, [], "none of them is its own");
    liar.say(raw::slots(10_000, u64::MAX)).await;
    for lie in lies {
        for said in [raw::accepted(lie), raw::finished(lie), raw::declined(lie)] {
            liar.say(said).await;
        }
    }
    liar.say(raw::beat(1, lies)).await;
    let of_the_beat = |kind: &Down| match kind {
        Down::BeatAck(ack) if ack.sequence == 1 => Some(ack.gone.len()),
        _ => None,
    };
    assert_eq!(liar.until(of_the_beat).await, lies.len(), "of each it hears that it is not its own");
    for _ in lies {
        let ack = |kind: &Down| if let Down::FinishedAck(ack) = kind { Some(ack.recorded) } else { None };
        assert!(!liar.until(ack).await, "no end of it was recorded");
    }
    liar.say(raw::slots(10_000, 0)).await;
    let mut heard = liar.so_far(2).await;
    liar.say(Up::Goodbye(proto::Goodbye { reason: String::new() })).await;
    heard.extend(liar.so_far(3).await);
    heard
}

/// Asks at the door for GitLab Runners, with `system_id` and more that are not its own.
async fn lie_as_a_gitlab_runner(pod: &TestPod, bearer: &str) -> Result<bytes::Bytes, tonic::Status> {
    let said = json!({
        "info": {"name": "s_2", "features": {"everything": true}, "labels": {"project": "2"}, "tags": ["any"]},
        "token": token(2), "system_id": "s_9", "last_update": "9999999999999", "project_id": 2, "run_untagged": true,
        "session": {"url": "http://127.0.0.1", "authorization": token(2)},
    });
    let mut request = Request::new(GetJobRequest { job_request: said.to_string().into() });
    request.metadata_mut().insert("authorization", format!("Bearer {bearer}").parse().expect("ASCII"));
    let mut client = JobRouterClient::new(raw::channel(&pod.url).await);
    client.get_job(request).await.map(|answer| answer.into_inner().job_response)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_lies_in_every_message_of_both_doors_gets_no_job_of_others_and_ends_none() {
    let mut installation = Installation::new().await;
    installation.config.gitlab_hold = Duration::from_secs(1);
    let pod = installation.pod("a").await;
    installation.register(1, json!({"type": "project", "project_ids": [1]})).await;
    installation.register(2, json!({"type": "project", "project_ids": [2]})).await;
    installation.publish_all((1..=FOREIGN).map(|id| entry("job.pending", &foreign(id)))).await;
    let gate = Gate::default();
    let owner = installation.runner(&pod.url, 2, "s_2", RUNNING as u32, gate.clone());
    installation.until("theirs run", async || (gate.started().len() == RUNNING).then_some(())).await;
    installation.until_inbox_empty().await;
    installation.until_events("job.running", RUNNING).await;

    let events = installation.events().await;
    let started = events.iter().filter(|event| event.event_type.to_string() == "job.running");
    let running: Vec<_> =
        started.map(|event| (event.id.expect("a job").0, event.lease_id.expect("a lease").to_string())).collect();
    let lies = lies(&running);

    let native = lie_natively(&pod, &lies);
    let gitlab = async {
        let since = std::time::Instant::now();
        let own = token(1);
        let answers = futures::future::join_all((0..5).map(|_| lie_as_a_gitlab_runner(&pod, &own))).await;
        assert!(answers.into_iter().all(|answer| answer.expect("nothing for it").is_empty()));
        assert!(since.elapsed() >= Duration::from_millis(900), "they were held, while jobs of others waited");
        for bearer in ["", "token-2x", "*"] {
            let refused = lie_as_a_gitlab_runner(&pod, bearer).await.expect_err("nobody's token");
            assert_eq!(refused.code(), Code::PermissionDenied);
        }
    };
    let (heard, ()) = tokio::join!(native, gitlab);
    let only_no = heard.iter().all(|kind| matches!(kind, Down::Revoked(_)));
    assert!(only_no, "{heard:?}");

    let counts = installation.counts().await;
    let none = ["job.finished", "job.failed", "job.canceled", "job.requeued"].map(|kind| counts.get(kind));
    assert_eq!(none, [None; 4]);
    assert_eq!((counts["job.queued"], counts["job.assigned"]), (FOREIGN as usize, RUNNING));
    gate.open.cancel();
    installation.until_events("job.finished", RUNNING).await;
    let summary = owner.stop().await;
    assert_eq!((summary.lost, summary.failed), (0, 0));
    pod.end().await;
}
