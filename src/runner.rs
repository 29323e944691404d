//! What a runner is to a job: its registry record, its class, and the matching rule.
//!
//! Rule (DESIGN 8, from GitLab's `Ci::Queue`): a runner may run a job exactly when the scope matches, the job's
//! tags are a subset of the runner's, an untagged job meets `run_untagged`, `protected_only` meets a protected
//! job, `requires` is a subset of the features, and the runner is not paused. Scope is decided by the lane a
//! job is indexed in; the rest by [`RunnerClass::can_run`].

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::job::{Malformed, ProjectFacts, RunnerId};
use crate::tags::{Capability, Fingerprint, TagSet};

/// Which runners may take a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Any instance runner.
    Instance,
    /// Runners of this group, an ancestor of the project.
    Group(u64),
    /// Runners of this project.
    Project(u64),
}

/// Jobs that are all alike to a runner: an index over buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// Which runners may take its jobs.
    pub scope: Scope,
    /// What its jobs need.
    pub fingerprint: Fingerprint,
}

/// What kind of runner it is; decides its scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunnerType {
    /// Serves every project that allows instance runners.
    Instance,
    /// Serves the projects below its groups.
    Group,
    /// Serves its projects.
    Project,
}

/// A runner's registry record, from `runner.upserted`. Holds the token's hash, never the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerRecord {
    /// The runner's id.
    pub id: u64,
    /// SHA-256 of its token, as 64 lower-case hex digits.
    pub token_sha256: String,
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: RunnerType,
    /// Its groups, for a group runner.
    #[serde(default)]
    pub group_ids: Vec<u64>,
    /// Its projects, for a project runner.
    #[serde(default)]
    pub project_ids: Vec<u64>,
    /// Its tags.
    #[serde(default)]
    pub tags: TagSet,
    /// Whether it takes jobs without tags.
    #[serde(default)]
    pub run_untagged: bool,
    /// Whether it takes only jobs on protected refs.
    #[serde(default)]
    pub protected_only: bool,
    /// Whether it takes no jobs for now.
    #[serde(default)]
    pub paused: bool,
    /// Higher is asked first; lower ones get what is left over.
    #[serde(default)]
    pub priority: i32,
    /// The most jobs it may run at once over all its managers.
    #[serde(default)]
    pub max_running: Option<u32>,
}

/// Runners that are all alike to a job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunnerClass {
    /// The scopes it serves. Empty when paused.
    pub scopes: BTreeSet<Scope>,
    /// Its tags.
    pub tags: TagSet,
    /// Its features.
    pub features: TagSet,
    /// Whether it takes jobs without tags.
    pub run_untagged: bool,
    /// Whether it takes only protected jobs.
    pub protected_only: bool,
    /// Higher is asked first.
    pub priority: i32,
}

/// One thing that keeps a runner from a job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Missing {
    /// It lacks this tag of the job.
    Tag(Box<str>),
    /// The job has no tags, and it takes only jobs with tags.
    RunUntagged,
    /// The job is not on a protected ref, and it takes only those that are.
    Protected,
    /// It lacks this feature that the job requires.
    Feature(Box<str>),
    /// It does not serve the scope; a paused one serves none.
    Scope,
}

// === impl Scope ===

impl Scope {
    /// The scopes whose runners may take this project's jobs.
    pub fn of_project(facts: &ProjectFacts) -> impl Iterator<Item = Scope> + '_ {
        let instance = facts.instance_runners.then_some(Scope::Instance);
        let groups = facts.namespace_ids.iter().filter(|_| facts.group_runners).map(|id| Scope::Group(*id));
        instance.into_iter().chain(groups).chain([Scope::Project(facts.id.0)])
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance => f.write_str("instance"),
            Self::Group(id) => write!(f, "group:{id}"),
            Self::Project(id) => write!(f, "project:{id}"),
        }
    }
}

impl FromStr for Scope {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = Malformed("must be instance, group:<id> or project:<id>");
        match text.split_once(':') {
            None if text == "instance" => Ok(Self::Instance),
            Some(("group", id)) => id.parse().map(Self::Group).map_err(|_| malformed),
            Some(("project", id)) => id.parse().map(Self::Project).map_err(|_| malformed),
            _ => Err(malformed),
        }
    }
}

// === impl Lane ===

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.scope, self.fingerprint)
    }
}

impl FromStr for Lane {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (scope, fingerprint) = text.rsplit_once(':').ok_or(Malformed("must be <scope>:<fingerprint>"))?;
        Ok(Self { scope: scope.parse()?, fingerprint: fingerprint.parse()? })
    }
}

// === impl RunnerRecord ===

impl RunnerRecord {
    /// The runner's id.
    pub fn runner_id(&self) -> RunnerId {
        RunnerId(self.id)
    }

    /// The class of a manager of this runner that has these features.
    pub fn class(&self, features: &TagSet) -> RunnerClass {
        let scopes = match self.kind {
            _ if self.paused => BTreeSet::new(),
            RunnerType::Instance => BTreeSet::from([Scope::Instance]),
            RunnerType::Group => self.group_ids.iter().map(|id| Scope::Group(*id)).collect(),
            RunnerType::Project => self.project_ids.iter().map(|id| Scope::Project(*id)).collect(),
        };
        RunnerClass {
            scopes,
            tags: self.tags.clone(),
            features: features.clone(),
            run_untagged: self.run_untagged,
            protected_only: self.protected_only,
            priority: self.priority,
        }
    }
}

// === impl RunnerClass ===

impl RunnerClass {
    /// Whether a runner of this class has what the job needs, scope apart.
    pub fn can_run(&self, job: &Capability) -> bool {
        job.tags.is_subset(&self.tags)
            && (!job.tags.is_empty() || self.run_untagged)
            && (!self.protected_only || job.protected)
            && job.requires.is_subset(&self.features)
    }

    /// What keeps a runner of this class from jobs of a lane with this scope and capability: nothing exactly when
    /// it [`matches`](Self::matches).
    pub fn missing(&self, scope: Scope, job: &Capability) -> Vec<Missing> {
        let mut missing = self.missing_to_run(job);
        if !self.scopes.contains(&scope) {
            missing.push(Missing::Scope);
        }
        missing
    }

    /// What it lacks of what the job needs, scope apart: nothing exactly when it [`can_run`](Self::can_run) the job.
    pub fn missing_to_run(&self, job: &Capability) -> Vec<Missing> {
        let tags = job.tags.iter().filter(|tag| !self.tags.contains(tag)).map(|tag| Missing::Tag(tag.into()));
        let untagged = (job.tags.is_empty() && !self.run_untagged).then_some(Missing::RunUntagged);
        let protected = (self.protected_only && !job.protected).then_some(Missing::Protected);
        let features = job.requires.iter().filter(|name| !self.features.contains(name));
        let features = features.map(|name| Missing::Feature(name.into()));
        tags.chain(untagged).chain(protected).chain(features).collect()
    }

    /// Whether a runner of this class may take jobs of a lane with this scope and capability.
    pub fn matches(&self, scope: Scope, job: &Capability) -> bool {
        self.scopes.contains(&scope) && self.can_run(job)
    }
}
