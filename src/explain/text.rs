//! An explanation for people: the answer, then a line for each thing it rests on.

use std::fmt::Write;

use super::facts::{Count, Running};
use super::reason::{Gap, RunnerReason};
use super::{Explanation, Group, JobPart, Place, ScopePart};

/// The longest text from outside that is shown.
const SHOWN_MAX: usize = 100;

/// All of it.
pub(super) fn lines(told: &Explanation) -> String {
    let mut text = match &told.job {
        Some(job) if told.state == "queued" => {
            format!("job {} queued for {}: {}\n", told.id, duration(job.waited_ms), told.why.summary)
        }
        _ => format!("job {}: {}\n", told.id, told.why.summary),
    };
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            writeln!(text, "  {name:<12} {value}").expect("a String takes all");
        }
    };
    line(
        "reason",
        format!("{}{}", told.why.reason.as_str(), if told.stuck { " (stuck: somebody has to act)" } else { "" }),
    );
    if let Some(job) = &told.job {
        line("needs", needs(job));
        let weight = format!("{}, weight {}, {}", quoted(&job.tenant), job.weight, running(job.tenant_running));
        line("tenant", weight);
        line("project", format!("{}, priority {}, {}", job.project_id, job.priority, running(job.project_running)));
        if job.failed_deliveries > 0 {
            line("deliveries", format!("{} failed", job.failed_deliveries));
        }
    }
    line("place", told.place.as_ref().map(place).unwrap_or_default());
    if let Some(guess) = &told.estimate {
        let least = if guess.at_least { "at least " } else { "" };
        line(
            "estimate",
            format!(
                "{least}about {}: a guess, from {} jobs that these runners took in the last {}",
                duration(guess.wait_ms),
                guess.starts,
                duration(guess.over_ms)
            ),
        );
    }
    for part in &told.scopes {
        line(&part.scope.to_string(), scope(part));
        part.groups.iter().for_each(|one| line("", group(one)));
    }
    if !told.elsewhere.is_empty() {
        line("elsewhere", "runners that serve none of its scopes".to_owned());
        told.elsewhere.iter().for_each(|one| line("", group(one)));
    }
    if !told.silent_pods.is_empty() {
        let pods = told.silent_pods.iter().map(String::as_str).take(super::runners::EXAMPLES_MAX).collect::<Vec<_>>();
        let more = if told.silent_pods.len() > pods.len() { ", …" } else { "" };
        line(
            "not heard",
            format!("pods {}{more} do not say which runners they have: these look offline", pods.join(", ")),
        );
    }
    text
}

fn needs(job: &JobPart) -> String {
    let list = |what: &str, names: &[String]| {
        let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
        (!names.is_empty()).then(|| format!("{what} {}", names.join(", ")))
    };
    let tags = list("tags", &job.tags).unwrap_or_else(|| "a runner that takes jobs without tags".to_owned());
    let protected = if job.protected { "on a protected ref" } else { "not on a protected ref" };
    [Some(tags), list("features", &job.requires), Some(protected.to_owned())]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("; ")
}

fn running(running: Running) -> String {
    let most = running.max_running.map(|max| format!(" of at most {max}")).unwrap_or_default();
    format!("{}{most} running on instance runners", running.running)
}

fn place(place: &Place) -> String {
    let own = if place.tenants_ahead > 0 || place.scope == crate::runner::Scope::Instance {
        format!("{}, ", count(Count { count: place.tenants_ahead, at_least: false }, "tenant ahead", "tenants ahead"))
    } else {
        String::new()
    };
    let whose = if own.is_empty() { "" } else { " of its own tenant" };
    format!("{own}{}{whose}", count(place.jobs_ahead, "job ahead", "jobs ahead"))
}

fn scope(part: &ScopePart) -> String {
    let blocked = part.blocked.map(|reason| format!(", blocked: {}", reason.as_str())).unwrap_or_default();
    let runners = count(Count { count: part.runners, at_least: false }, "runner", "runners");
    let lane = part.place.as_ref().map(|place| format!(", {}", self::place(place))).unwrap_or_default();
    format!("{runners}{blocked}{lane}")
}

fn group(group: &Group) -> String {
    let named = runners_named(group.runners, &group.examples);
    let one = group.runners == 1;
    match group.reason {
        RunnerReason::Free => format!("{named} {} a free slot", if one { "has" } else { "have" }),
        RunnerReason::NoSlot => format!("{named} {} no free slot", if one { "has" } else { "have" }),
        RunnerReason::BackingOff => format!("{named} declined a job a moment ago"),
        RunnerReason::Offline => format!("{named} {} offline", if one { "is" } else { "are" }),
        RunnerReason::Missing if group.missing.is_empty() => format!("{named} lack other things"),
        RunnerReason::Missing => format!("{named} {}", gaps_of(&group.missing, group.runners)),
    }
}

/// "runner 7", "runners 7, 8", or "9 runners (1, 2, 3, 4, 5, …)".
pub(super) fn runners_named(runners: u64, examples: &[u64]) -> String {
    match (runners, examples) {
        (1, [id]) => format!("runner {id}"),
        (n, []) => format!("{n} runners"),
        (n, examples) if n == examples.len() as u64 => format!("runners {}", ids(n, examples)),
        (n, examples) => format!("{n} runners ({})", ids(n, examples)),
    }
}

/// "7, 8", with dots where there are more.
pub(super) fn ids(runners: u64, examples: &[u64]) -> String {
    let mut ids: Vec<String> = examples.iter().map(u64::to_string).collect();
    if runners > examples.len() as u64 {
        ids.push("…".to_owned());
    }
    ids.join(", ")
}

/// What runners lack, as the end of a sentence about so many: "lacks tag `a` and tag `b`, and is paused".
pub(super) fn gaps_of(gaps: &[Gap], runners: u64) -> String {
    let one = runners == 1;
    let (is, takes, serves) = if one { ("is", "takes", "serves") } else { ("are", "take", "serve") };
    let (a, s) = if one { ("an instance runner", "a group runner") } else { ("instance runners", "group runners") };
    let lacks = gaps.iter().filter_map(|gap| match gap {
        Gap::Tag(tag) => Some(format!("tag {}", quoted(tag))),
        Gap::Feature(name) => Some(format!("feature {}", quoted(name))),
        _ => None,
    });
    let lacks: Vec<String> = lacks.collect();
    let mut parts = Vec::new();
    if !lacks.is_empty() {
        parts.push(format!("{} {}", if one { "lacks" } else { "lack" }, lacks.join(" and ")));
    }
    parts.extend(gaps.iter().filter_map(|gap| {
        Some(match gap {
            Gap::Tag(_) | Gap::Feature(_) => return None,
            Gap::Paused => format!("{is} paused"),
            Gap::RunUntagged => format!("{takes} no jobs without tags"),
            Gap::Protected => format!("{takes} only jobs on protected refs"),
            Gap::InstanceRunners => format!("{is} {a}"),
            Gap::GroupRunners => format!("{is} {s}"),
            Gap::Group => format!("{serves} other groups"),
            Gap::Project => format!("{serves} other projects"),
        })
    }));
    parts.join(", and ")
}

/// "1 job", "at least 5 jobs".
pub(super) fn count(count: Count, one: &str, more: &str) -> String {
    let least = if count.at_least { "at least " } else { "" };
    format!("{least}{} {}", count.count, if count.count == 1 { one } else { more })
}

/// Text from outside, between backticks: no control characters, and not much of it.
pub(super) fn quoted(text: &str) -> String {
    let shown: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(SHOWN_MAX).collect();
    let dots = if text.chars().count() > SHOWN_MAX { "…" } else { "" };
    format!("`{shown}{dots}`")
}

/// "850 ms", "12 s", "2 min 10 s", "3 h 5 min", "4 d 1 h".
pub(super) fn duration(ms: u64) -> String {
    let (s, pair) =
        (
            ms / 1_000,
            |big: u64, name: &str, small: u64, less: &str| {
                if small == 0 { format!("{big} {name}") } else { format!("{big} {name} {small} {less}") }
            },
        );
    match s {
        0 => format!("{ms} ms"),
        1..60 => format!("{s} s"),
        60..3_600 => pair(s / 60, "min", s % 60, "s"),
        3_600..86_400 => pair(s / 3_600, "h", s % 3_600 / 60, "min"),
        _ => pair(s / 86_400, "d", s % 86_400 / 3_600, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_runners_and_gaps_read_as_sentences_do() {
        let told = [850, 12_000, 60_000, 130_000, 11_100_000, 349_200_000].map(duration);
        assert_eq!(told, ["850 ms", "12 s", "1 min", "2 min 10 s", "3 h 5 min", "4 d 1 h"]);
        assert_eq!(runners_named(1, &[7]), "runner 7");
        assert_eq!(runners_named(2, &[7, 8]), "runners 7, 8");
        assert_eq!(runners_named(9, &[1, 2]), "9 runners (1, 2, …)");
        let gaps = [Gap::Paused, Gap::Tag("a".into()), Gap::Tag("b".into()), Gap::Group];
        assert_eq!(gaps_of(&gaps, 1), "lacks tag `a` and tag `b`, and is paused, and serves other groups");
        assert_eq!(gaps_of(&gaps[..1], 2), "are paused");
    }

    #[test]
    fn text_from_outside_is_shown_without_control_characters_and_cut() {
        assert_eq!(quoted("a\u{1b}[31m"), "`a\u{fffd}[31m`");
        assert_eq!(quoted(&"x".repeat(200)), format!("`{}…`", "x".repeat(100)));
    }
}
