//! The protocol without a network: messages and moments in, actions out.

use super::*;
use crate::job::{JobId, LeaseId};
use crate::proto::{self, Cancel, Drain, FinishedAck, Resumed, Revoked, Start};

const START: BootTime = BootTime(1_000_000);

fn lease(job_id: u64) -> Lease {
    Lease { job_id: JobId(job_id), lease_id: LeaseId::random(0) }
}

fn on_wire(job: &Lease) -> Option<proto::Lease> {
    Some(wire::lease(job))
}

fn assign(job: &Lease) -> Down {
    Down::Assign(Assign { lease: on_wire(job), timeout_ms: 3_600_000, ..Assign::default() })
}

fn welcome(resumed: Vec<Resumed>) -> Welcome {
    Welcome { lease_ms: 60_000, beat_interval_ms: 10_000, resumed, ..Welcome::default() }
}

/// A protocol with a session and so many slots.
fn connected(slots: u32) -> Protocol {
    let mut protocol = Protocol::new(slots);
    reconnect(&mut protocol, vec![], START);
    protocol
}

fn reconnect(protocol: &mut Protocol, resumed: Vec<Resumed>, now: BootTime) -> Hello {
    let hello = protocol.hello(Hello::default());
    protocol.welcomed(&welcome(resumed), &hello, now);
    hello
}

fn receive(protocol: &mut Protocol, message: Down, now: BootTime) -> Vec<String> {
    protocol.received(message, now, |_| Ok(()));
    actions(protocol)
}

/// The actions so far, as short words.
fn actions(protocol: &mut Protocol) -> Vec<String> {
    let word = |action| match action {
        Action::Send(Up::Accepted(m)) => format!("accepted {}", m.lease.unwrap().job_id),
        Action::Send(Up::Declined(m)) => format!("declined {} {}", m.lease.unwrap().job_id, m.reason),
        Action::Send(Up::Finished(m)) => {
            format!("finished {} {} {}", m.lease.unwrap().job_id, m.status, m.failure_reason)
        }
        Action::Send(Up::Beat(m)) => {
            let mut ids: Vec<_> = m.running.iter().map(|lease| lease.job_id).collect();
            ids.sort_unstable();
            format!("beat {} {ids:?}", m.sequence)
        }
        Action::Send(Up::Goodbye(_)) => "goodbye".to_owned(),
        Action::Send(other) => format!("{other:?}"),
        Action::Run(assignment, _) => format!("run {}", assignment.lease.job_id),
        Action::Cancel(lease) => format!("cancel {}", lease.job_id),
        Action::Kill(lease) => format!("kill {}", lease.job_id),
        Action::Move(delay) => format!("move {}", delay.as_millis()),
        Action::HangUp(_) => "hang up".to_owned(),
    };
    std::iter::from_fn(|| protocol.next_action()).map(word).collect()
}

fn running(protocol: &mut Protocol, job: &Lease, now: BootTime) {
    receive(protocol, assign(job), now);
    assert_eq!(receive(protocol, Down::Start(Start { lease: on_wire(job) }), now), [format!("run {}", job.job_id)]);
}

fn ack(sequence: u64, gone: &[Lease]) -> Down {
    Down::BeatAck(BeatAck { sequence, gone: gone.iter().map(wire::lease).collect() })
}

#[test]
fn a_job_runs_only_after_start_and_ends_with_its_outcome() {
    let (mut protocol, job) = (connected(1), lease(1));
    assert_eq!(receive(&mut protocol, assign(&job), START), ["accepted 1"]);
    assert_eq!(receive(&mut protocol, Down::Start(Start { lease: on_wire(&job) }), START), ["run 1"]);
    assert!(receive(&mut protocol, Down::Start(Start { lease: on_wire(&job) }), START).is_empty(), "repeated");
    protocol.ended(&job, Some(Outcome::success()));
    assert_eq!(actions(&mut protocol), ["finished 1 1 "]);
    assert!(!protocol.is_idle());
    receive(&mut protocol, Down::FinishedAck(FinishedAck { lease: on_wire(&job), recorded: true }), START);
    assert!(protocol.is_idle());
}

#[test]
fn an_unacknowledged_end_is_said_again_after_a_few_answered_beats_and_not_while_none_is() {
    let (mut protocol, job) = (connected(1), lease(1));
    running(&mut protocol, &job, START);
    protocol.tick(START);
    protocol.ended(&job, Some(Outcome::success()));
    assert_eq!(actions(&mut protocol), ["beat 1 [1]", "finished 1 1 "]);
    for beat in 1..=4 {
        protocol.tick(START.plus(beat * 10_000));
    }
    assert_eq!(actions(&mut protocol).len(), 4, "beats, and nothing else: the router answers nobody");
    let mut answered = |sequence| receive(&mut protocol, ack(sequence, &[job]), START.plus(40_000));
    // Beat 1 was sent before the end, so its answer says nothing about it.
    for sequence in 1..=3 {
        assert!(answered(sequence).is_empty(), "the acknowledgement may be on its way");
    }
    assert_eq!(answered(4), ["finished 1 1 "]);
    assert!(answered(5).is_empty(), "it was just said");
    receive(&mut protocol, Down::FinishedAck(FinishedAck { lease: on_wire(&job), recorded: true }), START);
    assert!(protocol.is_idle());
}

#[test]
fn slots_are_told_only_when_the_router_cannot_know_them() {
    let mut protocol = connected(2);
    assert_eq!(protocol.slots_to_tell(), None, "Hello said it");
    let (one, two) = (lease(1), lease(2));
    running(&mut protocol, &one, START);
    running(&mut protocol, &two, START);
    assert_eq!(protocol.slots_to_tell(), None, "the router counted its own pushes");
    assert_eq!(receive(&mut protocol, assign(&lease(3)), START), ["declined 3 busy"]);
    assert_eq!(protocol.slots_to_tell(), None, "still none free");
    protocol.ended(&one, Some(Outcome::success()));
    protocol.ended(&two, Some(Outcome::success()));
    assert_eq!(protocol.slots_to_tell(), Some(Slots { free: 2, assigns_seen: 3 }), "both in one message");
    assert_eq!(protocol.slots_to_tell(), None);
}

#[test]
fn a_declined_job_gives_its_credit_back() {
    let mut protocol = connected(1);
    protocol.received(assign(&lease(1)), START, |_| Err(Reason::UNSUPPORTED));
    assert_eq!(actions(&mut protocol), ["declined 1 unsupported"]);
    assert_eq!(protocol.slots_to_tell(), Some(Slots { free: 1, assigns_seen: 1 }));
}

#[test]
fn an_acknowledged_beat_moves_the_fences_of_the_jobs_it_listed_and_no_others() {
    let (mut protocol, early, late) = (connected(2), lease(1), lease(2));
    running(&mut protocol, &early, START);
    protocol.tick(START.plus(10_000));
    assert_eq!(actions(&mut protocol), ["beat 1 [1]"]);
    running(&mut protocol, &late, START.plus(11_000));
    receive(&mut protocol, ack(1, &[]), START.plus(40_000));
    // Early was listed by the beat of 10 s: its fence is at 55 s. Late was accepted at 11 s: 56 s.
    protocol.tick(START.plus(54_999));
    assert_eq!(actions(&mut protocol), ["beat 2 [1, 2]"]);
    protocol.tick(START.plus(55_000));
    assert_eq!(actions(&mut protocol), ["kill 1"]);
    protocol.tick(START.plus(56_000));
    assert_eq!(actions(&mut protocol), ["kill 2"]);
}

#[test]
fn a_fenced_job_reports_nothing_and_frees_its_slot_when_it_is_gone() {
    let (mut protocol, job) = (connected(1), lease(1));
    running(&mut protocol, &job, START);
    protocol.session_lost();
    protocol.tick(START.plus(44_999));
    assert!(actions(&mut protocol).is_empty());
    protocol.tick(START.plus(45_000));
    assert_eq!(actions(&mut protocol), ["kill 1"]);
    let hello = reconnect(&mut protocol, vec![], START.plus(45_100));
    assert_eq!((hello.slots, hello.running.len()), (0, 0), "not ours, but its process may be there");
    protocol.ended(&job, Some(Outcome::success()));
    assert!(actions(&mut protocol).is_empty());
    assert_eq!(protocol.slots_to_tell(), Some(Slots { free: 1, assigns_seen: 0 }));
    assert_eq!(protocol.summary().fenced, 1);
}

#[test]
fn an_accepted_job_is_dropped_at_its_fence_and_a_late_start_does_not_run_it() {
    let (mut protocol, job) = (connected(1), lease(1));
    receive(&mut protocol, assign(&job), START);
    let start = Down::Start(Start { lease: on_wire(&job) });
    assert!(receive(&mut protocol, start.clone(), START.plus(45_000)).is_empty());
    protocol.tick(START.plus(45_000));
    assert_eq!(protocol.occupied(), 0);
    actions(&mut protocol);
    assert!(receive(&mut protocol, start, START.plus(45_001)).is_empty());
}

#[test]
fn a_new_session_lists_what_is_held_and_stops_what_was_not_resumed() {
    let (mut protocol, kept, unstarted, gone, ended) = (connected(4), lease(1), lease(2), lease(3), lease(4));
    running(&mut protocol, &kept, START);
    receive(&mut protocol, assign(&unstarted), START);
    running(&mut protocol, &gone, START);
    running(&mut protocol, &ended, START);
    protocol.session_lost();
    protocol.ended(&ended, Some(Outcome::success()));
    assert!(actions(&mut protocol).is_empty(), "nobody to tell");
    let resumed = |job: &Lease| Resumed { lease: on_wire(job), canceling: false, cancel_grace_ms: 0 };
    let hello = reconnect(&mut protocol, vec![resumed(&kept), resumed(&unstarted)], START.plus(100));
    assert_eq!((hello.slots, hello.running.len()), (1, 4));
    assert_eq!(actions(&mut protocol), ["finished 4 1 ", "kill 3", "run 2"]);
    // The kill has not freed its slot yet.
    assert_eq!(protocol.slots_to_tell(), None);
}

#[test]
fn a_job_canceled_meanwhile_is_canceled_on_resumption() {
    let (mut protocol, job, unstarted) = (connected(2), lease(1), lease(2));
    running(&mut protocol, &job, START);
    receive(&mut protocol, assign(&unstarted), START);
    let canceling = |job: &Lease| Resumed { lease: on_wire(job), canceling: true, cancel_grace_ms: 4_000 };
    reconnect(&mut protocol, vec![canceling(&job), canceling(&unstarted)], START.plus(100));
    assert_eq!(actions(&mut protocol), ["cancel 1", "finished 2 3 "]);
}

#[test]
fn a_cancel_that_is_ignored_ends_in_a_kill_within_its_grace() {
    let (mut protocol, job) = (connected(1), lease(1));
    running(&mut protocol, &job, START);
    let cancel = Down::Cancel(Cancel { lease: on_wire(&job), grace_ms: 4_000, reason: String::new() });
    assert_eq!(receive(&mut protocol, cancel, START), ["cancel 1"]);
    protocol.tick(START.plus(3_000));
    assert_eq!(actions(&mut protocol), ["kill 1", "beat 1 [1]"]);
    protocol.ended(&job, None);
    assert_eq!(actions(&mut protocol), ["finished 1 3 "]);
}

#[test]
fn an_executor_that_ignores_the_jobs_limit_is_killed() {
    let (mut protocol, job) = (connected(1), lease(1));
    let short = Assign { lease: on_wire(&job), timeout_ms: 1_000, ..Assign::default() };
    receive(&mut protocol, Down::Assign(short), START);
    receive(&mut protocol, Down::Start(Start { lease: on_wire(&job) }), START);
    protocol.tick(START.plus(6_000));
    assert_eq!(actions(&mut protocol), ["kill 1", "beat 1 [1]"]);
    protocol.ended(&job, Some(Outcome::success()));
    assert_eq!(actions(&mut protocol), ["finished 1 2 job_execution_timeout"]);
}

#[test]
fn gone_and_revoked_jobs_stop_and_report_nothing() {
    let (mut protocol, gone, revoked, ended) = (connected(3), lease(1), lease(2), lease(3));
    for job in [&gone, &revoked, &ended] {
        running(&mut protocol, job, START);
    }
    protocol.ended(&ended, Some(Outcome::success()));
    protocol.tick(START);
    actions(&mut protocol);
    assert_eq!(receive(&mut protocol, ack(1, &[gone, ended]), START), ["kill 1"]);
    let revoke = Down::Revoked(Revoked { lease: on_wire(&revoked), reason: "expired".to_owned() });
    assert_eq!(receive(&mut protocol, revoke, START), ["kill 2"]);
    protocol.ended(&gone, None);
    protocol.ended(&revoked, Some(Outcome::success()));
    assert!(actions(&mut protocol).is_empty());
    assert!(!protocol.is_idle(), "the ended one waits for its own acknowledgement");
}

#[test]
fn a_draining_session_takes_no_more_jobs_and_keeps_its_own() {
    let (mut protocol, job) = (connected(2), lease(1));
    running(&mut protocol, &job, START);
    let drain = Down::Drain(Drain { reconnect_after_ms: 50 });
    assert_eq!(receive(&mut protocol, drain, START), ["move 50"]);
    assert_eq!(protocol.slots_to_tell(), Some(Slots { free: 0, assigns_seen: 1 }));
    assert_eq!(receive(&mut protocol, assign(&lease(2)), START), ["declined 2 shutting_down"]);
    protocol.tick(START);
    assert_eq!(actions(&mut protocol), ["beat 1 [1]"]);
    assert_eq!(protocol.hello(Hello::default()).slots, 1, "for the next session");
}

/// A protocol that goes away and has handed back these jobs, which it had accepted.
fn handing_back(jobs: &[&Lease]) -> Protocol {
    let mut protocol = connected(2);
    for job in jobs {
        receive(&mut protocol, assign(job), START);
    }
    protocol.stop();
    let mut said = actions(&mut protocol);
    said.sort_unstable();
    let declined = jobs.iter().map(|job| format!("declined {} shutting_down", job.job_id));
    assert_eq!(said, declined.chain(["goodbye".to_owned()]).collect::<Vec<_>>());
    protocol
}

#[test]
fn at_shutdown_unstarted_jobs_are_handed_back_unless_their_start_crosses() {
    let (back, crossing) = (lease(1), lease(2));
    let mut protocol = handing_back(&[&back, &crossing]);
    assert!(!protocol.is_still(), "either may have been started");
    let revoked = Down::Revoked(Revoked { lease: on_wire(&back), reason: "declined".to_owned() });
    assert!(receive(&mut protocol, revoked, START).is_empty());
    // However late: the router may have waited for Redis.
    protocol.tick(START.plus(44_000));
    let start = Down::Start(Start { lease: on_wire(&crossing) });
    assert_eq!(receive(&mut protocol, start, START.plus(44_000)), ["beat 1 [2]", "run 2"]);
    protocol.kill_all();
    assert!(!protocol.is_still());
    protocol.ended(&crossing, None);
    assert_eq!(actions(&mut protocol), ["kill 2", "finished 2 2 runner_system_failure"]);
    assert!(protocol.is_still());
}

#[test]
fn a_job_handed_back_and_never_answered_is_dropped_at_its_fence() {
    let mut protocol = handing_back(&[&lease(1)]);
    protocol.tick(START.plus(45_000));
    assert!(protocol.is_still() && protocol.is_idle());
    assert_eq!(protocol.summary().fenced, 0, "it was not kept from anybody");
}

#[test]
fn a_job_handed_back_whose_session_is_lost_runs_if_the_next_one_says_that_it_started() {
    let (back, crossing) = (lease(1), lease(2));
    let mut protocol = handing_back(&[&back, &crossing]);
    protocol.session_lost();
    let resumed = vec![Resumed { lease: on_wire(&crossing), ..Resumed::default() }];
    let hello = reconnect(&mut protocol, resumed, START.plus(100));
    assert_eq!((hello.slots, hello.running.len()), (0, 2));
    assert_eq!(actions(&mut protocol), ["run 2", "goodbye"]);
    assert_eq!(protocol.occupied(), 1);
}

#[test]
fn after_a_kill_nothing_starts_and_what_the_router_starts_is_reported_as_failed() {
    let (crossing, resumed) = (lease(1), lease(2));
    let mut protocol = handing_back(&[&crossing, &resumed]);
    protocol.kill_all();
    assert!(protocol.is_still() && !protocol.is_idle(), "nothing runs, and the router has yet to answer");
    let start = Down::Start(Start { lease: on_wire(&crossing) });
    assert_eq!(receive(&mut protocol, start, START), ["finished 1 2 runner_system_failure"]);
    protocol.session_lost();
    let resumed = vec![Resumed { lease: on_wire(&resumed), ..Resumed::default() }];
    reconnect(&mut protocol, resumed, START.plus(100));
    let reports = ["finished 1 2 runner_system_failure", "finished 2 2 runner_system_failure", "goodbye"];
    assert_eq!(actions(&mut protocol), reports);
}

#[test]
fn a_job_assigned_anew_while_its_old_process_runs_is_declined() {
    let (mut protocol, older, newer) = (connected(2), lease(1), lease(1));
    running(&mut protocol, &older, START);
    assert_eq!(receive(&mut protocol, assign(&newer), START), ["kill 1", "declined 1 busy"]);
    protocol.ended(&older, None);
    assert_eq!(receive(&mut protocol, assign(&newer), START), ["accepted 1"]);
    assert_eq!(receive(&mut protocol, assign(&newer), START), ["accepted 1"], "repeated");
}

#[test]
fn a_silent_session_is_given_up_after_a_lease() {
    let mut protocol = connected(1);
    for beat in 0..6 {
        protocol.tick(START.plus(beat * 10_000));
    }
    assert_eq!(actions(&mut protocol).len(), 6);
    protocol.tick(START.plus(60_000));
    assert_eq!(actions(&mut protocol), ["hang up"]);
}
