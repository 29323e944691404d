//! What is wrong with a configuration: all of it, so that one start is enough to learn it.

use std::fmt;
use std::path::PathBuf;

/// The exit code of a command whose configuration is wrong: `EX_USAGE` of `sysexits.h`.
pub const EXIT_CODE: u8 = 64;

/// Every mistake in a configuration; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub(super) Vec<Mistake>);

/// One mistake: where it is, and what about it. Says a value's shape, never the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where it came from.
    pub origin: Origin,
    /// What is wrong, and what would be right.
    pub what: String,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A flag, by its name without dashes.
    Flag(String),
    /// An environment variable.
    Variable(String),
    /// The file, and the line in it where known.
    File {
        /// Its path, as given.
        path: PathBuf,
        /// Counted from 1.
        line: Option<usize>,
    },
    /// The default of that key.
    Default(&'static str),
}

// === impl Mistakes ===

impl Mistakes {
    /// The mistakes, in the order of precedence of their sources, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "the configuration has a mistake:")?,
            count => write!(f, "the configuration has {count} mistakes:")?,
        }
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for Mistakes {}

// === impl Mistake ===

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.what)
    }
}

// === impl Origin ===

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Variable(name) => f.write_str(name),
            Self::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Default(key) => write!(f, "default of {key}"),
        }
    }
}
