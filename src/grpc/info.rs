//! What a GitLab Runner says of itself: the `info` of its requests.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::tags::{TAG_MAX_BYTES, TAGS_MAX, TagSet};

/// The longest version that is kept, in bytes.
const VERSION_MAX_BYTES: usize = 64;
/// The largest `info` that Rails is told, in bytes of JSON, and how deep it may be. Real ones have about 1.5 KiB, in three levels.
const FOR_RAILS_MAX_BYTES: usize = 4 << 10;
const FOR_RAILS_MAX_DEPTH: usize = 8;

/// The whole of it, as it came.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Info(Map<String, Value>);

// === impl Info ===

impl Info {
    /// Its software's version, for people.
    pub(super) fn version(&self) -> String {
        let said = self.0.get("version").and_then(Value::as_str).unwrap_or_default();
        let printable = said.chars().filter(|c| !c.is_control());
        let mut version = format!("gitlab-runner {}", printable.collect::<String>());
        while version.len() > VERSION_MAX_BYTES {
            version.pop();
        }
        version
    }

    /// What a runner can do, for jobs that require it: of its features those that are `true`. Of more than there may be, the first by
    /// name.
    pub(super) fn features(&self) -> TagSet {
        let fits = |name: &&String| !name.is_empty() && name.len() <= TAG_MAX_BYTES;
        let said = self.0.get("features").and_then(Value::as_object);
        let able = said.into_iter().flatten().filter(|(_, value)| **value == Value::Bool(true)).map(|(name, _)| name);
        let mut able: Vec<&str> = able.filter(fits).map(String::as_str).collect();
        able.sort_unstable();
        able.truncate(TAGS_MAX);
        TagSet::new(able).expect("within the limits")
    }

    /// All of it, as a JSON object; the version alone of one that is too large, or that not every reader of JSON takes.
    pub(super) fn for_rails(&self) -> Arc<str> {
        let is_plain = self.0.iter().all(|(name, value)| is_plain_text(name) && is_plain(value, FOR_RAILS_MAX_DEPTH));
        let all = serde_json::to_string(&self.0).expect("it is JSON");
        if is_plain && all.len() <= FOR_RAILS_MAX_BYTES {
            return all.into();
        }
        serde_json::json!({ "version": self.version() }).to_string().into()
    }
}

/// Not deep, and without a zero character, which databases refuse.
fn is_plain(value: &Value, levels: usize) -> bool {
    match value {
        Value::String(text) => is_plain_text(text),
        Value::Array(items) => levels > 0 && items.iter().all(|item| is_plain(item, levels - 1)),
        Value::Object(members) => {
            levels > 0 && members.iter().all(|(name, value)| is_plain_text(name) && is_plain(value, levels - 1))
        }
        _ => true,
    }
}

fn is_plain_text(text: &str) -> bool {
    !text.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(json: &str) -> Info {
        serde_json::from_str(json).expect("as a runner sends it")
    }

    #[test]
    fn of_its_features_those_count_that_are_true() {
        let said = r#"{"version":"19.4.0","features":{"image":true,"proxy":false,"failure_reasons":["a"],"":true}}"#;
        assert_eq!(info(said).features(), TagSet::new(["image"]).expect("one"));
        assert_eq!(info(said).version(), "gitlab-runner 19.4.0");
        assert_eq!(
            &*info(r#"{ "name": "n", "config": {"gpus": ""} }"#).for_rails(),
            r#"{"config":{"gpus":""},"name":"n"}"#
        );
    }

    #[test]
    fn what_is_odd_or_long_is_cut_short() {
        let long = format!(r#"{{"version":"{}","x":"{}"}}"#, "π".repeat(100), "x".repeat(FOR_RAILS_MAX_BYTES));
        assert!(info(&long).version().len() <= VERSION_MAX_BYTES);
        assert!(info(&long).for_rails().len() < 100);
        let deep = format!(r#"{{"version":"1","x":{}{}}}"#, "[".repeat(100), "]".repeat(100));
        for not_plain in [deep.as_str(), r#"{"version":"1","x":"a\u0000"}"#, r#"{"version":"1","\u0000":1}"#] {
            assert_eq!(&*info(not_plain).for_rails(), r#"{"version":"gitlab-runner 1"}"#);
        }
        for odd in ["{}", r#"{"version":7,"features":"all"}"#] {
            assert_eq!((info(odd).version(), info(odd).features()), ("gitlab-runner ".to_owned(), TagSet::default()));
        }
    }
}
