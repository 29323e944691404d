//! `explain` names what holds a job up, in each of the situations below: real Redis, a real pod, real sessions.

mod situations;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::support::pods::{Installation, TestPod};
use crate::support::raw::{self, Raw};
use futures::StreamExt;
use job_router::explain::facts::{Look, Roster, Seen};
use job_router::explain::{Explanation, Reason, RunnerReason, explain};
use job_router::job::{JobId, PendingJob, Priority, RunnerId, Tenant};
use job_router::proto;
use job_router::redis::{Arg, Change, Explainer, ExplainerKeys, Keys, Partition, Presence};
use job_router::runner::Scope;
use job_router::tags::TagSet;
use serde_json::{Value, json};
use situations::Step::{
    self, Assign, Cancel, Decline, Finish, Ghost, Job, Off, On, OnWith, Pause, Project, Run, Runner,
};
use situations::{Situation, situations};

/// A stage for one situation.
struct Stage {
    installation: Installation,
    pod: TestPod,
    sessions: BTreeMap<u64, Raw>,
    leases: BTreeMap<u64, (u64, proto::Lease)>,
}

fn explainer(installation: &Installation) -> Explainer {
    let config = &installation.config;
    let keys = Keys::new(&config.key_prefix, config.redis_partitions);
    let keys = ExplainerKeys {
        keys,
        inbox_stream: config.inbox_stream.clone(),
        lease: config.lease,
        affinity_wait: config.affinity_wait,
    };
    Explainer::new(&installation.redis, keys)
}

impl Stage {
    async fn new() -> Self {
        let mut installation = Installation::new().await;
        // As long as a test may take.
        installation.config.accept_timeout = Duration::from_secs(50);
        installation.config.decline_backoff = Duration::from_secs(60);
        installation.config.affinity_wait = Duration::from_secs(50);
        let pod = installation.pod("a").await;
        Self { installation, pod, sessions: BTreeMap::new(), leases: BTreeMap::new() }
    }

    fn raw(&mut self, runner: u64) -> &mut Raw {
        self.sessions.get_mut(&runner).expect("it is connected")
    }

    async fn publish(&self, kind: &str, data: Value) {
        self.installation.publish(kind, data).await;
        self.installation.until_inbox_empty().await;
    }

    async fn job(&self, id: u64, mut data: Value) {
        // Unless it is told to, it likes nobody who ran another.
        let affinity = data.get("affinity").cloned().unwrap_or_else(|| json!(format!("job:{id}")));
        data["affinity"] = affinity;
        self.installation.job(id, data).await;
        self.installation.until_inbox_empty().await;
    }

    async fn assign(&mut self, runner: u64, job: u64) -> proto::Assign {
        self.job(job, json!({})).await;
        let assign = self.raw(runner).assign().await;
        assert_eq!(assign.lease.as_ref().map(|lease| lease.job_id), Some(job));
        assign
    }

    async fn act(&mut self, step: Step) {
        match step {
            Runner(id, record) => self.installation.register(id, record).await,
            On(id, slots) => self.connect(id, slots, &[]).await,
            OnWith(id, slots, features) => self.connect(id, slots, features).await,
            Off(id) => drop(self.sessions.remove(&id)),
            Ghost(id) => {
                let keys = Keys::new(&self.installation.config.key_prefix, 1);
                let ghost = crate::support::name("ghost");
                let partition = Partition::new(self.installation.redis.clone(), &keys.partition(0));
                partition
                    .heartbeat(&ghost, "0", Duration::from_secs(60), &crate::support::empty())
                    .await
                    .expect("beats");
                let seen = Some(Seen { features: TagSet::default(), free: 1, backing_off: false });
                let change = Change { runner_id: RunnerId(id), system_id: ghost.clone(), seen, info: "{}".into() };
                let presence = Presence::new(self.installation.redis.clone(), &keys.runners());
                presence.begin(&ghost).await.expect("begins");
                presence.tell(&ghost, &[change]).await.expect("tells");
            }
            Job(id, data) => self.job(id, data).await,
            Assign(runner, job) => drop(self.assign(runner, job).await),
            Decline(runner, job) => {
                let assign = self.assign(runner, job).await;
                let lease = assign.lease.expect("a lease");
                self.raw(runner).say(raw::declined(&lease)).await;
                self.installation.until_events("job.requeued", 1).await;
                self.raw(runner).say(raw::slots(1, 1)).await;
            }
            Run(runner, job) => {
                let assign = self.assign(runner, job).await;
                let lease = self.raw(runner).accept(&assign).await;
                self.leases.insert(job, (runner, lease));
            }
            Finish(job) => {
                let (runner, lease) = self.leases[&job].clone();
                self.raw(runner).say(raw::finished(&lease)).await;
                self.installation.until_events("job.finished", 1).await;
            }
            Cancel(job) => {
                self.publish("job.canceled", json!({"id": job, "tenant": "ns:1", "reason": "enough"})).await;
            }
            Project(kind, data) => self.publish(kind, data).await,
            Pause(field, pause) => {
                let key = format!("{{{}:0}}:paused", self.installation.config.key_prefix);
                let args = [key, field.to_owned(), pause.to_string()].map(Arg::from);
                self.installation.redis.command("HSET", args).await.expect("a reply");
            }
        }
    }

    async fn connect(&mut self, id: u64, slots: u32, features: &[&str]) {
        let mut hello = raw::hello(&format!("s_{id}"), slots);
        hello.features = features.iter().map(|name| (*name).to_owned()).collect();
        let (session, _) = Raw::open(&self.pod.url, id, hello).await;
        self.sessions.insert(id, session);
    }

    /// The explanation of job 1, once it gives this reason and names these things: what pods say of their runners is up to a
    /// second old.
    async fn explained(&self, (name, _, reason, words): &Situation) -> Explanation {
        let explainer = explainer(&self.installation);
        let last = std::sync::Mutex::new(String::new());
        let look = async || {
            let told = explainer.explain(JobId(1), None).await.expect("explains");
            *last.lock().expect("no panic") = told.to_text();
            let names = words.iter().all(|word| told.why.summary.contains(word));
            (told.why.reason == *reason && names).then_some(told)
        };
        let look = self.installation.until(name, look);
        match tokio::time::timeout(Duration::from_secs(10), look).await {
            Ok(told) => told,
            Err(_) => panic!("{name}: not {reason:?} with {words:?}, but\n{}", last.lock().expect("no panic")),
        }
    }
}

#[tokio::test]
async fn a_look_at_a_job_behind_a_long_backlog_stays_small_and_says_at_least() {
    let (installation, _server) = Installation::alone().await;
    let partition = Partition::new(installation.redis.clone(), "{look:0}:");
    let pod = crate::support::name("pod");
    partition.heartbeat(&pod, "0", Duration::from_secs(60), &crate::support::empty()).await.expect("beats");
    for scope in [Scope::Instance, Scope::Group(1), Scope::Project(1)] {
        assert!(!partition.scope(scope, false).await.expect("opens"));
        partition.index(&pod, None).await.expect("indexes");
        assert!(partition.scope(scope, true).await.expect("opens"));
    }
    // 300 in its bucket, and 100 buckets of other projects that go first.
    let mut jobs: Vec<PendingJob> = (1..=300).map(crate::support::job).collect();
    for project in 101..=200 {
        let mut job = crate::support::of_tenant(crate::support::job(project + 1_000), 1, project);
        job.priority = Priority::new(2).expect("a priority");
        jobs.push(job);
    }
    jobs.push(crate::support::job(999));
    for (n, page) in jobs.chunks(64).enumerate() {
        let entries: Vec<_> =
            page.iter().map(|job| (format!("{}-{}", 1_780_000_000_000 + n, job.id), job.clone())).collect();
        partition.fan_out(&pod, &entries, Duration::ZERO, &[]).await.expect("fans out");
    }
    let calls = async || {
        let stats = installation.command("INFO", &["commandstats"]).await;
        let lines = stats.as_str().expect("text").lines().filter_map(|line| line.split_once(":calls="));
        lines.map(|(_, rest)| rest.split(',').next().expect("a number").parse::<u64>().expect("a number")).sum::<u64>()
    };
    partition.explain(JobId(999)).await.expect("looks"); // so that the script is known
    let before = calls().await;
    let (_, look) = partition.explain(JobId(999)).await.expect("looks");
    let made = calls().await - before;
    assert!(made <= 300, "{made} calls");
    let Some(Look::Live(job)) = look else { panic!("it is queued: {look:?}") };
    assert_eq!((job.ahead.count, job.ahead.at_least), (256, true));
    let instance = job.lanes.iter().find(|lane| lane.lane.scope == Scope::Instance).expect("its lane");
    assert_eq!((instance.tenants_ahead, instance.tenants, instance.buckets_ahead), (Some(0), 1, Some(100)));
    assert!(instance.ahead.at_least && instance.ahead.count <= 64, "{instance:?}");
    let told = explain(&Look::Live(job), &Roster::default(), &[], 60_000);
    assert!(told.place.expect("a place").jobs_ahead.at_least);
}

#[test]
fn every_code_is_in_the_document_and_in_a_situation_or_a_test() {
    let document = include_str!("../../docs/explain.md");
    for code in
        Reason::ALL.iter().map(|reason| reason.as_str()).chain(RunnerReason::ALL.iter().map(|reason| reason.as_str()))
    {
        assert!(document.contains(&format!("`{code}`")), "docs/explain.md does not say what `{code}` is");
    }
    let staged: BTreeSet<Reason> = situations().into_iter().map(|(_, _, reason, _)| reason).collect();
    let all: BTreeSet<Reason> = Reason::ALL.iter().copied().collect();
    assert_eq!(staged, all, "each reason has its situation");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_estimate_comes_from_what_was_started_lately_and_only_then() {
    for started in [4, 6] {
        let mut stage = Stage::new().await;
        let runs = (2..2 + u64::from(started)).map(|job| Run(7, job));
        let steps = [Runner(7, json!({})), On(7, started)].into_iter().chain(runs).chain([Job(1, json!({}))]);
        for step in steps {
            stage.act(step).await;
        }
        let told = stage.explained(&("six jobs started", vec![], Reason::NoSlot, &["runner 7, is busy"])).await;
        assert_eq!(told.estimate.as_ref().map(|guess| guess.starts), (started > 4).then_some(6), "{told:?}");
        assert_eq!(told.to_text().contains("a guess, from 6 jobs"), started > 4);
        stage.pod.stop().await;
    }
}

/// What pods say of their runners goes with the session and with the pod, and is told again where Redis has lost it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_pod_says_of_its_runners_goes_with_them_and_comes_back_after_a_loss() {
    let mut stage = Stage::new().await;
    for step in [Runner(7, json!({})), OnWith(7, 3, &["shared"]), Runner(8, json!({})), On(8, 1)] {
        stage.act(step).await;
    }
    let key = format!("{{{}:runners}}:fleet:a", stage.installation.config.key_prefix);
    let fleet = async |stage: &Stage, what: &str, wanted: &[(&str, Value)]| {
        let wanted: BTreeMap<String, Value> =
            wanted.iter().map(|(id, seen)| ((*id).to_owned(), seen.clone())).collect();
        let look = async || {
            let flat = stage.installation.redis.command("HGETALL", [Arg::from(&key)]).await.ok()?.into_array().ok()?;
            let text = |reply: &job_router::redis::Reply| reply.as_str().expect("text").to_owned();
            let flat: Vec<_> = flat
                .chunks_exact(2)
                .filter(|pair| pair[0].as_str().is_ok_and(|name| name != "v"))
                .flatten()
                .cloned()
                .collect();
            let pairs =
                flat.chunks_exact(2).map(|pair| (text(&pair[0]), serde_json::from_str(&text(&pair[1])).expect("JSON")));
            (pairs.collect::<BTreeMap<String, Value>>() == wanted).then_some(())
        };
        stage.installation.until(what, look).await;
    };
    let (seven, eight) = (("7:s_7", json!({"features": ["shared"], "free": 3})), ("8:s_8", json!({"free": 1})));
    fleet(&stage, "both are there", &[seven.clone(), eight]).await;
    stage.act(Off(8)).await;
    fleet(&stage, "the one that left is not", std::slice::from_ref(&seven)).await;
    stage.installation.redis.command("DEL", [Arg::from(&key)]).await.expect("a reply");
    fleet(&stage, "it is told again", std::slice::from_ref(&seven)).await;
    let Stage { installation, pod, sessions, .. } = stage;
    pod.stop().await;
    drop(sessions);
    let left = installation.redis.command("EXISTS", [Arg::from(&key)]).await.expect("a reply");
    assert_eq!(left.as_u64().expect("a count"), 0, "a pod that leaves takes its word along");
}

#[tokio::test]
async fn a_change_told_after_a_loss_does_not_pass_for_all_that_was_told() {
    let world = crate::support::World::new().await;
    let presence = Presence::new(world.redis.clone(), &world.prefix);
    let pod = crate::support::name("pod");
    let change = |id| Change {
        runner_id: RunnerId(id),
        system_id: crate::support::name("s"),
        seen: Some(Seen { features: TagSet::default(), free: 1, backing_off: false }),
        info: "{}".into(),
    };
    presence.begin(&pod).await.expect("begins");
    presence.tell(&pod, &[change(1)]).await.expect("tells");
    assert!(presence.keep(&pod).await.expect("keeps"));
    presence.forget(&pod).await.expect("is lost");
    presence.tell(&pod, &[change(2)]).await.expect("tells");
    assert!(!presence.keep(&pod).await.expect("answers"), "what was told before is lost");
    let (managers, silent) = presence.of(std::slice::from_ref(&pod)).await.expect("reads");
    assert_eq!((managers.len(), silent), (0, vec![pod.clone()]), "half a word is none");
    presence.forget(&pod).await.expect("cleans up");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reason_a_job_waits_for_is_named_in_every_situation() {
    let situations = situations();
    let count = situations.len();
    let run = async |mut situation: Situation| {
        let mut stage = Stage::new().await;
        for step in std::mem::take(&mut situation.1) {
            stage.act(step).await;
        }
        let told = stage.explained(&situation).await;
        let (name, _, reason, _) = situation;
        let text = told.to_text();
        println!("--- {name}\n{text}");
        let first = text.lines().next().expect("a line");
        assert!(first.contains(&told.why.summary), "{name}: the answer is the first line: {first}");
        let json: Value = serde_json::from_str(&told.to_json()).expect("JSON");
        assert_eq!(json["reason"], reason.as_str(), "{name}");
        // With the tenant one partition is looked at, and the answer is the same.
        let with_tenant = explainer(&stage.installation).explain(JobId(1), Some(&Tenant::of_namespace(1))).await;
        assert_eq!(with_tenant.expect("explains").why.reason, reason, "{name}");
        stage.pod.stop().await;
    };
    futures::stream::iter(situations).for_each_concurrent(6, run).await;
    assert!(count >= 30, "{count}");
}
