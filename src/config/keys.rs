//! The keys there are: read from `defaults.toml`, once.
//!
//! Arrives: the file that is compiled in. Leaves: for each key its name, its default, what `--help` says about it,
//! and its shape. A mistake in the file is a bug, and a test walks it all.

use std::sync::LazyLock;

use toml::de::DeTable;

use super::shape::Shape;
use super::sources::scalar_text;

/// The file that documents every key: a template for one's own.
pub const DEFAULTS_TOML: &str = include_str!("defaults.toml");

/// One setting.
#[derive(Debug)]
pub(super) struct Key {
    /// As in the file: `beat_interval`.
    pub(super) name: &'static str,
    /// The flag: `beat-interval`, without the dashes.
    pub(super) flag: String,
    /// The environment variable: `JOB_ROUTER_BEAT_INTERVAL`.
    pub(super) variable: String,
    /// What it means and why its limits are as they are.
    pub(super) help: String,
    /// What its value may be.
    pub(super) shape: Shape,
    /// Its default, as text; empty for not set.
    pub(super) default: String,
}

/// All keys, in the order of the file.
pub(super) fn keys() -> &'static [Key] {
    static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| read(DEFAULTS_TOML));
    &KEYS
}

/// The key of that name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    keys().iter().find(|key| key.name == name)
}

fn read(text: &'static str) -> Vec<Key> {
    let table = DeTable::parse(text).expect("defaults.toml is TOML").into_inner();
    let mut found: Vec<(usize, Key)> = table
        .iter()
        .map(|(name, value)| {
            let start = name.span().start;
            let name = &text[name.span()];
            let (help, shape) = comment_before(&text[..start]);
            let shape = Shape::read(&shape).unwrap_or_else(|| panic!("defaults.toml: {name} states no shape"));
            let default = scalar_text(value.get_ref()).expect("defaults are text or numbers");
            let (flag, variable) = (name.replace('_', "-"), format!("JOB_ROUTER_{}", name.to_uppercase()));
            (start, Key { name, flag, variable, help, shape, default })
        })
        .collect();
    found.sort_by_key(|(start, _)| *start);
    found.into_iter().map(|(_, key)| key).collect()
}

/// The comment block that ends `text`: all lines but the last as one paragraph, and the last, which states the shape.
fn comment_before(text: &str) -> (String, String) {
    let mut lines: Vec<&str> = text.lines().rev().map_while(|line| line.strip_prefix("# ")).collect();
    lines.reverse();
    let shape = lines.pop().unwrap_or_default();
    (lines.join(" "), shape.to_owned())
}
