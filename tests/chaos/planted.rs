//! The checker itself: a history in which all is well, and many with one thing wrong.

use super::check::Verdict;
use super::history::{Micros, Record, Told, What};
use serde_json::json;

const MS: Micros = 1_000;
/// The runner that may run all jobs here. To whom one was pushed is of interest to one test only.
const BOTH: u64 = 3;

fn told(kind: &str, job: u64, lease: &str) -> Told {
    Told {
        id: format!("{job}.{lease}.{kind}"),
        kind: format!("job.{kind}"),
        job,
        lease: lease.to_owned(),
        runner: BOTH,
    }
}

/// Builds a history, in milliseconds.
#[derive(Default)]
struct History(Vec<Record>);

// === impl History ===

impl History {
    fn add(&mut self, at_ms: u64, what: What) -> &mut Self {
        self.0.push(Record { at: at_ms * MS, what });
        self
    }

    fn event(&mut self, at_ms: u64, kind: &str, job: u64, lease: &str) -> &mut Self {
        self.applied(at_ms, kind, job, lease).add(100_000, What::Written(told(kind, job, lease)))
    }

    /// An event that a failover takes back.
    fn applied(&mut self, at_ms: u64, kind: &str, job: u64, lease: &str) -> &mut Self {
        self.add(at_ms, What::Applied(told(kind, job, lease)))
    }

    fn publish(&mut self, at_ms: u64, job: u64, tags: &[&str]) -> &mut Self {
        let data = json!({"tags": tags, "instance_runners": true, "project_id": 1, "namespace_ids": [1]});
        self.add(at_ms, What::Tried { job, data }).add(at_ms, What::Published { job })
    }

    fn run(&mut self, from_ms: u64, to_ms: u64, manager: &str, job: u64, lease: &str) -> &mut Self {
        self.began(from_ms, manager, job, lease).ended(to_ms, manager, job, lease)
    }

    fn began(&mut self, at_ms: u64, manager: &str, job: u64, lease: &str) -> &mut Self {
        self.add(at_ms, What::Began { manager: manager.to_owned(), job, lease: lease.to_owned() })
    }

    fn ended(&mut self, at_ms: u64, manager: &str, job: u64, lease: &str) -> &mut Self {
        self.add(at_ms, What::Ended { manager: manager.to_owned(), job, lease: lease.to_owned() })
    }

    fn killed(&mut self, at_ms: u64, manager: &str) -> &mut Self {
        self.add(at_ms, What::Killed { manager: manager.to_owned() })
    }

    /// All of an untagged job's life.
    fn whole(&mut self, from_ms: u64, to_ms: u64, manager: &str, job: u64, lease: &str) -> &mut Self {
        self.publish(from_ms, job, &[]).event(from_ms, "queued", job, "").event(from_ms, "assigned", job, lease);
        self.event(from_ms, "running", job, lease).run(from_ms, to_ms, manager, job, lease);
        self.event(to_ms, "finished", job, lease)
    }

    fn level(&mut self, at_ms: u64, at_end: bool, memory: u64, descriptors: u64) -> &mut Self {
        self.add(at_ms, What::Level { at_end, memory, descriptors })
    }

    fn primary_lost(&mut self, from_ms: u64, to_ms: u64) -> &mut Self {
        self.add(from_ms, What::PrimaryLost).add(to_ms, What::PrimaryReplaced)
    }

    fn frozen(&mut self, from_ms: u64, to_ms: u64, manager: &str) -> &mut Self {
        self.add(from_ms, What::Frozen { manager: manager.to_owned() });
        self.add(to_ms, What::Thawed { manager: manager.to_owned() })
    }

    fn verdict(&self) -> Verdict {
        Verdict::of(&self.0)
    }

    /// Leaves out what is so.
    fn without(&mut self, is_so: impl Fn(&What) -> bool) -> &mut Self {
        self.0.retain(|record| !is_so(&record.what));
        self
    }
}

/// Job 1 runs on `plain`; job 2, red, is tried on `red`, which dies, and runs on `both`; job 3 is canceled while it runs.
fn sound() -> History {
    let mut history = History::default();
    for (manager, tags) in [("plain", &[][..]), ("red", &["red"]), ("both", &["red", "blue"])] {
        let id = ["plain", "red", "both"].iter().position(|name| *name == manager).expect("one of them") + 1;
        let runner = json!({
            "id": id, "type": "instance", "tags": tags, "run_untagged": true, "protected_only": false, "paused": false,
        });
        history.add(0, What::Manager { manager: manager.to_owned(), runner });
    }
    history.publish(10, 1, &[]).publish(20, 2, &["red"]).publish(30, 3, &[]);
    history.event(11, "queued", 1, "").event(12, "assigned", 1, "a").event(13, "running", 1, "a");
    history.run(14, 50, "plain", 1, "a").event(51, "finished", 1, "a");
    history.event(21, "queued", 2, "").event(22, "assigned", 2, "b").event(23, "running", 2, "b");
    history.began(24, "red", 2, "b").killed(40, "red").event(6_000, "requeued", 2, "b");
    history.event(6_001, "assigned", 2, "c").event(6_002, "running", 2, "c");
    history.run(6_003, 6_050, "both", 2, "c").event(6_051, "finished", 2, "c");
    history.event(31, "queued", 3, "").event(32, "assigned", 3, "d").event(33, "running", 3, "d");
    history.run(34, 70, "plain", 3, "d").event(75, "canceled", 3, "d");
    history
}

#[test]
fn a_history_in_which_all_is_well_is_clean() {
    let verdict = sound().verdict();
    assert!(verdict.is_clean(), "{:#?}", verdict.wrong);
    assert_eq!(
        (verdict.jobs, verdict.longest_gap),
        (3, 4 * MS),
        "until job 1 began, and from when job 3 was published"
    );
}

#[test]
fn a_job_that_stood_still_did_not_run_meanwhile() {
    let mut history = sound();
    // Its lease is over; it wakes up, notices, and stops.
    history
        .publish(100, 4, &[])
        .event(101, "queued", 4, "")
        .event(102, "assigned", 4, "e")
        .event(103, "running", 4, "e");
    history.began(104, "plain", 4, "e").frozen(200, 9_000, "plain").ended(9_200, "plain", 4, "e");
    history.event(7_000, "requeued", 4, "e").event(7_001, "assigned", 4, "f").event(7_002, "running", 4, "f");
    history.run(7_003, 9_500, "both", 4, "f").event(9_501, "finished", 4, "f");
    assert!(history.verdict().is_clean(), "{:#?}", history.verdict().wrong);
    // One that does not notice runs beside the other.
    history.without(|what| matches!(what, What::Ended { lease, .. } if lease == "e")).ended(9_400, "plain", 4, "e");
    assert_eq!(history.verdict().doubled, 1);
}

#[test]
fn a_job_may_wait_for_a_runner_that_is_full_and_a_pod_take_a_little_more() {
    let mut history = sound();
    history.add(200, What::Calm).publish(300, 4, &["blue"]).level(1, false, 20_000, 40).level(99_000, true, 60_000, 70);
    // All slots of the one runner that has its tag are taken.
    for job in 5..9 {
        let lease = format!("l{job}");
        history.whole(250, 3_990, "both", job, &lease);
    }
    history.whole(4_100, 4_110, "both", 9, "last");
    history.event(301, "queued", 4, "").event(4_001, "assigned", 4, "e").event(4_002, "running", 4, "e");
    history.run(4_003, 4_010, "both", 4, "e").event(4_011, "finished", 4, "e");
    assert!(history.verdict().is_clean(), "{:#?}", history.verdict().wrong);
}

#[test]
fn what_a_lost_primary_took_along_excuses_the_jobs_that_were_under_way_and_no_others() {
    let taken_back = |what: &What| matches!(what, What::Written(told) if told.id == "2.b.requeued");
    let mut history = sound();
    history.without(taken_back).primary_lost(5_000, 6_500);
    let verdict = history.verdict();
    assert!(verdict.is_clean() && verdict.in_doubt == 1, "{verdict:#?}");
    let mut history = sound();
    history.without(taken_back).primary_lost(7_500, 9_000);
    assert_eq!((history.verdict().events_lost, history.verdict().in_doubt), (1, 0), "that was long before");
    let mut history = sound();
    history.publish(5_500, 4, &[]).primary_lost(5_000, 6_500);
    assert_eq!(history.verdict().lost, 1, "Rails publishes again what has not ended");
}

#[test]
fn each_planted_fault_is_caught() {
    type Plant = for<'a> fn(&'a mut History) -> &'a mut History;
    type Count = fn(&Verdict) -> u64;
    let planted: [(&str, Plant, Count); 31] = [
        ("published and nothing more", |h| h.publish(80, 4, &[]), |v| v.lost),
        ("queued for ever", |h| h.publish(80, 4, &[]).event(81, "queued", 4, ""), |v| v.lost),
        (
            "running for ever",
            |h| h.without(|what| matches!(what, What::Written(t) | What::Applied(t) if t.id == "1.a.finished")),
            |v| v.lost,
        ),
        ("two managers at once", |h| h.run(30, 40, "both", 1, "a"), |v| v.doubled),
        (
            "the next attempt begins before the first is over",
            |h| h.without(|what| matches!(what, What::Killed { .. })).killed(6_010, "red"),
            |v| v.doubled,
        ),
        (
            "a runner that does not fence itself",
            |h| h.without(|what| matches!(what, What::Killed { .. })),
            |v| v.doubled,
        ),
        ("one lease begins twice", |h| h.run(52, 53, "plain", 1, "a"), |v| v.doubled),
        ("two ends", |h| h.event(60, "failed", 1, "a"), |v| v.doubled),
        ("done after cancel", |h| h.event(80, "finished", 3, "d"), |v| v.doubled),
        ("canceled after done", |h| h.event(60, "canceled", 1, "a"), |v| v.doubled),
        ("runs on after cancel", |h| h.run(80, 90, "plain", 3, "d"), |v| v.done_after_cancel),
        (
            "does not stop for a cancel",
            |h| h.without(|what| matches!(what, What::Ended { job: 3, .. })).ended(90, "plain", 3, "d"),
            |v| v.done_after_cancel,
        ),
        (
            "runs on after it was given up",
            |h| {
                h.publish(100, 4, &[]).event(101, "queued", 4, "").event(102, "assigned", 4, "e");
                h.event(103, "running", 4, "e").run(104, 6_000, "plain", 4, "e").event(5_000, "failed", 4, "e")
            },
            |v| v.done_after_cancel,
        ),
        (
            "Rails misses an event",
            |h| h.without(|what| matches!(what, What::Applied(told) if told.id == "2.b.requeued")),
            |v| v.events_lost,
        ),
        (
            "Rails acted on an event that a failover took back",
            |h| h.without(|what| matches!(what, What::Written(told) if told.id == "2.b.requeued")),
            |v| v.events_lost,
        ),
        (
            "assigned and never queued",
            |h| h.without(|what| matches!(what, What::Written(t) | What::Applied(t) if t.id == "1..queued")),
            |v| v.order_broken,
        ),
        (
            "running and never assigned",
            |h| h.without(|what| matches!(what, What::Written(t) | What::Applied(t) if t.id == "1.a.assigned")),
            |v| v.order_broken,
        ),
        ("queued twice", |h| h.event(60, "queued", 3, "again"), |v| v.order_broken),
        (
            "a lease id is used again",
            |h| {
                h.publish(100, 4, &[]).event(101, "queued", 4, "").event(102, "assigned", 4, "a");
                h.event(103, "running", 4, "a").run(104, 105, "plain", 4, "a").event(106, "finished", 4, "a")
            },
            |v| v.invented,
        ),
        (
            "finished by a lease that is not its own",
            |h| {
                h.without(|what| matches!(what, What::Written(t) | What::Applied(t) if t.id == "2.c.finished"));
                h.event(6_051, "finished", 2, "b")
            },
            |v| v.invented,
        ),
        ("a job nobody published", |h| h.event(60, "queued", 9, ""), |v| v.invented),
        (
            "a job at a runner without its tag",
            |h| {
                h.without(|what| matches!(what, What::Began { lease, .. } | What::Ended { lease, .. } if lease == "c"));
                h.run(6_003, 6_050, "plain", 2, "c")
            },
            |v| v.invented,
        ),
        (
            "started and never told so",
            |h| {
                let is_so = |what: &What| matches!(what, What::Written(t) | What::Applied(t) if t.id == "1.a.running");
                h.without(is_so)
            },
            |v| v.invented,
        ),
        (
            "pushed to a runner without its tag",
            |h| {
                let plain = |told: &Told| Told { runner: 1, ..told.clone() };
                let pushed = told("assigned", 2, "c");
                h.without(|what| matches!(what, What::Written(told) if told.id == "2.c.assigned"));
                h.add(100_000, What::Written(plain(&pushed)))
            },
            |v| v.invented,
        ),
        // What the model finds where a rule is left out, rung by rung; 0, 2 and 4 are above: a runner that does not fence itself, one
        // lease at two managers, and a next attempt that begins before the first is over.
        (
            "rung 3: pushed and started before a replica has it",
            |h| {
                h.publish(100, 4, &[]).event(101, "queued", 4, "").applied(102, "assigned", 4, "e");
                h.applied(103, "running", 4, "e").run(104, 300, "plain", 4, "e");
                h.event(150, "assigned", 4, "f").event(151, "running", 4, "f").run(152, 200, "both", 4, "f");
                h.event(201, "finished", 4, "f")
            },
            |v| v.doubled,
        ),
        (
            "rung 5: a cancel is acknowledged before a replica has it",
            |h| {
                h.publish(100, 4, &[]).event(101, "queued", 4, "").applied(102, "canceled", 4, "");
                h.event(103, "assigned", 4, "e").event(104, "running", 4, "e").run(105, 200, "plain", 4, "e");
                h.event(201, "finished", 4, "e")
            },
            |v| v.done_after_cancel,
        ),
        (
            "rung 6: Rails acts on an end that a failover takes back",
            |h| {
                h.publish(100, 4, &[]).event(101, "queued", 4, "").event(102, "assigned", 4, "e");
                h.event(103, "running", 4, "e").run(104, 110, "plain", 4, "e").applied(111, "finished", 4, "e");
                h.event(6_000, "requeued", 4, "e").event(6_001, "assigned", 4, "f").event(6_002, "running", 4, "f");
                h.run(6_003, 6_010, "both", 4, "f").event(6_011, "finished", 4, "f")
            },
            |v| v.events_lost,
        ),
        (
            "a job waits while a runner that may run it has a free slot",
            |h| {
                h.add(200, What::Calm).whole(210, 220, "plain", 5, "g").whole(3_500, 3_510, "plain", 6, "h");
                h.publish(300, 4, &[]).event(301, "queued", 4, "");
                h.event(3_401, "assigned", 4, "e").event(3_402, "running", 4, "e").run(3_403, 3_410, "plain", 4, "e");
                h.event(3_411, "finished", 4, "e")
            },
            |v| v.idle,
        ),
        (
            "a pod does not give its memory back",
            |h| h.level(1, false, 20_000, 40).level(99_000, true, 90_000, 40),
            |v| v.grown,
        ),
        (
            "a pod does not close its connections",
            |h| h.level(1, false, 20_000, 40).level(99_000, true, 20_000, 200),
            |v| v.grown,
        ),
        ("a key is left behind", |h| h.add(90, What::Left { key: "job:1".to_owned() }), |v| v.leaked_keys),
    ];
    for (what, plant, count) in planted {
        let mut history = sound();
        plant(&mut history);
        let verdict = history.verdict();
        assert!(count(&verdict) > 0 && !verdict.is_clean(), "not caught: {what}: {verdict:#?}");
    }
}
