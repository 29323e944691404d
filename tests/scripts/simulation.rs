//! The simulator's policies: what holds for each, ours against the rule as a plain scan, and ours against the scripts.
//! `SEED=` repeats the runs against the scripts, `HISTORIES=` sets how many there are.
mod scan;
mod scripts;

use std::num::NonZeroU32;

use job_router::job::{Priority, ProjectId, Tenant};
use job_router::simulation::{
    Day, DayBuilder, Fair, Fifo, Flood, GitLab, Policy, Shape, Simulation, Take, Waits, jains_index, waits,
};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scan::Scan;
use scripts::{BesideScripts, Tally};

/// A job as it is drawn: project, priority, wait after the job before it, duration.
type Drawn = (u64, i64, u64, u64);

/// Days of few tenants and short times, so that names, heads and shares are often equal. A tenant's names sort otherwise
/// than its number.
fn days() -> impl Strategy<Value = Day> {
    let job = (0u64..12, -2i64..=2, prop_oneof![3 => Just(0u64), 2 => 1u64..4, 1 => 10u64..60], 0u64..40);
    let number =
        |most| prop::option::weighted(0.4, (1u32..=most).prop_map(|number| NonZeroU32::new(number).expect("from 1")));
    let terms = prop::collection::vec((number(4), number(3), number(3)), 12);
    (prop::collection::vec(job, 1..120), terms).prop_map(|(jobs, terms)| day(&jobs, &terms))
}

/// Per project its tenant's weight, its tenant's cap, its own cap.
type Terms = (Option<NonZeroU32>, Option<NonZeroU32>, Option<NonZeroU32>);

fn day(jobs: &[Drawn], terms: &[Terms]) -> Day {
    let (mut day, mut at) = (DayBuilder::default(), 0);
    for (project, priority, wait, duration) in jobs {
        at += wait;
        let priority = Priority::new(*priority).expect("in range");
        day.add(&tenant_of(*project), ProjectId(project_id(*project)), priority, at, *duration).expect("of its tenant");
    }
    let mut day = day.build(Some(0));
    for (project, (weight, tenant_cap, project_cap)) in (0..).zip(terms) {
        let tenant = tenant_of(project);
        weight.map(|weight| day.set_weight(&tenant, weight));
        tenant_cap.map(|cap| day.set_tenant_cap(&tenant, cap));
        project_cap.map(|cap| day.set_project_cap(ProjectId(project_id(project)), cap));
    }
    day
}

/// Four tenants, whose names are not in the order of their numbers.
pub fn tenant_of(project: u64) -> Tenant {
    Tenant::new(["ns:10", "ns:9", "a b", "a-b"][project as usize % 4]).expect("a name")
}

/// Ids that are not in the order of their texts.
pub fn project_id(project: u64) -> u64 {
    [1, 10, 2, 12, 123, 3, 11, 20, 9, 99, 100, 1000][project as usize]
}

/// Checks what holds whatever the policy, from outside: only the takes are looked at.
fn check(day: &Day, slots: usize, takes: &[Take]) {
    let mut seen = vec![false; day.jobs().len()];
    for take in takes {
        assert!(!std::mem::replace(&mut seen[take.job], true), "{take:?} is the second");
        assert!(take.at_ms >= day.jobs()[take.job].queued_at_ms, "{take:?} is early");
    }
    assert!(seen.iter().all(|seen| *seen), "every job runs");
    let end = |take: &Take| take.at_ms + day.jobs()[take.job].duration_ms;
    let mut moments: Vec<u64> = takes.iter().flat_map(|take| [take.at_ms, end(take)]).collect();
    moments.extend(day.jobs().iter().map(|job| job.queued_at_ms));
    for now in moments {
        // What runs from now on: a job of 0 ms is over at once.
        let running: Vec<&Take> = takes.iter().filter(|take| take.at_ms <= now && now < end(take)).collect();
        assert!(running.len() <= slots, "{} jobs on {slots} slots at {now}", running.len());
        let waits = |take: &&Take| day.jobs()[take.job].queued_at_ms <= now && now < take.at_ms;
        if running.len() < slots {
            let jobs: Vec<usize> = running.iter().map(|take| take.job).collect();
            takes.iter().filter(waits).for_each(|take| assert!(held_back(day, &jobs, take.job), "{take:?} at {now}"));
        }
    }
}

/// Whether a cap keeps a job from running beside these.
fn held_back(day: &Day, running: &[usize], job: usize) -> bool {
    let reached = |cap: Option<NonZeroU32>, running: usize| cap.is_some_and(|cap| running >= cap.get() as usize);
    let (project, tenant) = (day.jobs()[job].project, day.tenant_of(job));
    let of_project = running.iter().filter(|job| day.jobs()[**job].project == project).count();
    let of_tenant = running.iter().filter(|job| day.tenant_of(**job) == tenant).count();
    reached(day.projects()[project].max_running, of_project) || reached(day.tenants()[tenant].max_running, of_tenant)
}

fn run<P: Policy>(day: &Day, slots: usize, policy: P) -> Vec<Take> {
    Simulation::new(day, slots, policy).run()
}

proptest! {
    #[test]
    fn every_policy_is_work_conserving_and_runs_every_job_once(day in days(), slots in 1usize..6) {
        check(&day, slots, &run(&day, slots, Fair::new(&day)));
        check(&day, slots, &run(&day, slots, Fifo::default()));
        check(&day, slots, &run(&day, slots, GitLab::new(&day)));
    }

    #[test]
    fn fifo_takes_by_age(day in days(), slots in 1usize..6) {
        let takes = run(&day, slots, Fifo::default());
        prop_assert!(takes.iter().map(|take| take.job).eq(0..day.jobs().len()));
    }

    #[test]
    fn our_policy_takes_what_a_scan_by_the_rule_takes(day in days(), slots in 1usize..6) {
        prop_assert_eq!(run(&day, slots, Fair::new(&day)), run(&day, slots, Scan::new(&day)));
    }
}

#[test]
fn under_a_flood_quiet_tenants_wait_less_by_our_policy_than_by_gitlabs_and_by_age() {
    let flood = Some(Flood { jobs: 5_000, projects: 20, hour: 13 });
    let day = Shape { seed: 7, jobs: 20_000, tenants: 300, duration_ms: 90_000, flood }.draw();
    // The flood is by far the busiest; then come four who have more to do than most.
    let busiest: Vec<usize> = day.busiest_tenants().iter().take(5).map(|(tenant, _)| *tenant).collect();
    assert_eq!(busiest[0], day.find_tenant(&Flood::tenant()).expect("it floods"));
    let quiet = |takes: &[Take]| -> Waits {
        waits(&day, takes, |job| !busiest.contains(&day.tenant_of(job))).expect("they have jobs")
    };
    let (slots, mut p99) = (100, Vec::new());
    let all =
        [run(&day, slots, Fair::new(&day)), run(&day, slots, GitLab::new(&day)), run(&day, slots, Fifo::default())];
    for takes in &all {
        p99.push(quiet(takes).p99);
    }
    assert!(p99[0] * 5 < p99[1] && p99[1] < p99[2], "p99 of quiet tenants, ms: ours, GitLab's, by age {p99:?}");
    let index = all.each_ref().map(|takes| jains_index(&day, takes).expect("tenants wait"));
    assert!(index[0] > index[1] && index[1] > index[2], "Jain's index: ours, GitLab's, by age {index:?}");
}

/// A day in which a project has one priority, or several.
fn draw(rng: &mut StdRng, mixed: bool) -> Day {
    let jobs: Vec<Drawn> = (0..rng.random_range(50..150))
        .map(|_| {
            let project = rng.random_range(0..12);
            let priority = if mixed { rng.random_range(-2..=2) } else { [0, 0, 1][project as usize / 4] };
            let wait = if rng.random_bool(0.4) { 0 } else { rng.random_range(1..8) };
            (project, priority, wait, rng.random_range(0..60))
        })
        .collect();
    let mut number =
        |most: u32| rng.random_bool(0.3).then(|| NonZeroU32::MIN.saturating_add(rng.random_range(0..most)));
    let terms: Vec<Terms> = (0..12).map(|_| (number(4), number(4), number(3))).collect();
    day(&jobs, &terms)
}

/// Random days through our policy and through the real scripts, in one simulation: the same takes, one by one.
fn beside_the_scripts(mixed: bool) -> Tally {
    let number = |key: &str| std::env::var(key).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (seed, histories) = (number("SEED").unwrap_or_else(rand::random), number("HISTORIES").unwrap_or(30));
    println!("SEED={seed} HISTORIES={histories}"); // shown when the test fails
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (mut rng, mut tally) = (StdRng::seed_from_u64(seed), Tally::default());
    for _ in 0..histories {
        let (day, slots, lead_ms) = (draw(&mut rng, mixed), rng.random_range(1..8), rng.random_range(0..500));
        let takes = run(&day, slots, BesideScripts::new(&runtime, &day, slots, lead_ms, &mut tally));
        check(&day, slots, &takes);
    }
    println!("{tally:?}");
    let (takes, histories) = (tally.takes, histories as usize);
    assert!(takes >= 50 * histories && tally.handed > histories && tally.many > histories, "a real test: {tally:?}");
    assert!(tally.since_served > 10 * histories, "tenants take turns: {tally:?}");
    tally
}

#[test]
fn our_policy_takes_what_the_scripts_take() {
    assert_eq!(beside_the_scripts(false).excused, 0);
}

/// Where a project has jobs of several priorities, a bucket's score in Redis may be too low, and so a tenant's head another's:
/// tenants of equal share may go the other way round. `tests/scripts/model.rs` holds every such case against the index.
#[test]
fn with_several_priorities_in_a_project_only_tenants_of_equal_share_may_change_places() {
    let tally = beside_the_scripts(true);
    assert!(tally.excused * 20 < tally.takes, "it is rare: {tally:?}");
}
