//! The door for GitLab Runner as it is: calls that are held, and a Rails that says what became of their jobs.

use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;
use job_router::proto::gitlab::GetJobRequest;
use job_router::proto::gitlab::job_router_client::JobRouterClient;
use job_router::redis::PrivateRedisOptions;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::support::pods::{Installation, TestPod, token};
use crate::support::raw::channel;

/// What a call was answered.
type Answer = Result<Response<Value>, Status>;

/// Asks for a job as a manager of runner `id` does; null: there was none.
async fn get_job(channel: Channel, id: u64, system_id: &str) -> Answer {
    let said = json!({
        "info": {"name": "gitlab-runner", "version": "19.4.0", "executor": "shell", "features": {"image": true, "proxy": false}},
        "token": token(id), "system_id": system_id, "last_update": "",
    });
    let mut request = Request::new(GetJobRequest { job_request: said.to_string().into() });
    let bearer = format!("Bearer {}", token(id)).parse().expect("ASCII");
    request.metadata_mut().insert("authorization", bearer);
    request.metadata_mut().insert("x-request-id", "01J9".parse().expect("ASCII"));
    let answer = JobRouterClient::new(channel).get_job(request).await?;
    let json = |bytes: &[u8]| if bytes.is_empty() { Value::Null } else { serde_json::from_slice(bytes).expect("JSON") };
    Ok(answer.map(|answer| json(&answer.job_response)))
}

fn call(channel: &Channel, id: u64, system_id: &'static str) -> JoinHandle<Answer> {
    tokio::spawn(get_job(channel.clone(), id, system_id))
}

async fn job_of(call: JoinHandle<Answer>) -> Value {
    let answer = tokio::time::timeout(Duration::from_secs(10), call).await.expect("answered in time");
    answer.expect("no panic").expect("no error").into_inner()
}

/// An installation with a runner, its pod, and a connection to that.
type World = (Installation, TestPod, Channel);

fn world() -> LocalBoxFuture<'static, World> {
    Box::pin(async { with(Installation::new().await).await })
}

fn with(mut installation: Installation) -> LocalBoxFuture<'static, World> {
    Box::pin(async {
        installation.config.sweep_interval = Duration::from_millis(100); // as often it tells who is there
        let pod = installation.pod("a").await;
        installation.register(1, json!({})).await;
        let channel = channel(&pod.url).await;
        (installation, pod, channel)
    })
}

async fn publish(installation: &Installation, id: u64) {
    let payload = json!({"id": id, "token": "t", "job_info": {"name": "test", "time_in_queue_seconds": 0}});
    installation.job(id, json!({"payload": payload})).await;
}

async fn rails_says(installation: &Installation, what: &str, id: u64) {
    let status = if what == "job.finished" { json!("success") } else { Value::Null };
    installation.publish(what, json!({"id": id, "tenant": "ns:1", "status": status})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_call_gets_its_job_and_rails_tells_the_rest() {
    let (installation, pod, channel) = world().await;
    let held = call(&channel, 1, "s_1");
    installation.until_free("a", 1).await;
    publish(&installation, 7).await;
    let published = Instant::now();
    let answer = held.await.expect("no panic").expect("a job");
    println!("answered {:?} after it was published", published.elapsed());
    assert_eq!(answer.metadata().get("x-request-id").expect("given back"), "01J9");
    assert!(answer.metadata().contains_key("x-gitlab-last-update"));
    let job = answer.into_inner();
    assert_eq!((&job["id"], &job["token"], &job["job_info"]["name"]), (&json!(7), &json!("t"), &json!("test")));
    assert!(job["job_info"]["time_in_queue_seconds"].is_f64());
    assert_eq!(installation.story_of(7).await, ["queued", "assigned"]);
    rails_says(&installation, "job.running", 7).await;
    installation.until_events("job.running", 1).await;
    rails_says(&installation, "job.finished", 7).await;
    installation.until_events("job.finished", 1).await;
    assert_eq!(installation.story_of(7).await, ["queued", "assigned", "running", "finished"]);
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_nothing_comes_for_is_answered_empty_and_so_is_one_too_many() {
    let mut installation = Installation::new().await;
    installation.config.gitlab_hold = Duration::from_secs(1);
    installation.config.max_slots_per_session = 1;
    let (_installation, pod, channel) = with(installation).await;
    let (since, first) = (Instant::now(), call(&channel, 1, "s_1"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(job_of(call(&channel, 1, "s_1")).await, Value::Null);
    assert!(since.elapsed() < Duration::from_millis(900), "one more than there may be is not held");
    assert_eq!(job_of(first).await, Value::Null);
    assert!(since.elapsed() >= Duration::from_millis(900), "{:?}", since.elapsed());
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_no_runners_doing_is_an_error() {
    let (installation, pod, channel) = world().await;
    let nobody = get_job(channel.clone(), 2, "s_1").await.expect_err("no runner's token");
    assert_eq!(nobody.code(), Code::PermissionDenied);
    let ask = async |json: &str, authorization: Option<&str>| {
        let mut request = Request::new(GetJobRequest { job_request: json.to_owned().into() });
        if let Some(text) = authorization {
            request.metadata_mut().insert("authorization", text.parse().expect("ASCII"));
        }
        JobRouterClient::new(channel.clone()).get_job(request).await.expect_err("refused")
    };
    assert_eq!(ask("{}", None).await.code(), Code::PermissionDenied);
    for (json, names) in [("[7", "line 1"), (r#"{"system_id": "a b"}"#, "system_id")] {
        let refused = ask(json, Some("Bearer token-1")).await;
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(names), "{refused}");
    }
    // Paused, it is as one for whom there is nothing.
    installation.register(3, json!({"paused": true})).await;
    let paused = call(&channel, 3, "s_1");
    installation.job(1, json!({})).await;
    installation.until_events("job.queued", 1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!paused.is_finished());
    pod.end().await;
    assert_eq!(job_of(paused).await, Value::Null, "and the pod that drains says no more than that");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_held_call_is_a_slot() {
    let (installation, pod, channel) = world().await;
    let calls = [call(&channel, 1, "s_1"), call(&channel, 1, "s_1"), call(&channel, 1, "s_2")];
    installation.until_free("a", 3).await;
    for id in 1..=4 {
        publish(&installation, id).await;
    }
    let mut ids = Vec::new();
    for call in calls {
        ids.push(job_of(call).await["id"].as_u64().expect("a job"));
    }
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3]);
    installation.until_events("job.queued", 4).await;
    assert_eq!(installation.story_of(4).await, ["queued"]);
    assert_eq!(job_of(call(&channel, 1, "s_2")).await["id"], 4);
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_canceled_is_a_slot_no_more() {
    let (installation, pod, channel) = world().await;
    let gone = call(&channel, 1, "s_1");
    let stays = call(&channel, 1, "s_2");
    installation.until_free("a", 2).await;
    gone.abort();
    installation.until_free("a", 1).await;
    publish(&installation, 1).await;
    publish(&installation, 2).await;
    assert_eq!(job_of(stays).await["id"], 1);
    installation.until_events("job.queued", 2).await;
    assert_eq!(installation.story_of(2).await, ["queued"]);
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_rails_does_not_hear_of_in_time_goes_to_another_under_a_new_lease() {
    let mut installation = Installation::new().await;
    installation.config.gitlab_ack_timeout = Duration::from_secs(1);
    installation.config.accept_timeout = Duration::from_millis(200); // of the other door
    installation.config.decline_backoff = Duration::from_secs(60);
    let (installation, pod, channel) = with(installation).await;
    let dies = call(&channel, 1, "s_1");
    installation.until_free("a", 1).await;
    publish(&installation, 1).await;
    assert_eq!(job_of(dies).await["id"], 1);
    let since = Instant::now();
    let (again, other) = (call(&channel, 1, "s_1"), call(&channel, 1, "s_2"));
    assert_eq!(job_of(other).await["id"], 1, "not the one that it failed at");
    assert!(since.elapsed() > Duration::from_millis(800), "{:?}", since.elapsed());
    rails_says(&installation, "job.running", 1).await;
    installation.until_events("job.running", 1).await;
    rails_says(&installation, "job.finished", 1).await;
    installation.until_events("job.finished", 1).await;
    let story = ["queued", "assigned", "requeued", "assigned", "running", "finished"];
    assert_eq!(installation.story_of(1).await, story);
    let events = installation.events().await;
    let leases: Vec<_> = events.iter().filter_map(|event| event.lease_id).collect();
    assert_eq!((leases[0] == leases[1], leases[1] == leases[2]), (true, false), "{leases:?}");
    assert!(!again.is_finished(), "it is left alone for a while");
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rails_says_of_a_job_wins_over_where_the_router_has_it() {
    let (installation, pod, channel) = world().await;
    installation.register(2, json!({})).await;
    let runs_at = async |id: u64, runner_id: u64, system_id: &str| {
        let data = json!({"id": id, "tenant": "ns:1", "runner_id": runner_id, "system_id": system_id});
        installation.publish("job.running", data).await;
    };
    // One that nobody was handed, as its runner polled Rails.
    publish(&installation, 1).await;
    installation.until_events("job.queued", 1).await;
    runs_at(1, 2, "s_9").await;
    installation.until_events("job.running", 1).await;
    let held = call(&channel, 1, "s_1");
    installation.until_free("a", 1).await;
    // One that was handed to another.
    publish(&installation, 2).await;
    assert_eq!(job_of(held).await["id"], 2, "the first is not queued any more");
    runs_at(2, 2, "s_9").await;
    installation.until_events("job.running", 2).await;
    for id in [1, 2] {
        rails_says(&installation, "job.finished", id).await;
    }
    installation.until_events("job.finished", 2).await;
    assert_eq!(installation.story_of(1).await, ["queued", "assigned", "running", "finished"]);
    assert_eq!(installation.story_of(2).await, ["queued", "assigned", "requeued", "assigned", "running", "finished"]);
    let events = installation.events().await;
    let of = |what: &str| events.iter().filter(|event| event.event_type.to_string() == what).collect::<Vec<_>>();
    for running in of("job.running") {
        assert_eq!(
            (running.runner_id.expect("told").0, running.system_id.as_ref().expect("told").as_str()),
            (2, "s_9")
        );
    }
    let reasons: Vec<_> = of("job.requeued").iter().map(|event| event.text("reason").map(str::to_owned)).collect();
    assert_eq!(reasons, [Some("runs_elsewhere".to_owned())]);
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_runner_that_never_beats_is_not_lost_when_a_lease_is_over() {
    let mut installation = Installation::new().await;
    installation.config.lease = Duration::from_secs(1);
    installation.config.lease_margin = Duration::from_millis(200);
    installation.config.beat_interval = Duration::from_millis(300);
    installation.config.accept_timeout = Duration::from_millis(500);
    let (installation, pod, channel) = with(installation).await;
    let held = call(&channel, 1, "s_1");
    publish(&installation, 1).await;
    installation.job(2, json!({"timeout_s": 1})).await;
    assert_eq!(job_of(held).await["id"], 1);
    assert_eq!(job_of(call(&channel, 1, "s_1")).await["steps"], json!([]));
    rails_says(&installation, "job.running", 1).await;
    rails_says(&installation, "job.running", 2).await;
    // Of the second, which may run for a second, Rails never tells the end.
    installation.until_events("job.failed", 1).await;
    assert_eq!(installation.story_of(2).await, ["queued", "assigned", "running", "failed"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(installation.story_of(1).await, ["queued", "assigned", "running"]);
    rails_says(&installation, "job.finished", 1).await;
    installation.until_events("job.finished", 1).await;
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_drains_answers_its_calls_empty_and_cuts_none() {
    let (installation, pod, channel) = world().await;
    let calls: Vec<_> = (0..20).map(|_| call(&channel, 1, "s_1")).collect();
    installation.until_free("a", 20).await;
    let since = Instant::now();
    pod.end().await;
    println!("drained in {:?}", since.elapsed());
    for call in calls {
        assert_eq!(job_of(call).await, Value::Null);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_is_deleted_is_refused_at_once_in_all_its_calls() {
    let (installation, pod, channel) = world().await;
    let calls = [call(&channel, 1, "s_1"), call(&channel, 1, "s_2")];
    installation.until_free("a", 2).await;
    installation.publish("runner.deleted", json!({"id": 1})).await;
    for call in calls {
        let answer = tokio::time::timeout(Duration::from_secs(2), call).await.expect("at once").expect("no panic");
        assert_eq!(answer.expect_err("cut").code(), Code::PermissionDenied);
    }
    let again = get_job(channel, 1, "s_1").await.expect_err("its token is nobody's");
    assert_eq!(again.code(), Code::PermissionDenied);
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_away_is_an_error_only_after_all_the_time_that_a_call_is_held() {
    let kept = PrivateRedisOptions { append_only: true, ..PrivateRedisOptions::default() };
    let (mut installation, mut server) = Installation::alone_with(kept).await;
    installation.config.redis_command_timeout = Duration::from_millis(300);
    installation.config.gitlab_hold = Duration::from_secs(4);
    let (installation, pod, channel) = with(installation).await;
    let held = call(&channel, 1, "s_1");
    installation.until_free("a", 1).await;
    server.stop().expect("stops");
    installation.until("not ready", async || (pod.admin("/readyz").await.0 == 503).then_some(())).await;
    let (since, new) = (Instant::now(), call(&channel, 1, "s_2"));
    assert_eq!(job_of(held).await, Value::Null, "who was let in before is held on");
    let away = new.await.expect("no panic").expect_err("it could not be looked up");
    assert_eq!(away.code(), Code::Unavailable);
    assert!(since.elapsed() > Duration::from_secs(3), "{:?}", since.elapsed());
    let new = call(&channel, 1, "s_3");
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.restart().expect("starts");
    publish(&installation, 1).await;
    assert_eq!(job_of(new).await["id"], 1, "Redis was back in time");
    drop(pod);
}

#[tokio::test(flavor = "multi_thread")]
async fn rails_is_told_that_an_idle_runner_is_there() {
    let mut installation = Installation::new().await;
    installation.config.offline_after = Duration::from_secs(3);
    installation.config.online_interval = Duration::from_secs(24 * 3600); // told once, but at the border of two
    let (installation, pod, channel) = with(installation).await;
    let other = installation.pod("b").await;
    let held = call(&channel, 1, "s_1");
    let native = installation.runner(&pod.url, 1, "s_2", 1, crate::support::pods::Noting::default());
    installation.until_events("runner.online", 2).await;
    let events = installation.events().await;
    let of = |system_id: &str| {
        let found = events.iter().find(|event| event.system_id.as_ref().is_some_and(|id| id.as_str() == system_id));
        found.expect("told of").clone()
    };
    assert_eq!(of("s_1").runner_id.expect("told").0, 1);
    assert_eq!(of("s_1").rest["info"]["executor"], "shell");
    assert!(of("s_2").rest["info"]["version"].as_str().expect("text").starts_with("job-router"));

    // It goes to another pod: nothing to tell.
    native.stop().await;
    let native = installation.runner(&other.url, 1, "s_2", 1, crate::support::pods::Noting::default());
    tokio::time::sleep(Duration::from_secs(6)).await;
    let counts = installation.counts().await;
    assert_eq!((counts["runner.online"], counts.get("runner.offline")), (2, None));
    native.stop().await;
    installation.until_events("runner.offline", 1).await;
    let last = installation.events().await.pop().expect("an event");
    assert_eq!(last.system_id.expect("told").as_str(), "s_2");
    held.abort();
    pod.end().await;
    other.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_has_lost_its_runners_refuses_none_until_rails_has_told_of_them() {
    let (mut installation, _server) = Installation::alone().await;
    installation.config.rebuild_hold = Some(Duration::from_secs(3));
    let (installation, pod, channel) = with(installation).await;
    let before = call(&channel, 1, "s_1");
    installation.until_free("a", 1).await;
    installation.command("FLUSHALL", &[]).await;
    installation.until_events("redis.empty", 1).await;
    let (since, known, nobody) = (Instant::now(), call(&channel, 1, "s_2"), call(&channel, 2, "s_1"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!known.is_finished() && !nobody.is_finished());
    installation.register(1, json!({})).await;
    installation.until_free("a", 2).await;
    // For a while longer, as it may not be told of all yet.
    let nobody = tokio::time::timeout(Duration::from_secs(10), nobody).await.expect("in time").expect("no panic");
    assert_eq!(nobody.expect_err("no runner has this token").code(), Code::PermissionDenied);
    assert!(since.elapsed() > Duration::from_secs(2), "{:?}", since.elapsed());
    assert!(!before.is_finished() && !known.is_finished());
    pod.kill().await;
}
