//! What a value may be, as the comments in `defaults.toml` state it: `Duration, 5s to 1h.`
//!
//! Arrives: the text of a value. Leaves: a typed [`Value`] within its limits, or a [`Refusal`] that names the shape
//! that was wanted and the shape that was found, never the text itself: it may be a secret in the wrong place.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::job::Name;

use super::redis_url::RedisUrl;

/// What a value may be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    kind: Kind,
    /// Whether it may be empty, which means: not set.
    optional: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Duration { min: Duration, max: Duration },
    Count { min: u64, max: u64 },
    Size { min: u64, max: u64 },
    Text { max: usize },
    OneOf(Vec<String>),
    Name,
    Address,
    RedisUrl,
    File,
    Secret,
    LogFilter,
}

/// A value that has its shape.
#[derive(Clone, PartialEq)]
pub(super) enum Value {
    /// Not set.
    Empty,
    Duration(Duration),
    /// A count, or a size in bytes.
    Number(u64),
    /// Text, a choice, a filter or a secret.
    Text(String),
    Name(Name),
    Address(SocketAddr),
    RedisUrl(RedisUrl),
    File(PathBuf),
}

/// Why a value was refused: it must be `must`, and is `is`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    pub(super) must: String,
    pub(super) is: String,
}

// === impl Shape ===

impl Shape {
    /// Reads the last line of a comment in `defaults.toml`; nothing if it states no shape.
    pub(super) fn read(line: &str) -> Option<Self> {
        let line = line.strip_suffix('.')?;
        let (kind, limits) = line.split_once(", ").unwrap_or((line, ""));
        let (kind, optional) = kind.strip_suffix(" or empty").map_or((kind, false), |kind| (kind, true));
        let range = limits.split_once(" to ");
        let kind = match kind {
            "Duration" => {
                let (min, max) = range?;
                Kind::Duration { min: humantime::parse_duration(min).ok()?, max: humantime::parse_duration(max).ok()? }
            }
            "Count" => Kind::Count { min: range?.0.parse().ok()?, max: range?.1.parse().ok()? },
            "Size" => Kind::Size { min: parse_size(range?.0)?, max: parse_size(range?.1)? },
            "Text" => Kind::Text { max: range?.1.strip_suffix(" bytes")?.parse().ok()? },
            "Name" => Kind::Name,
            "Address" => Kind::Address,
            "Redis URL" => Kind::RedisUrl,
            "File" => Kind::File,
            "Secret" => Kind::Secret,
            "Log filter" => Kind::LogFilter,
            _ => Kind::OneOf(line.strip_prefix("One of ")?.split(", ").map(str::to_owned).collect()),
        };
        Some(Self { kind, optional })
    }

    /// The value that `text` is.
    pub(super) fn check(&self, text: &str) -> Result<Value, Refusal> {
        let value = match &self.kind {
            _ if text.is_empty() => self.optional.then_some(Value::Empty).ok_or_else(|| "empty".to_owned()),
            Kind::Duration { min, max } => match humantime::parse_duration(text) {
                Ok(found) if (*min..=*max).contains(&found) => Ok(Value::Duration(found)),
                Ok(found) => Err(humantime::format_duration(found).to_string()),
                Err(_) if text.parse::<u64>().is_ok() => Err("a number without a unit".to_owned()),
                Err(_) => Err(text_of(text)),
            },
            Kind::Count { min, max } => within(text.parse().ok(), *min, *max, text),
            Kind::Size { min, max } => within(parse_size(text), *min, *max, text),
            Kind::Text { max } if text.len() <= *max && !text.chars().any(char::is_control) => {
                Ok(Value::Text(text.to_owned()))
            }
            Kind::OneOf(choices) if choices.iter().any(|choice| choice == text) => Ok(Value::Text(text.to_owned())),
            Kind::Text { .. } | Kind::OneOf(_) => Err(text_of(text)),
            Kind::Name => Name::new(text).map(Value::Name).map_err(|_| text_of(text)),
            Kind::Address => text.parse().map(Value::Address).map_err(|_| text_of(text)),
            Kind::RedisUrl => RedisUrl::new(text).map(Value::RedisUrl).ok_or_else(|| text_of(text)),
            Kind::File => readable(Path::new(text)).map(Value::File),
            Kind::Secret => Ok(Value::Text(text.to_owned())),
            Kind::LogFilter => match crate::telemetry::logging::check_filter(text) {
                Ok(()) => Ok(Value::Text(text.to_owned())),
                Err(_) => Err(text_of(text)),
            },
        };
        value.map_err(|is| Refusal { must: self.to_string(), is })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Duration { min, max } => {
                let (min, max) = (humantime::format_duration(*min), humantime::format_duration(*max));
                write!(f, "a duration from {min} to {max}, such as 500ms, 10s or 5m")?;
            }
            Kind::Count { min, max } => write!(f, "a whole number from {min} to {max}")?,
            Kind::Size { min, max } => write!(f, "a size from {min} to {max} bytes, such as 65536, 64KiB or 1MiB")?,
            Kind::Text { max } => write!(f, "text of 1 to {max} bytes without control characters")?,
            Kind::OneOf(choices) => write!(f, "one of {}", choices.join(", "))?,
            Kind::Name => f.write_str("1 to 64 of [A-Za-z0-9_.:-]")?,
            Kind::Address => f.write_str("an IP address and port, such as 0.0.0.0:7460 or [::]:7460")?,
            Kind::RedisUrl => f.write_str("a Redis URL, such as redis://127.0.0.1:6379")?,
            Kind::File => f.write_str("the path of a readable file")?,
            Kind::Secret => f.write_str("a secret")?,
            Kind::LogFilter => f.write_str("a level (error, warn, info, debug, trace) or a list of module=level")?,
        }
        if self.optional { f.write_str(", or empty") } else { Ok(()) }
    }
}

/// Bytes, from `1048576`, `1024KiB`, `1MiB` or `1GiB`.
fn parse_size(text: &str) -> Option<u64> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let (digits, unit) = units
        .iter()
        .find_map(|(name, bytes)| text.strip_suffix(name).map(|digits| (digits.trim_end(), *bytes)))
        .unwrap_or((text, 1));
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

fn within(found: Option<u64>, min: u64, max: u64, text: &str) -> Result<Value, String> {
    match found {
        Some(found) if (min..=max).contains(&found) => Ok(Value::Number(found)),
        Some(found) => Err(found.to_string()),
        None => Err(text_of(text)),
    }
}

fn readable(path: &Path) -> Result<PathBuf, String> {
    match std::fs::File::open(path).and_then(|file| file.metadata()) {
        Ok(found) if found.is_dir() => Err("a directory".to_owned()),
        Ok(_) => Ok(path.to_owned()),
        Err(error) => Err(format!("not readable ({})", error.kind())),
    }
}

/// What can be said of a text without saying it.
fn text_of(text: &str) -> String {
    format!("text of {} bytes", text.len())
}
