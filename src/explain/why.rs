//! The answer: one reason, in one sentence that names the thing.

use serde::Serialize;

use super::facts::{InboxLag, Live, Pause, Roster};
use super::reason::{Gap, Reason, RunnerReason, reason_of};
use super::runners::{self, Judged};
use super::text::{count, duration, gaps_of, ids, quoted, runners_named};
use super::{JobPart, Place, ScopePart};
use crate::flow::State;
use crate::job::ProjectFacts;
use crate::runner::Scope;
use crate::tags::Capability;

/// Why a job is where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Why {
    /// The code.
    pub reason: Reason,
    /// The same for people, in one sentence.
    pub summary: String,
    /// Of a job that no online runner could ever take: the smallest set of requirements that some runner does not meet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Gap>,
    /// The runners that lack no more than that: the first few, by id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nearest: Vec<u64>,
}

/// Why no online runner could ever take jobs of this project that need this; none if one could.
pub fn why_stuck(project: &ProjectFacts, job: &Capability, roster: &Roster) -> Option<Why> {
    stuck(project, &runners::judge(project, job, roster), roster)
}

pub(super) fn stuck(project: &ProjectFacts, judged: &[Judged<'_>], roster: &Roster) -> Option<Why> {
    let (mut offline, mut examples) = (0, Vec::new());
    for one in judged.iter().filter(|one| one.gaps.is_empty()) {
        if one.runner.is_online() {
            return None;
        }
        offline += 1;
        if examples.len() < runners::EXAMPLES_MAX {
            examples.push(one.runner.record.id);
        }
    }
    let any_online = roster.any_online();
    let counted = judged.iter().filter(|one| !one.gaps.is_empty() && one.runner.is_online() == any_online);
    // Where those that could take it are just not there, what others that are not there lack is no help.
    let nearest = if offline > 0 && !any_online { None } else { runners::nearest(counted) };
    let (missing, nearest, near) =
        nearest.map_or((Vec::new(), Vec::new(), 0), |nearest| (nearest.gaps, nearest.examples, nearest.runners));
    let (reason, summary) = if roster.runners.is_empty() {
        (Reason::NoRunnerRegistered, "no runner is registered".to_owned())
    } else if offline > 0 {
        let summary = match offline {
            1 => format!("the only runner that could take it, {}, is offline", runners_named(1, &examples)),
            _ => format!("all {offline} runners that could take it are offline ({})", ids(offline, &examples)),
        };
        (Reason::RunnersOffline, summary)
    } else {
        let summary = lacking(project, &missing, judged, any_online, near, &nearest);
        (reason_of(&missing), summary)
    };
    Some(Why { reason, summary, missing, nearest })
}

/// What the nearest runners lack, and whether none has it or they just lack it.
fn lacking(
    project: &ProjectFacts,
    missing: &[Gap],
    judged: &[Judged<'_>],
    any_online: bool,
    near: u64,
    nearest: &[u64],
) -> String {
    let kind = if any_online { "online" } else { "registered" };
    let counted: Vec<_> = judged.iter().filter(|one| one.runner.is_online() == any_online).collect();
    let nobody_has = |gap: &Gap| counted.iter().all(|one| one.gaps.contains(gap));
    let head = match missing {
        [Gap::Tag(tag)] if nobody_has(&missing[0]) => format!("no {kind} runner has tag {}", quoted(tag)),
        [Gap::Feature(name)] if nobody_has(&missing[0]) => format!("no {kind} runner has feature {}", quoted(name)),
        [Gap::RunUntagged] => {
            format!("it has no tags, and no {kind} runner that could take it takes jobs without tags")
        }
        [Gap::Protected] => format!(
            "it is not on a protected ref, and every {kind} runner that could take it takes only jobs on protected refs"
        ),
        [Gap::Paused] => format!("every {kind} runner that could take it is paused"),
        [Gap::InstanceRunners] => {
            format!("project {} allows no instance runners, and no other runner could take it", project.id)
        }
        [Gap::GroupRunners] => {
            format!("project {} allows no group runners, and no other runner could take it", project.id)
        }
        [Gap::Group] => {
            format!("every {kind} runner with what it needs serves groups that project {} is not in", project.id)
        }
        [Gap::Project] => format!("every {kind} runner with what it needs serves other projects than {}", project.id),
        _ => format!("no {kind} runner has all that it needs"),
    };
    format!("{head}; the nearest, {}, {}", runners_named(near, nearest), gaps_of(missing, near))
}

/// What holds up all runners of a scope.
pub(super) fn block<'a>(job: &'a Live, scope: Scope, lane: Option<&'a Pause>) -> Option<(Reason, Option<&'a Pause>)> {
    let pauses = [
        (Reason::PausedAll, job.pauses.all.as_ref()),
        (Reason::PausedTenant, job.pauses.tenant.as_ref()),
        (Reason::PausedProject, job.pauses.project.as_ref()),
        (Reason::PausedLane, lane),
    ];
    if let Some((reason, pause)) = pauses.into_iter().find(|(_, pause)| pause.is_some()) {
        return Some((reason, pause));
    }
    let reached = |running: &super::Running| running.max_running.is_some_and(|max| running.running >= max);
    match scope {
        Scope::Instance if reached(&job.tenant_running) => Some((Reason::TenantCap, None)),
        Scope::Instance if reached(&job.project_running) => Some((Reason::ProjectCap, None)),
        _ => None,
    }
}

/// A job that some online runner could take: what it waits for. `usable` are those of `able` in scopes that nothing blocks.
pub(super) fn waiting(
    job: &Live,
    scopes: &[ScopePart],
    able: &[&Judged<'_>],
    usable: &[&Judged<'_>],
    place: Option<&Place>,
) -> Why {
    let with =
        |reason: RunnerReason| usable.iter().filter(move |one| one.reason == reason).map(|one| one.runner.record.id);
    let few = |ids: &mut dyn Iterator<Item = u64>| ids.take(runners::EXAMPLES_MAX).collect::<Vec<_>>();
    let (reason, summary) = if usable.is_empty() {
        let mine = scopes.iter().filter(|part| able.iter().any(|one| part.is_of(one)));
        blocked(job, mine.collect::<Vec<_>>().as_slice())
    } else if let Some(id) = with(RunnerReason::Free).next()
        && let Some(likes) = job.likes.as_ref().filter(|likes| likes.left_ms > 0)
    {
        let who = format!("runner {} ({}), which had the last job like it", likes.runner_id, likes.system_id);
        let left = duration(likes.left_ms);
        (Reason::AffinityWait, format!("it waits for {who}, at most {left} more; runner {id} has a free slot for it"))
    } else if let Some(id) = with(RunnerReason::Free).next() {
        (Reason::SlotFree, format!("runner {id} has a free slot for it: it should start within moments"))
    } else if with(RunnerReason::BackingOff).next().is_some() {
        let n = with(RunnerReason::BackingOff).count() as u64;
        let named = runners_named(n, &few(&mut with(RunnerReason::BackingOff)));
        let have = if n == 1 { "has a free slot, but" } else { "have free slots, but" };
        (
            Reason::BackingOff,
            format!("{named} {have} declined a job a moment ago, did not accept it in time, or went away with it"),
        )
    } else {
        let n = usable.len() as u64;
        let mut all = usable.iter().map(|one| one.runner.record.id);
        let busy = match n {
            1 => format!("the only runner that could take it, {}, is busy", runners_named(1, &few(&mut all))),
            _ => format!("all {n} runners that could take it are busy"),
        };
        behind(job, &busy, place)
    };
    Why { reason, summary, missing: Vec::new(), nearest: Vec::new() }
}

fn behind(job: &Live, busy: &str, place: Option<&Place>) -> (Reason, String) {
    let (tenants, jobs) = place.map_or((0, Default::default()), |place| (place.tenants_ahead, place.jobs_ahead));
    let own = place.is_some_and(|place| place.scope == Scope::Instance);
    let whose = if own { format!(" of its tenant {}", quoted(job.tenant.name())) } else { String::new() };
    let jobs_go = if jobs.count == 1 { "goes" } else { "go" };
    let jobs = (jobs.count > 0).then(|| format!("{}{whose} {jobs_go} first", count(jobs, "job", "jobs")));
    match (tenants, jobs) {
        (0, None) => (Reason::NoSlot, format!("{busy}; it is next")),
        (0, Some(jobs)) => (Reason::BehindJobs, format!("{busy}; {jobs}")),
        (n, jobs) => {
            let tenants = if n == 1 { "1 other tenant is".to_owned() } else { format!("{n} other tenants are") };
            let jobs = jobs.map(|jobs| format!(", and {jobs}")).unwrap_or_default();
            (Reason::BehindTenants, format!("{busy}; {tenants} served before its tenant{jobs}"))
        }
    }
}

/// All scopes in which some runner could take it are held up: by what holds up the first.
fn blocked(job: &Live, scopes: &[&ScopePart]) -> (Reason, String) {
    let first = scopes.iter().find_map(|part| part.blocked.map(|reason| (reason, part)));
    let Some((reason, part)) = first else {
        return (Reason::SlotFree, "a runner is about to take it".to_owned());
    };
    let paused = |what: String| {
        let pause = part.pause.clone().unwrap_or_default();
        let by = if pause.by.is_empty() { String::new() } else { format!(" by {}", quoted(&pause.by)) };
        let note = if pause.note.is_empty() { String::new() } else { format!(" ({})", quoted(&pause.note)) };
        let until = pause.until_ms.map(|until| format!(", for another {}", duration(until.saturating_sub(job.now_ms))));
        format!("{what} paused{by}{note}{}", until.unwrap_or_default())
    };
    let cap = |running: &super::Running| {
        format!("{} of at most {} on instance runners", running.running, running.max_running.unwrap_or(0))
    };
    let summary = match reason {
        Reason::PausedAll => paused("everything is".to_owned()),
        Reason::PausedTenant => paused(format!("its tenant {} is", quoted(job.tenant.name()))),
        Reason::PausedProject => paused(format!("its project {} is", job.project.id)),
        Reason::PausedLane => paused(format!("its lane {} is", part.scope)),
        Reason::TenantCap => {
            let tenant = quoted(job.tenant.name());
            format!("its tenant {tenant} has as many jobs as it may: {}", cap(&job.tenant_running))
        }
        _ => format!("its project {} has as many jobs as it may: {}", job.project.id, cap(&job.project_running)),
    };
    (reason, summary)
}

pub(super) fn unknown(lag: InboxLag) -> Why {
    let inbox = match lag.entries {
        0 => String::new(),
        n => format!(
            ", or is among the {} that no pod has applied yet (the oldest of {} ago)",
            if n == 1 { "1 entry of the inbox".to_owned() } else { format!("{n} entries of the inbox") },
            duration(lag.oldest_ms)
        ),
    };
    let summary = format!("it is not known: it was never published, or ended too long ago to be remembered{inbox}");
    Why { reason: Reason::Unknown, summary, missing: Vec::new(), nearest: Vec::new() }
}

pub(super) fn ended(outcome: &str) -> Why {
    let how = match outcome {
        "success" => "it ended with success".to_owned(),
        "failed" => "it failed".to_owned(),
        "canceled" => "it was canceled".to_owned(),
        other => format!("it ended: {other}"),
    };
    Why { reason: Reason::Ended, summary: how, missing: Vec::new(), nearest: Vec::new() }
}

/// A job that a runner has.
pub(super) fn held(job: &Live, part: &JobPart) -> Why {
    let who = part.holder.as_ref().map_or("a runner".to_owned(), |held| {
        format!("runner {} ({}) at pod {}", held.runner_id, held.system_id, held.pod)
    });
    let left = part.deadline_in_ms.unwrap_or(0);
    let left_text = duration(left.unsigned_abs());
    let since = duration(part.in_state_ms);
    let (reason, summary) = match job.state {
        State::Assigned if left >= 0 => {
            (Reason::Assigned, format!("assigned to {who}, which has {left_text} left to accept it"))
        }
        State::Assigned => {
            (Reason::Assigned, format!("assigned to {who}, which did not accept it: it is about to be given back"))
        }
        State::Canceling => {
            let why = part.cancel_reason.as_deref().filter(|reason| !reason.is_empty());
            let why = why.map(|reason| format!(" ({})", quoted(reason))).unwrap_or_default();
            let grace =
                if left >= 0 { format!("it has {left_text} left to stop") } else { "its time is over".to_owned() };
            (Reason::Canceling, format!("being canceled{why}: {who} was told {since} ago; {grace}"))
        }
        _ => {
            let beat = part.beat_age_ms.map(|age| format!(", last heard of {} ago", duration(age))).unwrap_or_default();
            let lease = if left >= 0 { String::new() } else { format!("; its lease ran out {left_text} ago") };
            (Reason::Running, format!("running for {since} on {who}{beat}{lease}"))
        }
    };
    Why { reason, summary, missing: Vec::new(), nearest: Vec::new() }
}
