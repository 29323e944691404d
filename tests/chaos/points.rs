//! A pod dies between what Redis has done and who is told of it: at each named point of its stages. Another pod and the runner's
//! new connection put all right.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use job_router::client::{Executor, JobContext, Outcome};
use serde_json::json;

use crate::support::net::Balancer;
use crate::support::pods::{Installation, LIMIT};
use crate::support::processes::PodProcess;
use crate::support::raw::{Raw, hello};
use crate::support::redis_url;

/// All of them.
pub const POINTS: [&str; 11] = [
    "admit: before Welcome",
    "fan_out: before Assign",
    "fan_out: before XACK",
    "take: before Assign",
    "start: before Start",
    "running: before BeatAck",
    "cancel: before its entry is done with",
    "mail: before Cancel",
    "finish: before FinishedAck",
    "give_back: before Revoked",
    "expire: before its wakes",
];

/// The variable with which a pod dies at a point, when it has passed it so often.
pub fn dies_at(point: &str, passes: usize) -> (String, String) {
    ("FAILPOINTS".to_owned(), format!("{point}={passes}*off->return"))
}

/// Runs jobs for a second each, two beats; the one that is canceled until it is.
#[derive(Clone, Default)]
struct Slowly {
    ran: Arc<Mutex<Vec<u64>>>,
}

const CANCELED: u64 = 2;
const JOBS: u64 = 5;

impl Executor for Slowly {
    async fn run(&self, job: JobContext) -> Outcome {
        let id = job.assignment.lease.job_id.0;
        self.ran.lock().expect("no panic").push(id);
        let runs = if id == CANCELED { LIMIT } else { Duration::from_secs(1) };
        tokio::select! {
            () = tokio::time::sleep(runs) => Outcome::success(),
            () = job.cancel.cancelled() => Outcome::canceled(),
            () = job.kill.cancelled() => Outcome::canceled(),
        }
    }
}

fn start(installation: &Installation, name: &str, environment: Vec<(String, String)>) -> PodProcess {
    let config = &installation.config;
    let flags = [
        format!("--redis-url={}", redis_url()),
        format!("--key-prefix={}", config.key_prefix),
        format!("--inbox-stream={}", config.inbox_stream),
        format!("--pod-id={name}"),
        "--lease=5s".to_owned(),
        "--lease-margin=1s".to_owned(),
        "--beat-interval=500ms".to_owned(),
        "--accept-timeout=500ms".to_owned(),
        "--pod-heartbeat=200ms".to_owned(),
        "--pod-dead-after=1s".to_owned(),
    ];
    PodProcess::start_with(&flags, "pod ready", environment)
}

async fn until_dead(pod: &mut PodProcess, point: &str) {
    let limit = Instant::now() + LIMIT;
    while !pod.is_dead() {
        assert!(Instant::now() < limit, "it dies at `{point}`");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until no key of a job, a lease or a queue is left.
async fn until_nothing_is_left(installation: &Installation) {
    let prefix = format!("{{{}:0}}:", installation.config.key_prefix);
    let of_jobs = ["job:", "order:", "bucket:", "running:", "deadlines", "returned", "pod:"];
    installation
        .until("nothing is left", async || {
            let keys = installation.redis.command_at(&prefix, "KEYS", [format!("{prefix}*").into()]).await.ok()?;
            let keys = keys.into_array().ok()?;
            let mut names = keys.iter().filter_map(|key| key.as_str().ok()?.strip_prefix(&*prefix));
            names.all(|name| !of_jobs.iter().any(|of| name.starts_with(of))).then_some(())
        })
        .await;
    installation.until_inbox_empty().await;
}

async fn cancel_when_it_runs(installation: &Installation, slowly: &Slowly) {
    let runs = async || slowly.ran.lock().expect("no panic").contains(&CANCELED).then_some(());
    installation.until("the second job runs", runs).await;
    installation.publish("job.canceled", json!({"id": CANCELED, "tenant": "ns:1", "reason": "user"})).await;
}

/// Whoever is assigned was queued before all others that wait, also where it has come back.
async fn assert_places_kept(installation: &Installation) {
    let (mut places, mut waiting) = (Vec::new(), BTreeSet::new());
    for event in installation.events().await {
        let Some(id) = event.id else { continue };
        let place = places.iter().position(|known| *known == id).unwrap_or(places.len());
        match event.event_type.to_string().as_str() {
            "job.queued" => {
                places.push(id);
                waiting.insert(place);
            }
            "job.requeued" => drop(waiting.insert(place)),
            "job.assigned" => assert_eq!(waiting.pop_first(), Some(place), "of {places:?}"),
            _ => drop(waiting.remove(&place)),
        }
    }
}

/// A runner with one slot runs five jobs, of which the second is canceled. Its pod dies on the way; then there is another.
async fn all_is_well_after_a_death_at(point: &str) {
    let installation = Installation::new().await;
    let mut a = start(&installation, "a", vec![dies_at(point, 0)]);
    let balancer = Balancer::new(&[&a.url()]).await;
    installation.register(1, json!({})).await;
    let slowly = Slowly::default();
    let runner = installation.runner(&balancer.url, 1, "s_1", 1, slowly.clone());
    for id in 1..JOBS {
        installation.job(id, json!({})).await;
    }
    let works = async {
        cancel_when_it_runs(&installation, &slowly).await;
        installation.until_events("job.finished", JOBS as usize - 2).await;
        // One that comes alone while a runner waits for it is handed over; those before were taken.
        let waiting = format!("{{{}:0}}:waiting:*", installation.config.key_prefix);
        installation
            .until("a pod waits", async || {
                let keys = installation.redis.command_at(&waiting, "KEYS", [(&waiting).into()]).await.ok()?;
                (!keys.into_array().ok()?.is_empty()).then_some(())
            })
            .await;
        installation.job(JOBS, json!({})).await;
    };
    let dies = async {
        until_dead(&mut a, point).await;
        let b = start(&installation, "b", Vec::new());
        balancer.point_to(&[&b.url()]);
        b
    };
    let (b, ()) = tokio::join!(dies, works);
    installation.until_events("job.finished", JOBS as usize - 1).await;
    installation.until_events("job.canceled", 1).await;
    until_nothing_is_left(&installation).await;
    let mut ran = slowly.ran.lock().expect("no panic").clone();
    ran.sort_unstable();
    assert_eq!(ran, (1..=JOBS).collect::<Vec<_>>(), "each once");
    assert_places_kept(&installation).await;
    for id in 1..=JOBS {
        let story = installation.story_of(id).await;
        let ends = story.iter().filter(|kind| ["finished", "failed", "canceled"].contains(&&***kind)).count();
        let starts = story.iter().filter(|kind| *kind == "running").count();
        assert_eq!((starts, ends), (1, 1), "job {id}: {story:?}");
    }
    runner.stop().await;
    b.signal(rustix::process::Signal::TERM);
    b.drained();
}

/// Runners that leave: one before it has accepted its job, one while it runs. Their pod dies as it puts that right.
async fn all_is_well_after_a_death_of_who_puts_right_at(point: &str) {
    let installation = Installation::new().await;
    let mut a = start(&installation, "a", vec![dies_at(point, 0)]);
    installation.register(1, json!({})).await;
    let (mut leaves, _) = Raw::open(&a.url(), 1, hello("s_1", 2)).await;
    installation.job(1, json!({"max_attempts": 2})).await;
    let assign = leaves.assign().await;
    leaves.accept(&assign).await;
    installation.job(2, json!({})).await;
    leaves.assign().await;
    drop(leaves);
    until_dead(&mut a, point).await;
    let b = start(&installation, "b", Vec::new());
    let slowly = Slowly::default();
    let runner = installation.runner(&b.url(), 1, "s_2", 1, slowly.clone());
    cancel_when_it_runs(&installation, &slowly).await;
    installation.until_events("job.canceled", 1).await;
    installation.until_events("job.finished", 1).await;
    until_nothing_is_left(&installation).await;
    let first = ["queued", "assigned", "running", "requeued", "assigned", "running", "finished"];
    assert_eq!(installation.story_of(1).await, first);
    let second = ["queued", "assigned", "requeued", "assigned", "running", "canceled"];
    assert_eq!(installation.story_of(2).await, second);
    assert_places_kept(&installation).await;
    runner.stop().await;
    b.signal(rustix::process::Signal::TERM);
    b.drained();
}

macro_rules! deaths {
    ($($test:ident: $story:ident($point:literal);)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            $story($point).await;
        })*

        #[test]
        fn each_point_has_its_test() {
            assert_eq!([$($point),*], POINTS);
        }
    };
}

deaths! {
    a_pod_dies_before_it_welcomes_a_runner: all_is_well_after_a_death_at("admit: before Welcome");
    a_pod_dies_before_it_pushes_what_was_handed_over: all_is_well_after_a_death_at("fan_out: before Assign");
    a_pod_dies_before_it_acknowledges_what_it_applied: all_is_well_after_a_death_at("fan_out: before XACK");
    a_pod_dies_before_it_pushes_what_it_took: all_is_well_after_a_death_at("take: before Assign");
    a_pod_dies_before_it_says_start: all_is_well_after_a_death_at("start: before Start");
    a_pod_dies_before_it_answers_a_beat: all_is_well_after_a_death_at("running: before BeatAck");
    a_pod_dies_before_a_cancel_is_done_with: all_is_well_after_a_death_at("cancel: before its entry is done with");
    a_pod_dies_before_it_tells_a_runner_to_stop: all_is_well_after_a_death_at("mail: before Cancel");
    a_pod_dies_before_it_acknowledges_an_end: all_is_well_after_a_death_at("finish: before FinishedAck");
    a_pod_dies_before_it_tells_what_it_gave_back:
        all_is_well_after_a_death_of_who_puts_right_at("give_back: before Revoked");
    a_pod_dies_before_it_wakes_for_what_expired: all_is_well_after_a_death_of_who_puts_right_at("expire: before its wakes");
}
