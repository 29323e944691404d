//! What users see when something goes wrong: pods, runners and connections that fail, in one process.

use std::time::{Duration, Instant};

use crate::support::net::Balancer;
use crate::support::pods::{Installation, Noting};
use crate::support::raw::{self, Raw};
use job_router::job::LeaseId;
use job_router::proto::router_message::Kind as Down;
use job_router::proto::{self, Welcome};
use job_router::redis::Reply;
use serde_json::json;

fn resuming(system_id: &str, leases: &[&proto::Lease]) -> proto::Hello {
    proto::Hello { running: leases.iter().map(|lease| (*lease).clone()).collect(), ..raw::hello(system_id, 0) }
}

fn resumed(welcome: &Welcome) -> Vec<proto::Lease> {
    welcome.resumed.iter().filter_map(|resumed| resumed.lease.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declined_job_keeps_its_place_and_goes_to_another_runner_at_once() {
    let installation = Installation::new().await;
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    installation.register(1, json!({})).await;
    let (mut first, _) = Raw::open(&a.url, 1, raw::hello("s_1", 1)).await;
    // Two pods read the inbox: what comes together may be queued in any order.
    installation.job(1, json!({})).await;
    let assign = first.assign().await;
    for id in 2..=3 {
        installation.job(id, json!({})).await;
        installation.until_events("job.queued", id as usize).await;
    }
    let (mut second, _) = Raw::open(&b.url, 1, raw::hello("s_2", 0)).await;
    first.say(raw::declined(assign.lease.as_ref().expect("a lease"))).await;
    installation.until_events("job.requeued", 1).await;
    let since = Instant::now();
    second.say(raw::slots(2, 0)).await;
    assert_eq!(second.assign().await.lease.expect("a lease").job_id, 1, "it keeps its place");
    assert_eq!(second.assign().await.lease.expect("a lease").job_id, 2);
    assert!(since.elapsed() < Duration::from_secs(1));
    a.stop().await;
    b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_never_answers_loses_the_job_after_the_time_to_accept() {
    let mut installation = Installation::new().await;
    installation.config.accept_timeout = Duration::from_millis(300);
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let (mut silent, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 1)).await;
    installation.job(1, json!({})).await;
    let assign = silent.assign().await;
    let (mut other, _) = Raw::open(&pod.url, 1, raw::hello("s_2", 1)).await;
    let again = other.assign().await;
    assert_eq!((again.lease.as_ref().map(|lease| lease.job_id), again.attempt), (Some(1), 2));
    silent.until(|kind| matches!(&kind, Down::Revoked(revoked) if revoked.lease == assign.lease).then_some(())).await;
    // Too late, and told so by silence: the other one runs it.
    silent.say(raw::accepted(assign.lease.as_ref().expect("a lease"))).await;
    other.accept(&again).await;
    assert!(!silent.so_far(1).await.iter().any(|kind| matches!(kind, Down::Start(_))));
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_assigned_to_a_runner_that_is_cut_is_with_another_within_a_second() {
    let installation = Installation::new().await;
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    let balancer = Balancer::new(&[&a.url]).await;
    installation.register(1, json!({})).await;
    let (mut cut, _) = Raw::open(&balancer.url, 1, raw::hello("s_1", 1)).await;
    installation.job(1, json!({})).await;
    cut.assign().await;
    let (mut other, _) = Raw::open(&b.url, 1, raw::hello("s_2", 1)).await;
    let since = Instant::now();
    balancer.cut();
    assert_eq!(other.assign().await.lease.expect("a lease").job_id, 1);
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    a.stop().await;
    b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_whose_runner_stays_away_fails_or_goes_to_another_by_its_max_attempts() {
    let mut installation = Installation::new().await;
    installation.config.lease = Duration::from_secs(2);
    installation.config.beat_interval = Duration::from_millis(500);
    let pod = installation.pod("a").await;
    let balancer = Balancer::new(&[&pod.url]).await;
    installation.register(1, json!({})).await;
    let (mut lost, _) = Raw::open(&balancer.url, 1, raw::hello("s_1", 2)).await;
    installation.job(1, json!({"max_attempts": 1})).await;
    installation.job(2, json!({"max_attempts": 2})).await;
    for _ in 0..2 {
        let assign = lost.assign().await;
        lost.accept(&assign).await;
    }
    let (mut other, _) = Raw::open(&pod.url, 1, raw::hello("s_2", 2)).await;
    balancer.cut();
    let again = other.assign().await;
    assert_eq!((again.lease.expect("a lease").job_id, again.attempt), (2, 2));
    installation.until_events("job.failed", 1).await;
    assert_eq!(installation.story_of(1).await, ["queued", "assigned", "running", "failed"]);
    assert_eq!(installation.story_of(2).await, ["queued", "assigned", "running", "requeued", "assigned"]);
    let events = installation.events().await;
    let failed = events.iter().find(|event| event.event_type.to_string() == "job.failed").expect("counted");
    assert_eq!(failed.text("failure_reason"), Some("runner_lost"));
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_is_resumed_on_the_same_pod_and_on_another() {
    let installation = Installation::new().await;
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    installation.register(1, json!({})).await;
    let (mut runner, _) = Raw::open(&a.url, 1, raw::hello("s_1", 1)).await;
    installation.job(1, json!({})).await;
    let assign = runner.assign().await;
    let lease = runner.accept(&assign).await;
    for url in [&a.url, &b.url, &b.url, &a.url] {
        drop(runner);
        let (again, welcome) = Raw::open(url, 1, resuming("s_1", &[&lease])).await;
        assert_eq!(resumed(&welcome), std::slice::from_ref(&lease));
        runner = again;
    }
    // What it is told finds it where it is now.
    installation.publish("job.canceled", json!({"id": 1, "tenant": "ns:1"})).await;
    runner.until(|kind| matches!(kind, Down::Cancel(_)).then_some(())).await;
    // Its acknowledgement is lost: it reports again, here and there, and is recorded once.
    runner.say(raw::finished(&lease)).await;
    installation.until_events("job.canceled", 1).await;
    for url in [&a.url, &b.url] {
        let (mut again, welcome) = Raw::open(url, 1, resuming("s_1", &[&lease])).await;
        assert!(resumed(&welcome).is_empty(), "it has ended");
        again.say(raw::finished(&lease)).await;
        let ack = again.until(|kind| if let Down::FinishedAck(ack) = kind { Some(ack.clone()) } else { None }).await;
        assert!(ack.recorded);
    }
    assert_eq!(installation.story_of(1).await, ["queued", "assigned", "running", "canceled"]);
    a.stop().await;
    b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_runner_whose_connections_are_cut_all_the_time_ends_every_job_once() {
    let installation = Installation::new().await;
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    let balancer = Balancer::new(&[&a.url, &b.url]).await;
    installation.register(1, json!({})).await;
    let noting = Noting { duration: Duration::from_millis(50), ..Noting::default() };
    let runner = installation.runner(&balancer.url, 1, "s_1", 10, noting.clone());
    for id in 1..=300 {
        installation.job(id, json!({})).await;
    }
    installation
        .until("all end", async || {
            let finished = installation.counts().await.get("job.finished").copied().unwrap_or(0);
            if finished < 250 && rand::random_ratio(1, 30) {
                balancer.cut();
            }
            (finished == 300).then_some(())
        })
        .await;
    let mut ran = noting.ran.lock().expect("no panic").clone();
    ran.sort_unstable();
    assert_eq!(ran, (1..=300).collect::<Vec<_>>(), "each ran once");
    assert!(!installation.counts().await.contains_key("job.failed"));
    runner.stop().await;
    a.stop().await;
    b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_drains_and_another_comes_and_no_job_is_late_or_lost() {
    let mut installation = Installation::new().await;
    installation.config.drain_timeout = Duration::from_secs(15);
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    let balancer = Balancer::new(&[&a.url, &b.url]).await;
    installation.register(1, json!({})).await;
    let runners: Vec<_> = (1..=4)
        .map(|n| {
            let noting = Noting { duration: Duration::from_millis(5), ..Noting::default() };
            (installation.runner(&balancer.url, 1, &format!("s_{n}"), 5, noting.clone()), noting)
        })
        .collect();
    for id in 1..=1_000 {
        installation.job(id, json!({})).await;
    }
    installation.until_events("job.finished", 200).await;
    let c = installation.pod("c").await;
    balancer.point_to(&[&b.url, &c.url]);
    let since = Instant::now();
    a.stop().await;
    assert!(since.elapsed() < Duration::from_secs(3), "drained in {:?}", since.elapsed());
    for id in 1_001..=2_000 {
        installation.job(id, json!({})).await;
    }
    installation.until_events("job.finished", 2_000).await;
    let mut ran: Vec<u64> =
        runners.iter().flat_map(|(_, noting)| noting.ran.lock().expect("no panic").clone()).collect();
    ran.sort_unstable();
    assert_eq!(ran, (1..=2_000).collect::<Vec<_>>(), "each ran once");
    let counts = installation.counts().await;
    assert!(!counts.contains_key("job.failed"), "{counts:?}");
    assert!(counts["job.assigned"] < 2_200, "{counts:?}");
    for (runner, _) in runners {
        runner.stop().await;
    }
    b.stop().await;
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_pods_share_is_pushed_wherever_a_slot_is_free() {
    let installation = Installation::new().await;
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    installation.register(1, json!({})).await;
    let (mut one, _) = Raw::open(&a.url, 1, raw::hello("s_1", 1)).await;
    let (mut two, _) = Raw::open(&b.url, 1, raw::hello("s_2", 1)).await;
    let mut seen = (0, 0);
    for id in 1..=200 {
        installation.job(id, json!({})).await;
        let since = Instant::now();
        // Whoever has it gets the next one too late: each alone must be found again and again.
        tokio::select! {
            assign = one.assign() => {
                seen.0 += 1;
                let lease = one.accept(&assign).await;
                one.say(raw::finished(&lease)).await;
                one.say(raw::slots(1, seen.0)).await;
            }
            assign = two.assign() => {
                seen.1 += 1;
                let lease = two.accept(&assign).await;
                two.say(raw::finished(&lease)).await;
                two.say(raw::slots(1, seen.1)).await;
            }
        }
        assert!(since.elapsed() < Duration::from_millis(500), "job {id}: {:?}", since.elapsed());
    }
    assert_eq!(seen.0 + seen.1, 200);
    a.stop().await;
    b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_to_a_runner_of_lower_priority_on_another_pod_only_while_the_higher_ones_are_full() {
    const SLOTS: u32 = 5;
    let installation = Installation::new().await;
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    installation.register(1, json!({"priority": 1})).await;
    installation.register(2, json!({"priority": 0})).await;
    let (mut high, _) = Raw::open(&a.url, 1, raw::hello("s_1", SLOTS)).await;
    let (mut low, _) = Raw::open(&b.url, 2, raw::hello("s_2", SLOTS)).await;
    let prefix = format!("{{{}:0}}:", installation.config.key_prefix);
    let ranks = async || {
        let lanes = installation.command("HKEYS", &[&format!("{prefix}lanes")]).await.into_array().ok()?;
        let instance = lanes.iter().filter_map(|lane| lane.as_str().ok()).find(|lane| lane.starts_with("instance:"))?;
        let waiting = format!("{prefix}waiting:{instance}");
        let scores = installation.command("ZMSCORE", &[&waiting, "a", "b"]).await.into_array().ok()?;
        let rank = |score: &Reply| Some(score.as_str().ok()?.parse::<f64>().ok()?.floor());
        Some(scores.iter().map(rank).collect::<Vec<Option<f64>>>())
    };
    let waits = [Some(-1.0), Some(0.0)];
    // The lane is new with the first job, which goes to whoever asks first.
    installation.job(1, json!({})).await;
    let (runner, assign) =
        tokio::select! { one = high.assign() => (&mut high, one), one = low.assign() => (&mut low, one) };
    let lease = runner.accept(&assign).await;
    runner.say(raw::finished(&lease)).await;
    runner.say(raw::slots(SLOTS, u64::MAX)).await;
    installation.until("both wait", async || (ranks().await? == waits).then_some(())).await;
    for round in 0..100 {
        // So many that one is left when all slots are full; so a pod that waits again has counted its slots anew.
        let first_id = 2 + round * (2 * u64::from(SLOTS) + 1);
        let last_id = first_id + 2 * u64::from(SLOTS);
        for id in first_id..=last_id {
            installation.job(id, json!({})).await;
        }
        let mut to_high = Vec::new();
        let mut to_low = Vec::new();
        // Should one too many go to the lower one, the higher one's is waited for in vain.
        while to_high.len() < SLOTS as usize {
            to_high.push(high.assign().await);
        }
        while to_low.len() < SLOTS as usize {
            to_low.push(low.assign().await);
        }
        installation.until("none waits", async || ranks().await?.iter().all(Option::is_none).then_some(())).await;
        let assigned = to_high.iter().chain(&to_low).filter_map(|assign| Some(assign.lease.as_ref()?.job_id));
        let assigned: Vec<u64> = assigned.collect();
        let left = (first_id..=last_id).find(|id| !assigned.contains(id)).expect("one more than slots");
        installation.publish("job.canceled", json!({"id": left, "tenant": "ns:1", "reason": "no slot"})).await;
        installation.until_inbox_empty().await;
        for (runner, assigns) in [(&mut high, to_high), (&mut low, to_low)] {
            for assign in &assigns {
                let lease = runner.accept(assign).await;
                runner.say(raw::finished(&lease)).await;
            }
            runner.say(raw::slots(SLOTS, u64::MAX)).await;
        }
        installation.until("both wait", async || (ranks().await? == waits).then_some(())).await;
    }
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_beat_beside_an_acceptance_does_not_tell_the_runner_that_the_job_is_gone() {
    let installation = Installation::new().await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let one = async |n: u64| {
        let (mut runner, _) = Raw::open(&pod.url, 1, raw::hello(&format!("s_{n}"), 1)).await;
        for round in 1..=100 {
            let lease = runner.assign().await.lease.expect("a lease");
            runner.say(raw::accepted(&lease)).await;
            runner.say(raw::beat(round, std::slice::from_ref(&lease))).await;
            runner.until(|kind| matches!(kind, Down::Start(_)).then_some(())).await;
            let ack = runner.until(|kind| if let Down::BeatAck(ack) = kind { Some(ack.clone()) } else { None }).await;
            assert!(ack.gone.is_empty(), "runner {n}, round {round}");
            runner.say(raw::finished(&lease)).await;
            runner.say(raw::slots(1, round)).await;
        }
    };
    for id in 1..=900 {
        installation.job(id, json!({})).await;
    }
    futures::future::join_all((1..=8).map(one)).await;
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_accepted_on_a_session_that_is_cut_is_resumed_or_goes_to_another_at_once() {
    let installation = Installation::new().await;
    let (a, b) = (installation.pod("a").await, installation.pod("b").await);
    installation.register(1, json!({})).await;
    for id in 1..=100 {
        installation.job(id, json!({})).await;
        let (mut first, _) = Raw::open(&a.url, 1, raw::hello("s_1", 1)).await;
        let lease = first.assign().await.lease.expect("a lease");
        first.say(raw::accepted(&lease)).await;
        // Its connection on the new pod overtakes its acceptance on the old one, or not.
        let (mut again, welcome) = Raw::open(&b.url, 1, resuming("s_1", &[&lease])).await;
        drop(first);
        let lease = match resumed(&welcome).pop() {
            Some(lease) => lease,
            None => {
                again.say(raw::slots(1, 0)).await;
                let assign = again.assign().await;
                again.accept(&assign).await
            }
        };
        assert_eq!(lease.job_id, id);
        again.say(raw::finished(&lease)).await;
        again.until(|kind| matches!(kind, Down::FinishedAck(ack) if ack.recorded).then_some(())).await;
    }
    a.stop().await;
    b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_while_it_is_let_in_is_offered_no_job() {
    let (installation, _redis) = Installation::alone().await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let opened = async || {
        let (_, metrics) = pod.admin("/metrics").await;
        let count = metrics.lines().find_map(|line| line.strip_prefix("job_router_sessions_opened_total "));
        count.expect("it is there").parse::<u64>().expect("a count")
    };
    let before = opened().await;
    // Many earlier jobs to ask for: they leave in the middle of it.
    let leases: Vec<_> =
        (0..9_000).map(|_| proto::Lease { job_id: 1, lease_id: LeaseId::random(0).to_string() }).collect();
    for n in 0..30 {
        let asked = installation.scripts_run().await;
        let hello = proto::Hello { running: leases.clone(), ..raw::hello(&format!("s_{n}"), 10) };
        let leaving = Raw::greet(&pod.url, 1, hello).await;
        let asks = async || (installation.scripts_run().await > asked + 20).then_some(());
        installation.until("its jobs are asked for", asks).await;
        drop(leaving);
        installation.until("it is let in", async || (opened().await > before + n).then_some(())).await;
    }
    let (mut there, _) = Raw::open(&pod.url, 1, raw::hello("s_there", 1)).await;
    for id in 1..=20 {
        installation.job(id, json!({})).await;
        let assign = there.assign().await;
        assert_eq!((assign.lease.as_ref().expect("a lease").job_id, assign.attempt), (id, 1));
        let lease = there.accept(&assign).await;
        there.say(raw::finished(&lease)).await;
        there.say(raw::slots(1, id)).await;
    }
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_of_a_cancel_is_not_doubled_where_it_is_longer_than_a_lease() {
    let mut installation = Installation::new().await;
    installation.config.lease = Duration::from_secs(2);
    installation.config.beat_interval = Duration::from_millis(500);
    installation.config.cancel_grace = Duration::from_secs(6);
    installation.config.sweep_interval = Duration::from_millis(200);
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let (mut deaf, _) = Raw::open(&pod.url, 1, raw::hello("s_1", 1)).await;
    installation.job(1, json!({})).await;
    let assign = deaf.assign().await;
    deaf.accept(&assign).await;
    let since = Instant::now();
    installation.publish("job.canceled", json!({"id": 1, "tenant": "ns:1"})).await;
    installation.until_events("job.canceled", 1).await;
    let took = since.elapsed();
    assert!(took >= Duration::from_millis(5_900) && took < Duration::from_secs(9), "{took:?}");
    pod.end().await;
}
