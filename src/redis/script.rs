//! A Lua script, and the name Redis knows it by.

use std::fmt;
use std::sync::OnceLock;

use bytes::Bytes;

/// A Lua script compiled into the program. Make it a `static`: it remembers its digest.
///
/// ```
/// use job_router::redis::Script;
/// static TOUCH: Script = Script::new("touch", concat!("return ", "redis.call('EXISTS', KEYS[1])"));
/// assert_eq!(TOUCH.sha1().len(), 40);
/// ```
pub struct Script {
    name: &'static str,
    source: &'static str,
    sha1: OnceLock<Bytes>,
}

impl Script {
    /// A script by its name (for logs and errors) and its source.
    pub const fn new(name: &'static str, source: &'static str) -> Self {
        Self { name, source, sha1: OnceLock::new() }
    }

    /// The name for logs and errors.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The Lua source.
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// The SHA-1 of the source in hex: what EVALSHA takes.
    pub fn sha1(&self) -> &str {
        std::str::from_utf8(self.digest()).expect("hex is ASCII")
    }

    pub(super) fn digest(&self) -> &Bytes {
        self.sha1.get_or_init(|| fred::util::sha1_hash(self.source).into())
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Script").field(&self.name).finish()
    }
}
