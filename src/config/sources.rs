//! Where values come from: flags, `JOB_ROUTER_*` variables and a TOML file.
//!
//! Arrives: parsed flags, the environment, the file's text. Leaves: what was [`Given`], lowest precedence first, as
//! text with its origin, and the mistakes in names and form. Values are checked elsewhere.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, value_parser};
use toml::de::{DeTable, DeValue};

use super::keys::{self, Key};
use super::mistakes::{Mistake, Origin};

/// The variable that names the file, as `--config` does.
const FILE_VARIABLE: &str = "JOB_ROUTER_CONFIG";
const PREFIX: &str = "JOB_ROUTER_";
/// Where the router is, for `job-router runner`.
pub const RUNNER_URL: &str = "JOB_ROUTER_URL";
/// The file that holds its token, for `job-router runner`.
pub const RUNNER_TOKEN_FILE: &str = "JOB_ROUTER_TOKEN_FILE";
/// Variables with our prefix that are no settings of a pod: one subcommand reads them, all others pass them over.
pub const OTHER_VARIABLES: [&str; 2] = [RUNNER_URL, RUNNER_TOKEN_FILE];

/// A value that somebody gave.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) key: &'static Key,
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// The flags: `--config`, and one for each key, with what the defaults file says about it as help.
pub fn flags() -> Vec<Arg> {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help(format!("TOML file with settings, each named as its flag with _ for -. [env: {FILE_VARIABLE}]"));
    std::iter::once(file).chain(keys::keys().iter().map(flag)).collect()
}

/// All that was given, in the order file, variables, flags: the last of a key wins.
pub(super) fn gather(
    flags: &ArgMatches,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    mistakes: &mut Vec<Mistake>,
) -> Vec<Given> {
    let mut named = None;
    let from_variables = read_variables(variables, &mut named, mistakes);
    let mut given = match flags.get_one::<PathBuf>("config").cloned().or(named) {
        Some(path) => read_file(&path, mistakes),
        None => Vec::new(),
    };
    given.extend(from_variables);
    given.extend(keys::keys().iter().filter_map(|key| {
        let text = flags.get_one::<String>(key.name)?.clone();
        Some(Given { key, text, origin: Origin::Flag(key.flag.clone()) })
    }));
    given
}

/// The text of a TOML string or whole number; else what it is instead.
pub(super) fn scalar_text(value: &DeValue<'_>) -> Result<String, &'static str> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().replace('_', "")),
        other => Err(other.type_str()),
    }
}

fn flag(key: &Key) -> Arg {
    let default = if key.default.is_empty() { "not set" } else { &key.default };
    let short = key.help.split_inclusive(". ").next().unwrap_or_default();
    let long = format!("{} Must be {}. [default: {default}] [env: {}]", key.help, key.shape, key.variable);
    Arg::new(key.name)
        .long(key.flag.clone())
        .value_name("VALUE")
        .allow_hyphen_values(true)
        .help(format!("{} [default: {default}]", short.trim_end()))
        .long_help(long)
}

fn read_variables(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    file: &mut Option<PathBuf>,
    mistakes: &mut Vec<Mistake>,
) -> Vec<Given> {
    let mut given = Vec::new();
    let mut ours: Vec<(String, OsString)> = variables
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, value)| name.starts_with(PREFIX) && !is_service_link(name, &value.to_string_lossy()))
        .filter(|(name, _)| !OTHER_VARIABLES.contains(&name.as_str()))
        .collect();
    ours.sort();
    for (name, value) in ours {
        if name == FILE_VARIABLE {
            *file = Some(value.into());
            continue;
        }
        let origin = Origin::Variable(name.clone());
        match (keys::keys().iter().find(|key| key.variable == name), value.into_string()) {
            (None, _) => {
                let known = keys::keys().iter().map(|key| key.variable.as_str());
                let known = known.chain([FILE_VARIABLE]).chain(OTHER_VARIABLES);
                mistakes.push(Mistake { origin, what: unknown("variable", &name, known) });
            }
            (Some(_), Err(_)) => mistakes.push(Mistake { origin, what: "must be UTF-8".to_owned() }),
            (Some(key), Ok(text)) => given.push(Given { key, text, origin }),
        }
    }
    given
}

/// Whether this variable is one that Kubernetes makes in every pod for a service, as it does for one named
/// `job-router`: <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_url = value.starts_with("tcp://") || value.starts_with("udp://");
    let after_port = name.rsplit_once("_PORT_").map(|(_, rest)| rest);
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && is_url)
        || after_port.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn read_file(path: &Path, mistakes: &mut Vec<Mistake>) -> Vec<Given> {
    let at = |line| Origin::File { path: path.to_owned(), line };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            mistakes.push(Mistake { origin: at(None), what: format!("cannot be read: {}", error.kind()) });
            return Vec::new();
        }
    };
    let line_of = |start: usize| Some(1 + text[..start].bytes().filter(|b| *b == b'\n').count());
    let (table, errors) = DeTable::parse_recoverable(&text);
    for error in errors {
        let line = error.span().and_then(|span| line_of(span.start));
        mistakes.push(Mistake { origin: at(line), what: format!("is not TOML: {}", error.message()) });
    }
    let mut given = Vec::new();
    for (name, value) in table.get_ref() {
        let origin = at(line_of(name.span().start));
        match (keys::find(name.get_ref()), scalar_text(value.get_ref())) {
            (None, _) => {
                let known = keys::keys().iter().map(|key| key.name);
                mistakes.push(Mistake { origin, what: unknown("key", name.get_ref(), known) });
            }
            (Some(key), Err(found)) => {
                let what = format!("{} must be {}; is a TOML {found}", key.name, key.shape);
                mistakes.push(Mistake { origin, what });
            }
            (Some(key), Ok(text)) => given.push(Given { key, text, origin }),
        }
    }
    given
}

/// That there is no such key, and the nearest there is if it may have been meant.
fn unknown<'a>(kind: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    // The prefix that all variables share would make any two alike.
    let likeness = |candidate: &str| {
        let [name, candidate] = [name, candidate].map(|name| name.strip_prefix(PREFIX).unwrap_or(name));
        strsim::normalized_damerau_levenshtein(name, candidate)
    };
    let nearest = known
        .map(|candidate| (likeness(candidate), candidate))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .filter(|(likeness, _)| *likeness > 0.7);
    let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
    match nearest {
        Some((_, candidate)) => format!("there is no {kind} {name}; did you mean {candidate}?"),
        None => format!("there is no {kind} {name}"),
    }
}
