//! Why a job is where it is, as codes: what `--json`, `job.stuck` and the admin service say. `docs/explain.md` lists them; a
//! test keeps it in step.

use serde::{Serialize, Serializer};

use crate::contract::words;
use crate::runner::Missing;

words! {
    /// The answer: what holds a job up, or what becomes of it.
    Reason {
        /// No partition knows the job.
        Unknown = "unknown",
        /// It has ended.
        Ended = "ended",
        /// A runner has it and has not accepted it yet.
        Assigned = "assigned",
        /// A runner runs it.
        Running = "running",
        /// Its runner was told to stop it.
        Canceling = "canceling",
        /// There is no runner at all.
        NoRunnerRegistered = "no_runner_registered",
        /// Those that could take it are not connected.
        RunnersOffline = "runners_offline",
        /// Those that could take it are paused by their records.
        RunnersPaused = "runners_paused",
        /// No online runner has all its tags.
        MissingTag = "missing_tag",
        /// It has no tags, and no online runner takes such jobs.
        NoUntagged = "no_untagged",
        /// It is not on a protected ref, and online runners take only such jobs.
        NotProtected = "not_protected",
        /// No online runner has all features that it requires.
        MissingFeature = "missing_feature",
        /// Only instance runners could take it, and its project forbids them.
        InstanceRunnersOff = "instance_runners_off",
        /// Only group runners could take it, and its project forbids them.
        GroupRunnersOff = "group_runners_off",
        /// Only runners of other groups could take it.
        OtherGroup = "other_group",
        /// Only runners of other projects could take it.
        OtherProject = "other_project",
        /// The nearest online runner lacks things of several kinds.
        MissingSeveral = "missing_several",
        /// Everything is paused.
        PausedAll = "paused_all",
        /// Its tenant is paused.
        PausedTenant = "paused_tenant",
        /// Its project is paused.
        PausedProject = "paused_project",
        /// The lanes in which a runner could take it are paused.
        PausedLane = "paused_lane",
        /// Its tenant has as many jobs on instance runners as it may.
        TenantCap = "tenant_cap",
        /// Its project has as many jobs on instance runners as it may.
        ProjectCap = "project_cap",
        /// Runners with a free slot have just declined a job, and are left alone for a moment.
        BackingOff = "backing_off",
        /// It waits for the runner that had the last job with its affinity key, though another has a free slot.
        AffinityWait = "affinity_wait",
        /// All runners that could take it are busy; it is next.
        NoSlot = "no_slot",
        /// They are busy, and jobs of its own tenant go first.
        BehindJobs = "behind_jobs",
        /// They are busy, and other tenants go first.
        BehindTenants = "behind_tenants",
        /// A runner that could take it has a free slot: it is about to go.
        SlotFree = "slot_free",
    }
}

words! {
    /// How one runner stands to a job.
    RunnerReason {
        /// It could take the job now.
        Free = "free",
        /// It has no free slot.
        NoSlot = "no_slot",
        /// It has just declined a job, and is left alone for a moment.
        BackingOff = "backing_off",
        /// It is not connected.
        Offline = "offline",
        /// It may not take the job; `missing` says why.
        Missing = "missing",
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Serialize for RunnerReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One requirement that a runner does not meet. In the order in which they are told; of two runners that lack as many, the
/// one whose first is earlier here counts as nearer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", content = "name", rename_all = "snake_case")]
pub enum Gap {
    /// It is paused by its record.
    Paused,
    /// It lacks this tag.
    Tag(Box<str>),
    /// It takes no jobs without tags.
    RunUntagged,
    /// It takes only jobs on protected refs.
    Protected,
    /// It lacks this feature.
    Feature(Box<str>),
    /// It is an instance runner, and the job's project forbids these.
    InstanceRunners,
    /// It is a runner of one of the project's groups, and the project forbids these.
    GroupRunners,
    /// It serves other groups.
    Group,
    /// It serves other projects.
    Project,
}

// === impl Gap ===

impl Gap {
    /// What the matching rule found missing; the scope is told apart.
    pub(super) fn of(missing: Missing) -> Option<Self> {
        match missing {
            Missing::Tag(tag) => Some(Self::Tag(tag)),
            Missing::RunUntagged => Some(Self::RunUntagged),
            Missing::Protected => Some(Self::Protected),
            Missing::Feature(name) => Some(Self::Feature(name)),
            Missing::Scope => None,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Paused => Reason::RunnersPaused,
            Self::Tag(_) => Reason::MissingTag,
            Self::RunUntagged => Reason::NoUntagged,
            Self::Protected => Reason::NotProtected,
            Self::Feature(_) => Reason::MissingFeature,
            Self::InstanceRunners => Reason::InstanceRunnersOff,
            Self::GroupRunners => Reason::GroupRunnersOff,
            Self::Group => Reason::OtherGroup,
            Self::Project => Reason::OtherProject,
        }
    }
}

/// The code for all that the nearest runner lacks.
pub(super) fn reason_of(gaps: &[Gap]) -> Reason {
    let mut reasons = gaps.iter().map(Gap::reason);
    let first = reasons.next().unwrap_or(Reason::MissingSeveral);
    if reasons.all(|reason| reason == first) { first } else { Reason::MissingSeveral }
}
