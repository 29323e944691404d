//! What users see when Redis is away, or refuses: a pod and a runner in one process.

use crate::support::POD_USER;
use crate::support::pods::{Gate, Installation};
use crate::support::raw::{self, Raw};
use job_router::redis::{Arg, PrivateRedisOptions};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn redis_away_for_a_while_costs_no_job_and_no_connection() {
    let kept = PrivateRedisOptions { append_only: true, ..PrivateRedisOptions::default() };
    let (installation, mut redis) = Installation::alone_with(kept).await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let gate = Gate::default();
    let runner = installation.runner(&pod.url, 1, "s_1", 3, gate.clone());
    for id in 1..=5 {
        installation.job(id, json!({})).await;
    }
    installation.until("three run", async || (gate.started().len() == 3).then_some(())).await;
    installation.until_events("job.running", 3).await;
    assert_eq!(pod.admin("/readyz").await.0, 200);
    redis.stop().expect("stops");
    installation.until("not ready", async || (pod.admin("/readyz").await.0 == 503).then_some(())).await;
    gate.open.cancel();
    redis.restart().expect("starts");
    installation.until("ready", async || (pod.admin("/readyz").await.0 == 200).then_some(())).await;
    installation.until_events("job.finished", 5).await;
    installation.job(6, json!({})).await;
    installation.until_events("job.finished", 6).await;
    assert_eq!(installation.counts().await["job.assigned"], 6);
    let summary = runner.stop().await;
    assert_eq!((summary.sessions, summary.succeeded, summary.lost), (1, 6, 0));
    pod.end().await;
}

/// A pod that starts as Redis fails over, or before its user has all rights, must not be one that somebody has to start again.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_starts_while_redis_refuses_begins_when_it_does_no_more() {
    let (installation, _redis) = Installation::alone().await;
    for denied in ["function", "fcall", "xrevrange", "xreadgroup"] {
        installation.command("ACL LOG", &["RESET"]).await;
        installation.command("ACL SETUSER", &[POD_USER, &format!("-{denied}")]).await;
        let (waiting, stopped) = (installation.pod(denied).await, installation.pod("stopped").await);
        installation
            .until("it was denied", async || {
                let log = crate::support::text(&installation.command("ACL LOG", &[]).await);
                log.contains(denied).then_some(())
            })
            .await;
        stopped.stop().await;
        installation.command("ACL SETUSER", &[POD_USER, &format!("+{denied}")]).await;
        installation.until("ready", async || (waiting.admin("/readyz").await.0 == 200).then_some(())).await;
        waiting.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slip_in_the_acl_delays_messages_and_costs_none() {
    let (installation, _redis) = Installation::alone().await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let (mut runner, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 2)).await;
    // Inside a script, and the script itself.
    for (id, denied) in [(1, "hset"), (2, "fcall")] {
        installation.command("ACL LOG", &["RESET"]).await;
        installation.command("ACL SETUSER", &[POD_USER, &format!("-{denied}")]).await;
        installation.job(id, json!({})).await;
        installation.publish("runner.deleted", json!({"id": 100 + id})).await;
        installation
            .until("it was denied", async || {
                let log = crate::support::text(&installation.command("ACL LOG", &[]).await);
                log.contains(denied).then_some(())
            })
            .await;
        installation.command("ACL SETUSER", &[POD_USER, &format!("+{denied}")]).await;
        let lease = runner.assign().await.lease.expect("a lease");
        assert_eq!(lease.job_id, id);
    }
    installation.until_inbox_empty().await;
    for id in [101, 102] {
        let key = format!("{{{}:runners}}:id:{id}", installation.config.key_prefix);
        let version = installation.redis.command("HEXISTS", [Arg::from(key), "version".into()]).await.expect("a reply");
        assert_eq!(version.as_u64().ok(), Some(1), "runner {id} is deleted");
    }
    assert!(!installation.counts().await.contains_key("message.rejected"));
    let (_, metrics) = pod.admin("/metrics").await;
    for kind in [r#"redis_errors_total{kind="auth"}"#, r#"redis_call_seconds_count{call="take"}"#] {
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("job_router_{kind} ")));
        assert!(line.is_some_and(|count| count != "0"), "{kind}: {line:?}");
    }
    pod.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_applied_is_told_to_rails_before_its_entry_goes() {
    let installation = Installation::new().await;
    let pod = installation.pod("a").await;
    installation.until_events("redis.empty", 1).await;
    let key = |name: &str| Arg::from(format!("{{{}:0}}:{name}", installation.config.key_prefix));
    // Neither the message can be applied, nor can Rails be told.
    for name in ["job:7", "events"] {
        installation.redis.command("SET", [key(name), "of another type".into()]).await.expect("sets");
    }
    let entry = installation.publish("job.canceled", json!({"id": 7, "tenant": "ns:1"})).await;
    let next = installation.publish("runner.deleted", json!({"id": 9})).await;
    installation.until("the next one is applied", async || (!installation.in_inbox(&next).await).then_some(())).await;
    assert!(installation.in_inbox(&entry).await, "nobody knows of it yet");
    installation.redis.command("DEL", [key("events")]).await.expect("deletes");
    installation.until_events("message.rejected", 1).await;
    let events = installation.events().await;
    assert_eq!(events[0].text("entry_id"), Some(entry.as_str()));
    installation.until_inbox_empty().await;
    pod.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_free_for_what_is_queued_while_a_full_redis_refuses_the_job_it_was_meant_for() {
    let (mut installation, _redis) = Installation::alone().await;
    installation.config.accept_timeout = std::time::Duration::from_secs(60);
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let (mut first, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 1)).await;
    installation.job(1, json!({})).await;
    assert_eq!(first.assign().await.lease.expect("a lease").job_id, 1);
    let empty_takes = async || {
        let (_, metrics) = pod.admin("/metrics").await;
        let line = metrics.lines().find(|line| line.contains("takes_total{outcome=\"empty\"}"))?;
        line.split(' ').next_back()?.parse::<u64>().ok()
    };
    let before = empty_takes().await.expect("a count");
    let (mut second, _) = Raw::open(&pod.url, 1, raw::hello("s_2", 1)).await;
    installation.until("the pod waits", async || (empty_takes().await? > before).then_some(())).await;

    // Rails cannot publish to a full Redis: the message is there before it is full, and applied only after that.
    installation.command("ACL SETUSER", &[POD_USER, "-fcall"]).await;
    let entry = installation.job(2, json!({})).await;
    installation
        .until("the message is read", async || {
            let args = [installation.config.inbox_stream.as_str(), installation.config.inbox_group.as_str()];
            let pending = installation.redis.command("XPENDING", args.map(Arg::from)).await.expect("a reply");
            (pending.into_array().expect("a summary")[0].as_u64().ok()? == 1).then_some(())
        })
        .await;
    installation
        .until("the call is denied", async || {
            let denied = installation.command("ACL LOG", &[]).await.into_array().ok()?;
            (!denied.is_empty()).then_some(())
        })
        .await;
    installation.command("CONFIG SET", &["maxmemory", "1"]).await;
    installation.command("ACL SETUSER", &[POD_USER, "+fcall"]).await;
    assert!(installation.in_inbox(&entry).await, "it is refused");
    drop(first);
    let again = tokio::time::timeout(std::time::Duration::from_secs(5), second.assign()).await;
    assert_eq!(again.expect("in time").lease.expect("a lease").job_id, 1, "what is queued drains");
    installation.command("CONFIG SET", &["maxmemory", "0"]).await;
    second.say(raw::slots(1, 1)).await;
    assert_eq!(second.assign().await.lease.expect("a lease").job_id, 2);
    pod.stop().await;
}
