//! What an operator holds up: everything, a lane, a tenant or a project, for a time or until told otherwise.
//!
//! Arrives: an operator's words. Leaves: targets and notes that cannot be wrong. While something is paused nothing new of it is
//! assigned to a runner; what is queued keeps its place, new jobs are queued, running ones go on, and a cancel is heard.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::job::{Malformed, ProjectId, Tenant};
use crate::runner::Lane;

/// The longest note, in bytes.
pub const NOTE_MAX_BYTES: usize = 255;

/// What is paused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// All jobs.
    All,
    /// A lane. Its jobs may still be taken in other lanes they stand in.
    Lane(Lane),
    /// All jobs of a tenant.
    Tenant(Tenant),
    /// All jobs of a project.
    Project(ProjectId),
}

/// A line of text for people: at most 255 bytes without control characters. May be empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Note(Arc<str>);

/// A pause as it stands in Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// What is paused.
    pub target: Target,
    /// Since when, in Unix ms of Redis' clock.
    pub since_ms: u64,
    /// When it ends by itself, in Unix ms of Redis' clock; none: when an operator says so.
    pub until_ms: Option<u64>,
    /// Who wanted it.
    pub by: Note,
    /// Why.
    pub note: Note,
}

/// A pause as it is written in the hash `paused`, beside its target.
#[derive(Deserialize)]
struct Record {
    since_ms: u64,
    #[serde(default)]
    until_ms: Option<u64>,
    by: Note,
    note: Note,
}

// === impl Target ===

impl Target {
    /// How it stands in Redis: only letters, digits and `:%_.-`, whatever the tenant is called.
    pub fn field(&self) -> String {
        match self {
            Self::Tenant(tenant) => format!("tenant:{}", tenant.key()),
            target => target.to_string(),
        }
    }

    /// The target whose [`field`](Self::field) this is.
    pub fn from_field(field: &str) -> Result<Self, Malformed> {
        match field.strip_prefix("tenant:") {
            Some(key) => Tenant::from_key(key).map(Self::Tenant),
            None => field.parse(),
        }
    }

    /// Whether a job of this tenant and project is held up by it in a lane.
    pub fn holds(&self, lane: Lane, tenant: &Tenant, project: ProjectId) -> bool {
        match self {
            Self::All => true,
            Self::Lane(paused) => *paused == lane,
            Self::Tenant(paused) => paused == tenant,
            Self::Project(paused) => *paused == project,
        }
    }
}

/// As people write it: `all`, `lane:<lane>`, `tenant:<name>`, `project:<id>`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Lane(lane) => write!(f, "lane:{lane}"),
            Self::Tenant(tenant) => write!(f, "tenant:{}", tenant.name()),
            Self::Project(id) => write!(f, "project:{id}"),
        }
    }
}

impl FromStr for Target {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        match text.split_once(':') {
            None if text == "all" => Ok(Self::All),
            Some(("lane", lane)) => lane.parse().map(Self::Lane),
            Some(("tenant", name)) => Tenant::new(name).map(Self::Tenant),
            Some(("project", id)) => id.parse().map(Self::Project),
            _ => Err(Malformed("must be all, lane:<lane>, tenant:<name> or project:<id>")),
        }
    }
}

// === impl Note ===

impl Note {
    /// A line of at most [`NOTE_MAX_BYTES`] without control characters.
    pub fn new(text: &str) -> Result<Self, Malformed> {
        if text.len() > NOTE_MAX_BYTES || text.chars().any(char::is_control) {
            return Err(Malformed("must be at most 255 bytes without control characters"));
        }
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text as JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(&*self.0).expect("a string is JSON")
    }
}

impl FromStr for Note {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        Self::new(text)
    }
}

impl TryFrom<String> for Note {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Self, Malformed> {
        Self::new(&text)
    }
}

impl From<Note> for String {
    fn from(note: Note) -> Self {
        note.0.as_ref().to_owned()
    }
}

// === impl Pause ===

impl Pause {
    /// Reads one field of the hash `paused`, and its value.
    pub fn read(field: &str, value: &str) -> Result<Self, Malformed> {
        let target = Target::from_field(field)?;
        let record = serde_json::from_str(value).map_err(|_| Malformed("must be a pause of this version"))?;
        let Record { since_ms, until_ms, by, note } = record;
        Ok(Self { target, since_ms, until_ms, by, note })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::runner::Scope;
    use crate::tags::Capability;

    fn lane() -> Lane {
        Lane { scope: Scope::Group(3), fingerprint: Capability::default().fingerprint() }
    }

    proptest! {
        #[test]
        fn a_target_reads_back_in_both_spellings_and_its_field_needs_no_escape_in_json(name in "\\PC{1,16}") {
            let tenant = Tenant::new(&name).expect("printable and short");
            for target in [Target::All, Target::Lane(lane()), Target::Tenant(tenant), Target::Project(ProjectId(7))] {
                prop_assert_eq!(target.to_string().parse(), Ok(target.clone()));
                let field = target.field();
                prop_assert_eq!(Target::from_field(&field), Ok(target));
                prop_assert_eq!(serde_json::to_string(&field).expect("JSON"), format!("\"{field}\""));
            }
        }
    }

    #[test]
    fn what_is_no_target_and_no_note_is_refused() {
        for text in ["", "all:1", "lane", "lane:instance", "tenant:", "project:-1", "project:x", "group:1"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
        assert!(Note::new("").is_ok() && Note::new(&"x".repeat(255)).is_ok());
        assert!(Note::new(&"x".repeat(256)).is_err() && Note::new("two\nlines").is_err());
    }

    #[test]
    fn a_target_holds_up_its_own_jobs_and_no_others() {
        let (tenant, project) = (Tenant::of_namespace(1), ProjectId(7));
        let other = Lane { scope: Scope::Instance, ..lane() };
        let holds = |target: Target| target.holds(lane(), &tenant, project);
        assert!(holds(Target::All) && holds(Target::Lane(lane())) && !holds(Target::Lane(other)));
        assert!(holds(Target::Tenant(tenant.clone())) && !holds(Target::Tenant(Tenant::of_namespace(2))));
        assert!(holds(Target::Project(project)) && !holds(Target::Project(ProjectId(8))));
    }
}
