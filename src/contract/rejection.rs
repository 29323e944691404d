//! Why an entry was refused, in words that are safe to show.
//!
//! The reason holds shapes and limits only. The start of the data holds values, so it ends before the first field
//! that version 1 does not know, before `payload` and before `token_sha256` (where a token may stand by mistake): an
//! entry that is malformed may carry a secret anywhere but in a field whose meaning is known.

use std::fmt;

use crate::job::JobId;

/// The longest start of the data, in bytes.
pub const DATA_START_MAX_BYTES: usize = 256;
/// How far the start of the data is looked for.
const SCAN_MAX_BYTES: usize = 4_096;

/// An entry that is not a message of the contract. Goes to Rails as `message.rejected`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The field that is wrong, such as `v`, `type`, `data` or `data.tags[3]`. Only names of the contract and
    /// indexes, so at most about 40 bytes.
    pub field: String,
    /// What it must be and the shape it has, never the value. At most about 200 bytes.
    pub reason: String,
    /// The job it was about, where the entry is of a `job.*` type and its `data.id` can be read.
    pub job_id: Option<JobId>,
    data_start: String,
}

/// What is wrong with one field.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) field: String,
    pub(crate) reason: String,
}

/// Walks over JSON bytes that may be broken anywhere.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The fields whose values may be shown.
const SHOWN: &[&str] = &[
    "affinity",
    "attempt",
    "at_ms",
    "event_id",
    "exit_code",
    "failure_reason",
    "group_ids",
    "group_runners",
    "id",
    "instance_runners",
    "lease_id",
    "max_attempts",
    "max_running",
    "namespace_ids",
    "paused",
    "pipeline_id",
    "pod",
    "priority",
    "project_id",
    "project_ids",
    "protected",
    "protected_only",
    "queued_at_ms",
    "reason",
    "requires",
    "run_untagged",
    "runner_id",
    "status",
    "system_id",
    "tags",
    "tenant",
    "timeout_s",
    "type",
    "weight",
];

// === impl Rejection ===

impl Rejection {
    pub(super) fn new(fault: Fault, job_id: Option<JobId>, data: &[u8]) -> Self {
        Self { field: fault.field, reason: fault.reason, job_id, data_start: data_start(data) }
    }

    /// The start of the data, for people: at most 256 bytes, and nothing from the first field on that could hold a
    /// secret, above all `payload`. Empty if the data does not start as a JSON object.
    pub fn data_start(&self) -> &str {
        &self.data_start
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.reason)
    }
}

impl std::error::Error for Rejection {}

// === impl Fault ===

impl Fault {
    pub(super) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

fn data_start(data: &[u8]) -> String {
    let shown = Scan::new(data).shown_bytes();
    let mut cut = shown.min(DATA_START_MAX_BYTES);
    while cut < shown && cut > 0 && data[cut] & 0b1100_0000 == 0b1000_0000 {
        cut -= 1;
    }
    let mut start = String::from_utf8_lossy(&data[..cut]).into_owned();
    // A replaced byte takes three, so what was cut to size may have grown again.
    let mut end = start.len().min(DATA_START_MAX_BYTES);
    while !start.is_char_boundary(end) {
        end -= 1;
    }
    start.truncate(end);
    start
}

// === impl Scan ===

impl<'a> Scan<'a> {
    fn new(data: &'a [u8]) -> Self {
        Self { bytes: &data[..data.len().min(SCAN_MAX_BYTES)], at: 0 }
    }

    /// How many bytes from the start may be shown: an object's fields while each has a name in [`SHOWN`], spelled
    /// without escapes, and a complete value that is not itself an object.
    fn shown_bytes(mut self) -> usize {
        if !self.eat(b'{') {
            return 0;
        }
        let mut shown = self.at;
        loop {
            let Some(name) = self.string() else { return shown };
            let known = SHOWN.iter().any(|known| known.as_bytes() == name);
            if !known || !self.eat(b':') || !self.value() {
                return shown;
            }
            shown = self.at;
            if !self.eat(b',') {
                return shown;
            }
        }
    }

    fn value(&mut self) -> bool {
        if !self.eat(b'[') {
            return self.plain();
        }
        if self.eat(b']') {
            return true;
        }
        loop {
            if !self.plain() {
                return false;
            }
            if !self.eat(b',') {
                return self.eat(b']');
            }
        }
    }

    /// A string, a number, `true`, `false` or `null`.
    fn plain(&mut self) -> bool {
        if self.string().is_some() {
            return true;
        }
        let rest = &self.bytes[self.at..];
        let number = rest.iter().take_while(|b| b.is_ascii_digit() || b"+-.eE".contains(b)).count();
        let word = [&b"true"[..], b"false", b"null"].iter().find(|word| rest.starts_with(word)).map_or(0, |w| w.len());
        self.at += number.max(word);
        number.max(word) > 0
    }

    /// The inside of a string that ends, as it is spelled.
    fn string(&mut self) -> Option<&'a [u8]> {
        self.blank();
        let inside = self.bytes[self.at..].strip_prefix(b"\"")?;
        let mut escaped = false;
        let length = inside.iter().position(|b| {
            let ends = *b == b'"' && !escaped;
            escaped = *b == b'\\' && !escaped;
            ends
        })?;
        self.at += length + 2;
        Some(&inside[..length])
    }

    fn eat(&mut self, byte: u8) -> bool {
        self.blank();
        let found = self.bytes.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        if found {
            self.blank();
        }
        found
    }

    fn blank(&mut self) {
        self.at += self.bytes[self.at..].iter().take_while(|b| b.is_ascii_whitespace()).count();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_start_of_the_data_ends_before_anything_that_may_be_a_secret() {
        for (data, start) in [
            (r#"{"id":1,"payload":{"token":"s"}}"#, r#"{"id":1"#),
            (r#"{"payload":{"token":"s"},"id":1}"#, "{"),
            (r#"{"id":1,"p\u0061yload":{"token":"s"}}"#, r#"{"id":1"#),
            (r#"{"id":1,"Payload":"s"}"#, r#"{"id":1"#),
            (r#"{"id":1,"variables":["s"]}"#, r#"{"id":1"#),
            (r#"{"id":1,"token_sha256":"s"}"#, r#"{"id":1"#),
            (r#"{"id":1,"tags":{"payload":"s"}}"#, r#"{"id":1"#),
            (r#"{"id":1,"tags":["a",{"payload":"s"}]}"#, r#"{"id":1"#),
            (r#"{"id":1,"tags":["a","payl"#, r#"{"id":1"#),
            (
                r#"{"id":1,"tenant":"a\"b","tags":[],"priority":null}"#,
                r#"{"id":1,"tenant":"a\"b","tags":[],"priority":null"#,
            ),
            (r#" { "id" : 1 , "payload" : {} }"#, r#" { "id" : 1"#),
            (r#"[{"payload":"s"}]"#, ""),
            ("glrt-s", ""),
            ("", ""),
        ] {
            assert_eq!(data_start(data.as_bytes()), start, "{data}");
        }
    }

    #[test]
    fn the_start_of_the_data_is_cut_at_a_character() {
        for pad in 0..4 {
            let data = format!(r#"{{"tenant":"{}{}"}}"#, "x".repeat(pad), "€".repeat(200));
            let start = data_start(data.as_bytes());
            assert!(data.starts_with(&start), "{start}");
            assert!((DATA_START_MAX_BYTES - 2..=DATA_START_MAX_BYTES).contains(&start.len()), "{}", start.len());
        }
        let broken = [br#"{"tenant":""#.as_slice(), &[0xff; 300], br#""}"#].concat();
        assert!((DATA_START_MAX_BYTES - 2..=DATA_START_MAX_BYTES).contains(&data_start(&broken).len()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_start_panic_or_grow(data in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(data_start(&data).len() <= DATA_START_MAX_BYTES);
        }

        #[test]
        fn no_json_like_text_shows_its_payload(text in r#"(\{|\}|\[|\]|,|:|"|\\|1|"id"|"tags"| ){0,12}"payload":"SECRET.{0,5}"#) {
            let start = data_start(["{", &text].concat().as_bytes());
            prop_assert!(!start.contains("SECRET"), "{}", start);
        }
    }
}
