//! What can go wrong with a call, named by what the caller does next.
//!
//! Redis tells its errors apart by the first word of their text, and only by it. [`Refusal::of`] is the one
//! place that reads it.

use fred::error::{Error, ErrorKind};

use crate::telemetry::labels;

/// Why a call to Redis gave no reply.
///
/// The text is Redis' or the library's own: for the log, never for a runner.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RedisError {
    /// The settings cannot work. Fix them; no retry helps.
    #[error("redis settings: {0}")]
    Settings(String),
    /// The call was never sent: no connection could be made, or too many calls are waiting. Send it later.
    #[error("redis is not available: {0}")]
    Unavailable(String),
    /// No answer in time. The call may have been applied, or may still be.
    #[error("redis did not answer {0} in time")]
    Timeout(&'static str),
    /// The connection ended before the answer came. The call may have been applied.
    #[error("redis connection lost: {0}")]
    Lost(String),
    /// Applied, and in time only so many replicas had it. A failover now may lose it.
    #[error("redis applied {call}, but only {have} of the {wanted} replicas that must have it do")]
    NotReplicated {
        /// The script.
        call: &'static str,
        /// How many replicas must have it.
        wanted: u8,
        /// How many have.
        have: u64,
    },
    /// Redis refused the call before it did anything.
    #[error("redis refused {call}: {text}")]
    Refused {
        /// The script or the command.
        call: &'static str,
        /// Why, as the first word of the text.
        refusal: Refusal,
        /// What Redis said.
        text: String,
    },
    /// The user that the pod logs in as may not run something inside a script. What the script wrote before stays written;
    /// the same call completes it once an operator has given the user its rights.
    #[error("redis lets its user do only a part of {call}: {text}")]
    Denied {
        /// The script.
        call: &'static str,
        /// What Redis said.
        text: String,
    },
    /// The script or command itself failed, perhaps half-way: what it wrote before stays written. A bug.
    #[error("redis: {call} failed: {text}")]
    Failed {
        /// The script or the command.
        call: &'static str,
        /// What Redis said.
        text: String,
    },
    /// The reply does not have the shape its reader expects. A bug, or another version's reply.
    #[error("redis replied {got} where {wanted} was expected")]
    Unexpected {
        /// What the reader wanted.
        wanted: &'static str,
        /// What came, by kind; never its content.
        got: &'static str,
    },
}

/// Why Redis refused a call: the first word of its error, but for [`NoScript`](Self::NoScript), which has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The server does not have the script's function: it came back empty, or never had it.
    NoScript,
    /// Out of memory.
    Oom,
    /// The key holds another type.
    WrongType,
    /// This server is a replica now.
    ReadOnly,
    /// The server reads its data after a start.
    Loading,
    /// A script runs too long.
    Busy,
    /// The consumer group exists.
    BusyGroup,
    /// The consumer group or its stream does not exist.
    NoGroup,
    /// The stream went away while a read was waiting on it.
    Unblocked,
    /// The cluster does not serve this slot.
    ClusterDown,
    /// The slot is moving; its keys are on both sides.
    TryAgain,
    /// The keys are not all in one slot.
    CrossSlot,
    /// The replica has lost its primary.
    MasterDown,
    /// Too few replicas (`min-replicas-to-write`).
    NoReplicas,
    /// The server cannot persist and refuses writes.
    Misconf,
    /// This user may not do that.
    NoPerm,
    /// Not logged in.
    NoAuth,
}

// === impl RedisError ===

impl RedisError {
    /// Whether the call may have changed something: ask Redis what is so before acting on the opposite.
    pub fn may_have_applied(&self) -> bool {
        match self {
            Self::Timeout(_)
            | Self::Lost(_)
            | Self::NotReplicated { .. }
            | Self::Denied { .. }
            | Self::Failed { .. }
            | Self::Unexpected { .. } => true,
            Self::Settings(_) | Self::Unavailable(_) | Self::Refused { .. } => false,
        }
    }

    /// Whether the same call may succeed later. Every script may be repeated (invariant 6); a plain command
    /// only if it says so.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable(_)
            | Self::Timeout(_)
            | Self::Lost(_)
            | Self::NotReplicated { .. }
            | Self::Denied { .. } => true,
            Self::Refused { refusal, .. } => refusal.passes(),
            Self::Settings(_) | Self::Failed { .. } | Self::Unexpected { .. } => false,
        }
    }

    /// Why Redis refused the call, if it did.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(*refusal),
            _ => None,
        }
    }

    /// Whether it is for want of rights: repeating helps only once an operator has mended them.
    pub fn wants_rights(&self) -> bool {
        match self {
            Self::Denied { .. } => true,
            Self::Refused { refusal, .. } => matches!(refusal, Refusal::NoPerm | Refusal::NoAuth),
            _ => false,
        }
    }

    /// What to count it as; none for what callers expect.
    pub(super) fn label(&self) -> Option<labels::RedisError> {
        use labels::RedisError as Label;
        Some(match self {
            Self::Refused { refusal: Refusal::NoScript | Refusal::BusyGroup, .. } => return None,
            Self::Refused { refusal: Refusal::Oom, .. } => Label::OutOfMemory,
            _ if self.wants_rights() => Label::Auth,
            Self::Timeout(_) => Label::Timeout,
            Self::Unavailable(_) | Self::Lost(_) => Label::Connection,
            Self::NotReplicated { .. } => Label::Replication,
            Self::Failed { .. } => Label::Script,
            _ => Label::Other,
        })
    }

    /// What an error reply means. One from inside a running script is no refusal: the script has begun.
    pub(super) fn from_reply(call: &'static str, text: &str) -> Self {
        match Refusal::of(text) {
            Some(refusal) if !text.contains("@user_function") => Self::Refused { call, refusal, text: text.to_owned() },
            Some(Refusal::NoPerm) => Self::Denied { call, text: text.to_owned() },
            // Redis 7.0 has no word for it.
            _ if text.starts_with("ERR The user executing the script ") => Self::Denied { call, text: text.to_owned() },
            _ => Self::Failed { call, text: text.to_owned() },
        }
    }

    /// What an error of the library means, for a call that was handed to it.
    pub(super) fn from_library(call: &'static str, error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Timeout => Self::Timeout(call),
            ErrorKind::Backpressure => Self::Unavailable("too many calls are waiting".to_owned()),
            // Also a READONLY or LOADING that made the library reconnect: it fails every call in flight with
            // that text, and some of those were applied.
            _ => Self::Lost(error.details().to_owned()),
        }
    }
}

// === impl Refusal ===

impl Refusal {
    /// The refusal an error text names by its first word.
    fn of(text: &str) -> Option<Self> {
        if text == "ERR Function not found" {
            return Some(Self::NoScript); // Redis has no word for it
        }
        Some(match text.split(' ').next().unwrap_or(text) {
            "OOM" => Self::Oom,
            "WRONGTYPE" => Self::WrongType,
            "READONLY" => Self::ReadOnly,
            "LOADING" => Self::Loading,
            "BUSY" => Self::Busy,
            "BUSYGROUP" => Self::BusyGroup,
            "NOGROUP" => Self::NoGroup,
            "UNBLOCKED" => Self::Unblocked,
            "CLUSTERDOWN" => Self::ClusterDown,
            "TRYAGAIN" => Self::TryAgain,
            "CROSSSLOT" => Self::CrossSlot,
            "MASTERDOWN" => Self::MasterDown,
            "NOREPLICAS" => Self::NoReplicas,
            "MISCONF" => Self::Misconf,
            "NOPERM" => Self::NoPerm,
            "NOAUTH" | "WRONGPASS" => Self::NoAuth,
            _ => return None,
        })
    }

    /// Whether it passes by itself, or by what an operator does to Redis and not to us.
    fn passes(self) -> bool {
        match self {
            Self::NoScript
            | Self::Oom
            | Self::ReadOnly
            | Self::Loading
            | Self::Busy
            | Self::Unblocked
            | Self::ClusterDown
            | Self::TryAgain
            | Self::MasterDown
            | Self::NoReplicas
            | Self::Misconf
            | Self::NoPerm
            | Self::NoAuth => true,
            Self::WrongType | Self::BusyGroup | Self::NoGroup | Self::CrossSlot => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_before_the_script_changed_nothing_and_an_error_inside_it_may_have() {
        let before = RedisError::from_reply("take", "OOM command not allowed when used memory > 'maxmemory'.");
        assert_eq!((before.may_have_applied(), before.is_retryable()), (false, true));

        let inside = "OOM command not allowed when used memory > 'maxmemory'. script: job_router_take_2c5f, on @user_function:3.";
        let inside = RedisError::from_reply("take", inside);
        assert_eq!((inside.may_have_applied(), inside.is_retryable()), (true, false));
        assert!(inside.to_string().contains("take"), "{inside}");
    }

    #[test]
    fn what_wants_only_rights_passes_once_an_operator_gives_them() {
        for (text, may_have_applied) in [
            ("NOPERM this user has no permissions to run the 'fcall' command", false),
            ("NOAUTH Authentication required.", false),
            (
                "ERR The user executing the script can't run this command or subcommand script: job_router_take_2c5f, on @user_function:3.",
                true,
            ),
            (
                "ERR The user executing the script can't access at least one of the keys mentioned in the command arguments \
              script: job_router_take_2c5f, on @user_function:3.",
                true,
            ),
            (
                "NOPERM User router has no permissions to run the 'hset' command script: job_router_take_2c5f, on @user_function:3.",
                true,
            ),
        ] {
            let error = RedisError::from_reply("take", text);
            assert!(error.is_retryable() && error.wants_rights(), "{text}");
            assert_eq!(error.may_have_applied(), may_have_applied, "{text}");
        }
        let bug = RedisError::from_reply(
            "take",
            "ERR wrong number of args script: job_router_take_2c5f, on @user_function:3.",
        );
        assert!(!bug.is_retryable() && !bug.wants_rights());
    }

    #[test]
    fn a_word_that_only_begins_like_a_refusal_is_none() {
        assert_eq!(Refusal::of("BUSYGROUP Consumer Group name already exists"), Some(Refusal::BusyGroup));
        assert_eq!(Refusal::of("BUSYBODY"), None);
        assert_eq!(Refusal::of("ERR syntax error"), None);
    }
}
