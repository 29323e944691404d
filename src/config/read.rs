//! From checked values to the types of [`Config`](super::Config).

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use crate::job::{NAME_MAX_BYTES, Name};
use crate::telemetry::logging::LogFormat;

use super::redis_url::RedisUrl;
use super::shape::Value;
use super::{GroupLaneOrder, PriorityReach};

/// The largest file that may hold a secret, in bytes: a password, not a disk.
const SECRET_MAX_BYTES: u64 = 64 * 1024;

/// A type that a value of the right shape becomes.
pub(super) trait FromValue {
    /// # Panics
    ///
    /// If the shape in `defaults.toml` is not that of the type: a bug that any test of the defaults shows.
    fn from_value(value: &Value) -> Self;
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: &Value) -> Self {
        (*value != Value::Empty).then(|| T::from_value(value))
    }
}

macro_rules! from_value {
    ($($pattern:pat => $type:ty = $made:expr,)*) => {
        $(impl FromValue for $type {
            fn from_value(value: &Value) -> Self {
                match value {
                    $pattern => $made,
                    _ => panic!(concat!("defaults.toml gives no ", stringify!($type))),
                }
            }
        })*
    };
}

from_value! {
    Value::Duration(found) => Duration = *found,
    Value::Number(found) => u8 = (*found).try_into().expect("its limit in defaults.toml fits"),
    Value::Number(found) => u16 = (*found).try_into().expect("its limit in defaults.toml fits"),
    Value::Number(found) => u32 = (*found).try_into().expect("its limit in defaults.toml fits"),
    Value::Number(found) => u64 = *found,
    Value::Number(found) => usize = (*found).try_into().expect("its limit in defaults.toml fits"),
    Value::Text(found) => String = found.clone(),
    Value::Text(found) => SecretString = found.clone().into(),
    Value::Text(found) => LogFormat = match found.as_str() {
        "auto" => Self::Auto,
        "json" => Self::Json,
        "human" => Self::Human,
        other => panic!("{other} in defaults.toml has no LogFormat"),
    },
    Value::Text(found) => GroupLaneOrder = match found.as_str() {
        "fifo" => Self::Fifo,
        "fair" => Self::Fair,
        other => panic!("{other} in defaults.toml has no GroupLaneOrder"),
    },
    Value::Text(found) => PriorityReach = match found.as_str() {
        "tenant" => Self::Tenant,
        "global" => Self::Global,
        other => panic!("{other} in defaults.toml has no PriorityReach"),
    },
    Value::Name(found) => Name = found.clone(),
    Value::Address(found) => SocketAddr = *found,
    Value::RedisUrl(found) => RedisUrl = found.clone(),
    Value::File(found) => PathBuf = found.clone(),
}

/// A new pod id: what of the host's name may stand in a name, and six random hex digits.
pub(super) fn new_pod_id(host: &str) -> Name {
    const DIGITS: usize = 6;
    let safe = |c: &char| c.is_ascii_alphanumeric() || "_.-".contains(*c);
    let host: String = host.chars().filter(safe).take(NAME_MAX_BYTES - DIGITS - 1).collect();
    let host = if host.is_empty() { "pod" } else { &host };
    let digits = rand::random_range(0..1_u32 << (4 * DIGITS));
    Name::new(&format!("{host}-{digits:0DIGITS$x}")).expect("safe characters, and room for the digits")
}

/// The secret in a file, without the line end.
pub fn read_secret(path: &Path) -> std::io::Result<SecretString> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(SECRET_MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > SECRET_MAX_BYTES {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "larger than 64 KiB"));
    }
    Ok(text.trim_end_matches(['\r', '\n']).into())
}
