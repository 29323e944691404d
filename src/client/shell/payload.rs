//! What the shell executor reads of a job: GitLab's job JSON, as far as a shell needs it.

use std::time::Duration;

use serde::Deserialize;

/// The job. Unknown fields are ignored; a job without `steps` is not for a shell.
#[derive(Debug, Deserialize)]
pub(super) struct Payload {
    pub(super) steps: Vec<Step>,
    #[serde(default)]
    pub(super) variables: Vec<Variable>,
    #[serde(default)]
    runner_info: RunnerInfo,
}

/// Lines to run in one shell.
#[derive(Debug, Deserialize)]
pub(super) struct Step {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    script: Vec<String>,
    /// Seconds; absent or 0: the job's own limit.
    #[serde(default)]
    timeout: u64,
    #[serde(default)]
    pub(super) when: When,
    #[serde(default)]
    pub(super) allow_failure: bool,
}

/// After which past a step runs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum When {
    /// No step has failed yet.
    #[default]
    OnSuccess,
    /// A step has failed.
    OnFailure,
    /// Either.
    Always,
}

/// One environment variable. Its value is taken as it is: references to others are not expanded.
#[derive(Debug, Deserialize)]
pub(super) struct Variable {
    pub(super) key: String,
    #[serde(default)]
    pub(super) value: String,
    #[serde(default)]
    masked: bool,
    /// The variable holds the name of a file with the value.
    #[serde(default)]
    pub(super) file: bool,
}

#[derive(Debug, Default, Deserialize)]
struct RunnerInfo {
    /// Seconds; 0: none.
    #[serde(default)]
    timeout: u64,
}

// === impl Payload ===

impl Payload {
    /// Reads and checks a payload. The error is for a log, so it holds nothing of the payload, as serde's own text does.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let payload: Self = serde_json::from_slice(json).map_err(|error| {
            format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column())
        })?;
        for variable in &payload.variables {
            let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if variable.key.is_empty() || !variable.key.bytes().all(good) || variable.key.len() > 255 {
                return Err("a variable's key is not 1 to 255 of [A-Za-z0-9_]".to_owned());
            }
            if !variable.file && variable.value.contains('\0') {
                return Err("a variable holds a NUL".to_owned());
            }
        }
        Ok(payload)
    }

    /// The job's own limit.
    pub(super) fn timeout(&self) -> Option<Duration> {
        seconds(self.runner_info.timeout)
    }

    /// The values that must not be shown.
    pub(super) fn masked(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().filter(|variable| variable.masked).map(|variable| variable.value.as_str())
    }
}

// === impl Step ===

impl Step {
    /// The step's own limit.
    pub(super) fn timeout(&self) -> Option<Duration> {
        seconds(self.timeout)
    }

    /// The script as GitLab's runner writes it: each line shown before it runs, the first failing one ends it.
    pub(super) fn bash(&self) -> String {
        let mut bash = String::from("set -eo pipefail\nset +o noclobber\n");
        for line in &self.script {
            let first = line.lines().next().unwrap_or_default();
            let more = if line.lines().nth(1).is_some() { " # collapsed multi-line command" } else { "" };
            bash.push_str(&format!("printf '%s\\n' {}\n{line}\n", quote(&format!("$ {first}{more}"))));
        }
        bash
    }
}

fn seconds(limit: u64) -> Option<Duration> {
    // A year is as good as for ever, and keeps deadlines in the clock's range.
    (limit > 0).then(|| Duration::from_secs(limit.min(365 * 24 * 3600)))
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_where_and_nothing_of_the_payload() {
        let wrong = [r#"{"steps": "hunter2"}"#, r#"{"steps": [{"when": "hunter2"}]}"#, r#"{"steps": [], "hunter2"}"#];
        let errors = wrong.map(|json| Payload::parse(json.as_bytes()).expect_err("is wrong"));
        let said =
            ["Data error at line 1 column 19", "Data error at line 1 column 29", "Syntax error at line 1 column 24"];
        assert_eq!(errors, said);
    }

    #[test]
    fn a_variables_key_is_not_told_either() {
        let nul = r#"{"steps": [], "variables": [{"key": "hunter2", "value": "\u0000"}]}"#;
        assert_eq!(Payload::parse(nul.as_bytes()).expect_err("is wrong"), "a variable holds a NUL");
    }
}
