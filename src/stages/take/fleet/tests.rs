use std::iter;
use std::time::Duration;

use super::*;
use crate::tags::TagSet;

fn opened(session: SessionId, features: &str, slots: u32) -> Opened {
    let record = serde_json::json!({"id": 1, "token_sha256": "00", "type": "instance", "run_untagged": true});
    Opened {
        session,
        record: serde_json::from_value(record).expect("a record"),
        system_id: Name::new(&format!("s_{features}")).expect("a name"),
        features: TagSet::new([features]).expect("a feature"),
        info: "{}".into(),
        slots,
        outbox: Outbox::for_tests(session),
    }
}

/// One partition without lanes, and a fleet.
fn none() -> (Vec<Lanes>, Fleet) {
    (vec![Lanes::default()], Fleet::default())
}

#[test]
fn of_two_sessions_of_a_manager_the_older_goes_whichever_is_let_in_last() {
    let (lanes, mut fleet) = none();
    let (older, newer) = (SessionId::next(), SessionId::next());
    assert!(fleet.open(opened(newer, "a", 1), &lanes).1.is_none());
    let (_, replaced) = fleet.open(opened(older, "a", 1), &lanes);
    assert_eq!(replaced.map(|(session, _)| session), Some(older));
    assert_eq!(fleet.free(), 1, "only the newer one's slot is offered");
    fleet.close(older);
    let newest = SessionId::next();
    let (_, replaced) = fleet.open(opened(newest, "a", 1), &lanes);
    assert_eq!(replaced.map(|(session, _)| session), Some(newer));
}

#[test]
fn a_record_that_is_told_again_changes_no_session() {
    let (lanes, mut fleet) = none();
    let session = SessionId::next();
    let mut record = opened(session, "a", 1).record;
    fleet.open(opened(session, "a", 1), &lanes);
    let (scopes, gone) = fleet.change(record.runner_id(), Some(&record), &lanes);
    assert!(scopes.is_empty() && gone.is_empty(), "thousands of managers may have this record");
    record.protected_only = true;
    assert_eq!(fleet.change(record.runner_id(), Some(&record), &lanes).0, [Scope::Instance]);
    assert_eq!(fleet.change(record.runner_id(), None, &lanes).1.len(), 1);
}

#[test]
fn a_manager_that_went_away_with_jobs_is_left_alone_on_its_next_session_too() {
    let (lanes, mut fleet) = none();
    let (first, next, last) = (SessionId::next(), SessionId::next(), SessionId::next());
    fleet.open(opened(first, "a", 1), &lanes);
    let manager = fleet.close(first).expect("it was there");
    let now = Instant::now();
    fleet.back_off_manager(manager, now + Duration::from_secs(1));
    fleet.open(opened(next, "a", 1), &lanes);
    assert!(fleet.manager_with_room(next).is_none());
    fleet.end_back_offs(now + Duration::from_secs(1));
    assert!(fleet.manager_with_room(next).is_some());
    fleet.close(next);
    fleet.forget_deserters(now + Duration::from_secs(1));
    fleet.open(opened(last, "a", 1), &lanes);
    assert!(fleet.manager_with_room(last).is_some() && fleet.next_back_off().is_none());
}

#[test]
fn what_a_session_says_of_its_slots_before_it_is_known_counts_once_it_is() {
    let (lanes, mut fleet) = none();
    let (early, leaving, gone) = (SessionId::next(), SessionId::next(), SessionId::next());
    let slots = |free| Slots { free, assigns_seen: 0 };
    fleet.set_slots(early, slots(1));
    fleet.set_slots(early, slots(3));
    fleet.set_slots(leaving, Slots { free: 0, assigns_seen: u64::MAX });
    fleet.set_slots(gone, slots(5));
    fleet.close(gone);
    fleet.open(opened(early, "a", 0), &lanes);
    fleet.open(opened(leaving, "b", 7), &lanes);
    assert_eq!(fleet.free(), 3);
    assert!(fleet.early.is_empty());
}

#[test]
fn a_class_goes_with_its_last_session_and_the_last_take_sent_for_it() {
    let (lanes, mut fleet) = none();
    for n in 0..100 {
        let session = SessionId::next();
        fleet.open(opened(session, &format!("f{n}"), 1), &lanes);
        fleet.close(session);
    }
    assert!(fleet.classes.is_empty() && fleet.class_ids.is_empty() && fleet.order.is_empty());

    let (session, same) = (SessionId::next(), SessionId::next());
    fleet.open(opened(session, "a", 1), &lanes);
    let class = fleet.sessions[&session].class;
    assert_eq!(fleet.offer(class, 0, 8, &[]).len(), 1);
    fleet.close(session);
    fleet.open(opened(same, "a", 1), &lanes);
    assert_eq!(fleet.sessions[&same].class, class, "a take is under way for it");
    fleet.close(same);
    fleet.take_back(class, 0, [session].into_iter());
    assert!(fleet.classes.is_empty());
}

#[test]
fn a_record_that_changes_moves_its_sessions_to_another_class_and_the_empty_one_goes() {
    let (lanes, mut fleet) = none();
    let session = SessionId::next();
    fleet.open(opened(session, "a", 2), &lanes);
    let mut record = fleet.sessions[&session].record.clone();
    for priority in 0..10 {
        record.priority = priority;
        fleet.change(record.runner_id(), Some(&record), &lanes);
        fleet.change(record.runner_id(), Some(&record), &lanes);
        assert_eq!((fleet.classes.len(), fleet.order.len(), fleet.free()), (1, 1, 2));
        assert_eq!(fleet.offer(fleet.sessions[&session].class, 0, 8, &[]).len(), 2);
        fleet.take_back(fleet.sessions[&session].class, 0, [session; 2].into_iter());
    }
}

#[test]
fn a_slot_for_a_new_job_is_of_a_class_that_has_nothing_else_to_take() {
    let capability = Capability::default();
    let lane = |scope| crate::runner::Lane { scope, fingerprint: capability.fingerprint() };
    let mut lanes = Lanes::default();
    let id = lanes.insert(lane(Scope::Instance), capability.clone());
    let other = lanes.insert(lane(Scope::Group(7)), capability.clone());
    let (lanes, mut fleet) = (vec![lanes], Fleet::default());
    let session = SessionId::next();
    fleet.open(opened(session, "a", 2), &lanes);
    assert!(fleet.slot_for(0, &[id], |_| false, None).is_none(), "the lane may have work");
    assert!(fleet.slot_for(0, &[other], |_| true, None).is_none(), "it does not match");
    let found = fleet.slot_for(0, &[other, id], |_| true, None).map(|(lane, _, (session, ..))| (lane, session));
    assert_eq!((found, fleet.free()), (Some((id, session)), 1));
    fleet.release(session);
    let class = fleet.sessions[&session].class;
    assert_eq!(fleet.offer(class, 0, 1, &[]).len(), 1);
    assert!(fleet.slot_for(0, &[id], |_| true, None).is_none(), "a take is under way");
}

#[test]
fn of_more_lanes_than_one_take_asks_each_has_its_turn() {
    let capability = Capability::default();
    let mut lanes = Lanes::default();
    let ids: BTreeSet<_> = (0..40)
        .map(|n| {
            let capability = Capability { tags: TagSet::new([format!("t{n}")]).expect("a tag"), ..capability.clone() };
            lanes.insert(
                crate::runner::Lane { scope: Scope::Instance, fingerprint: capability.fingerprint() },
                capability,
            )
        })
        .collect();
    let mut one = opened(SessionId::next(), "a", 1);
    one.record.tags = TagSet::new((0..40).map(|n| format!("t{n}"))).expect("tags");
    let (lanes, mut fleet) = (vec![lanes], Fleet::default());
    fleet.open(one, &lanes);
    let mut ask = |woken: &[LaneId], has_work: &dyn Fn(LaneId) -> bool| {
        fleet.class_to_ask(0, woken, |lane, _| has_work(lane), 32, iter::empty()).expect("lanes").1
    };
    let (first, second) = (ask(&[], &|_| true), ask(&[], &|_| true));
    assert_eq!((first.len(), second.len()), (32, 32));
    assert_eq!(first.iter().chain(&second).copied().collect::<BTreeSet<_>>(), ids, "all lanes in two takes");
    assert!(!first.contains(&second[0]), "those left out come first");
    assert_eq!(ask(&[], &|lane| lane == second[5]), [second[5]], "wherever it stands");
    let woken = ask(&[first[7], first[3]], &|_| true);
    assert_eq!((woken.len(), &woken[..2]), (32, &[first[7], first[3]][..]), "those with a wake first");
    assert_eq!(woken.iter().collect::<BTreeSet<_>>().len(), 32, "each once");
}

#[test]
fn a_lower_class_gets_no_slot_asked_for_while_a_higher_one_asks_for_the_same_lane() {
    let capability = Capability::default();
    let mut lanes = Lanes::default();
    let id =
        lanes.insert(crate::runner::Lane { scope: Scope::Instance, fingerprint: capability.fingerprint() }, capability);
    let (lanes, mut fleet) = (vec![lanes], Fleet::default());
    let (low, high) = (SessionId::next(), SessionId::next());
    fleet.open(opened(low, "low", 1), &lanes);
    let mut better = opened(high, "high", 2);
    better.record.priority = 1;
    fleet.open(better, &lanes);
    let class_of = |fleet: &Fleet, session| fleet.sessions[&session].class;
    assert_eq!(fleet.class_to_ask(0, &[], |_, _| true, 8, iter::empty()), Some((class_of(&fleet, high), vec![id])));
    let high_class = class_of(&fleet, high);
    assert_eq!(fleet.offer(high_class, 0, 1, &[]).len(), 1);
    assert_eq!(fleet.class_to_ask(0, &[], |_, _| true, 8, iter::empty()), None, "its take may use the lane up");
    assert!(fleet.slot_for(0, &[id], |_| true, None).is_none());
    fleet.take_back(high_class, 0, std::iter::empty());
    // One slot of the higher class is in use, the other goes first; then the lower one's.
    let slots: Vec<_> = (0..3).map(|_| fleet.slot_for(0, &[id], |_| true, None).map(|(_, rank, ..)| rank)).collect();
    assert_eq!(slots, [Some(-1), Some(0), None]);
}

#[test]
fn what_is_told_of_a_fleet_is_what_has_changed_and_a_manager_that_is_back_has_not_left() {
    let (lanes, mut fleet) = none();
    let told = |fleet: &mut Fleet| {
        let changes = fleet.changes().into_iter();
        changes.map(|change| change.seen.map(|seen| (seen.free, seen.backing_off))).collect::<Vec<_>>()
    };
    let (older, newer) = (SessionId::next(), SessionId::next());
    fleet.open(opened(older, "a", 2), &lanes);
    assert_eq!(told(&mut fleet), [Some((2, false))]);
    assert!(told(&mut fleet).is_empty(), "nothing has changed");
    fleet.open(opened(newer, "a", 3), &lanes);
    fleet.close(older);
    assert_eq!(told(&mut fleet), [Some((3, false))], "the newer session's word, and not that it left");
    fleet.back_off(newer, Instant::now());
    assert_eq!(told(&mut fleet), [Some((3, true))]);
    let class = fleet.order[0];
    let offered = fleet.offer(class, 0, 1, &[]).len();
    assert_eq!(offered, 0, "it is left alone");
    fleet.end_back_offs(Instant::now());
    fleet.offer(class, 0, 1, &[]);
    assert_eq!(told(&mut fleet), [Some((3, false))], "a slot that is offered is not taken yet");
    fleet.assigned(newer);
    assert_eq!(told(&mut fleet), [Some((2, false))]);
    fleet.close(newer);
    assert_eq!(told(&mut fleet), [None]);
}

#[test]
fn of_equals_the_slot_of_the_manager_that_a_job_likes_is_offered_first() {
    let capability = Capability::default();
    let mut lanes = Lanes::default();
    let id =
        lanes.insert(crate::runner::Lane { scope: Scope::Instance, fingerprint: capability.fingerprint() }, capability);
    let (lanes, mut fleet) = (vec![lanes], Fleet::default());
    let manager = |system_id: &str| (RunnerId(1), Name::new(system_id).expect("a name"));
    for (features, slots, priority) in [("best", 1, 1), ("free", 9, 0), ("liked", 2, 0), ("worse", 1, -1)] {
        let mut one = opened(SessionId::next(), features, slots);
        one.record.priority = priority;
        fleet.open(one, &lanes);
    }
    let slot = |fleet: &mut Fleet, liked: &str| {
        let found = fleet.slot_for(0, &[id], |_| true, Some(&manager(liked)));
        found.map(|(_, _, (_, _, system_id))| system_id.to_string())
    };
    assert_eq!(slot(&mut fleet, "s_liked").as_deref(), Some("s_best"), "priority goes first");
    assert_eq!(slot(&mut fleet, "s_liked").as_deref(), Some("s_liked"));
    assert_eq!(slot(&mut fleet, "s_worse").as_deref(), Some("s_free"));
    assert_eq!(slot(&mut fleet, "s_gone").as_deref(), Some("s_free"));
    let liked = [manager("s_liked")];
    let class = fleet.class_to_ask(0, &[], |_, _| true, 8, liked.iter()).expect("one").0;
    assert_eq!(fleet.offer(class, 0, 1, &liked).len(), 1);
    assert_eq!(slot(&mut fleet, "s_liked").as_deref(), Some("s_free"), "its two slots are offered");
    fleet.take_back(class, 0, iter::empty());
}
