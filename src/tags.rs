//! What a job needs of a runner, apart from scope: tags, protection, features.
//!
//! Jobs with the same [`Capability`] are all alike to a runner, so its [`Fingerprint`] names their lane.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::job::Malformed;

/// The most tags, or features, of one job or runner.
pub const TAGS_MAX: usize = 50;
/// The longest tag or feature, in bytes.
pub const TAG_MAX_BYTES: usize = 255;

/// A set of tags or features: sorted, unique, within the limits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize)]
#[serde(transparent)]
pub struct TagSet(Box<[Box<str>]>);

/// What a job needs of a runner.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Capability {
    /// The runner must have all of these; empty: it must run untagged jobs.
    pub tags: TagSet,
    /// The job runs on a protected ref, so protected-only runners may take it.
    pub protected: bool,
    /// Features the runner must have.
    pub requires: TagSet,
}

/// A stable name for a [`Capability`]: 22 characters of URL-safe base64.
///
/// 128 bits of SHA-256. Who chooses tags must not be able to make an unprotected job share the
/// fingerprint of a protected one; with 64 bits that would be an afternoon's work.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 16]);

// === impl TagSet ===

impl TagSet {
    /// Sorts, removes repeats, checks the limits: at most 50 tags, each of 1 to 255 bytes.
    pub fn new<S: Into<Box<str>>>(tags: impl IntoIterator<Item = S>) -> Result<Self, Malformed> {
        let mut tags: Vec<Box<str>> = tags.into_iter().map(Into::into).collect();
        if tags.iter().any(|tag| tag.is_empty() || tag.len() > TAG_MAX_BYTES) {
            return Err(Malformed("each must be 1 to 255 bytes"));
        }
        tags.sort_unstable();
        tags.dedup();
        if tags.len() > TAGS_MAX {
            return Err(Malformed("must hold at most 50"));
        }
        Ok(Self(tags.into()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tags, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }

    /// Whether this tag is in it.
    pub fn contains(&self, tag: &str) -> bool {
        self.0.binary_search_by(|held| (**held).cmp(tag)).is_ok()
    }

    /// Whether every tag of this set is in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.iter().all(|tag| other.0.binary_search(tag).is_ok())
    }
}

impl<'de> Deserialize<'de> for TagSet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tags = Vec::<Box<str>>::deserialize(deserializer)?;
        Self::new(tags).map_err(serde::de::Error::custom)
    }
}

// === impl Capability ===

impl Capability {
    /// The stable name of this capability.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        hash.update([u8::from(self.protected)]);
        for set in [&self.tags, &self.requires] {
            hash.update((set.0.len() as u32).to_be_bytes());
            for tag in set.iter() {
                hash.update((tag.len() as u32).to_be_bytes());
                hash.update(tag);
            }
        }
        let digest = hash.finalize();
        Fingerprint(digest[..16].try_into().expect("SHA-256 has 32 bytes"))
    }
}

// === impl Fingerprint ===

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 22];
        URL_SAFE_NO_PAD.encode_slice(self.0, &mut text).expect("22 characters hold 16 bytes");
        f.write_str(std::str::from_utf8(&text).expect("base64 is ASCII"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = Malformed("must be 22 characters of URL-safe base64");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed.clone())?;
        bytes.try_into().map(Self).map_err(|_| malformed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn capability(tags: &[&str], protected: bool, requires: &[&str]) -> Capability {
        let set = |tags: &[&str]| TagSet::new(tags.iter().copied()).expect("short");
        Capability { tags: set(tags), protected, requires: set(requires) }
    }

    #[test]
    fn a_fingerprint_ignores_order_and_repeats_and_nothing_else() {
        let one = capability(&["a", "b"], false, &[]).fingerprint();
        assert_eq!(one, capability(&["b", "a", "b"], false, &[]).fingerprint());
        assert_ne!(one, capability(&["ab"], false, &[]).fingerprint());
        assert_ne!(one, capability(&["a", "b"], true, &[]).fingerprint());
        assert_ne!(one, capability(&["a"], false, &["b"]).fingerprint());
        assert_eq!(one.to_string().parse(), Ok(one));
    }

    #[test]
    fn a_fingerprint_never_changes_between_releases() {
        assert_eq!(
            capability(&["linux", "docker"], true, &["shared"]).fingerprint().to_string(),
            "bRIuiRw1S2JjRvvO1IXo_A"
        );
    }

    proptest! {
        #[test]
        fn subset_agrees_with_the_definition(a in prop::collection::vec("[a-d]", 0..4), b in prop::collection::vec("[a-d]", 0..4)) {
            let (left, right) = (TagSet::new(a.clone()).expect("short"), TagSet::new(b.clone()).expect("short"));
            prop_assert_eq!(left.is_subset(&right), a.iter().all(|tag| b.contains(tag)));
        }
    }
}
