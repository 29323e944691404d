//! What no compiler checks: scripts' headers tell the truth, imports point down the layers, files stay small.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use job_router::redis::Script;
use job_router::redis::scripts::{ALL, Outcome};

/// Longer files, each with its reason.
const LONG_FILES: [(&str, &str); 4] = [
    ("src/client/session_tests.rs", "one story of a session per test, on one played router"),
    ("src/contract/tests.rs", "one table of good and bad messages per type"),
    ("tests/scripts/edge.rs", "one fault of the edge to Redis per test, on shared helpers"),
    ("tests/scripts/moves.rs", "worlds in, one script, worlds out: one test per promise, on shared helpers"),
];
const LINES_MAX: usize = 450;

const WORDS: [&str; 10] =
    ["job", "tags", "runner", "flow", "fairness", "pause", "clock", "contract", "explain", "simulation"];
const EDGES: [&str; 5] = ["config", "telemetry", "redis", "grpc", "proto"];

fn files(folder: &str, extension: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut folders, mut found): (Vec<PathBuf>, _) = (vec![root.join(folder)], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let name = path.strip_prefix(root).expect("below the root").to_str().expect("UTF-8").to_owned();
                found.push((name, fs::read_to_string(&path).expect("text")));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} has .{extension} files");
    found.sort();
    found
}

/// The scripts by name: file, header, body without comments, and the script.
fn scripts() -> Vec<(String, String, String, &'static Script)> {
    let all = files("lua", "lua").into_iter().filter(|(path, _)| !path.starts_with("lua/lib/"));
    let script = |(path, text): (String, String)| {
        let name = path["lua/".len()..path.len() - ".lua".len()].to_owned();
        let script = ALL.iter().find(|script| script.name() == name);
        let script = *script.unwrap_or_else(|| panic!("{path} is not in scripts::ALL"));
        let header: Vec<&str> = text.lines().take_while(|line| line.starts_with("--")).collect();
        let header = header.join("\n");
        let body = code(&text[header.len()..]);
        (name, header, body, script)
    };
    let all: Vec<_> = all.map(script).collect();
    assert_eq!(all.len(), ALL.len(), "every script has its file");
    all
}

/// Lua without its comments.
fn code(lua: &str) -> String {
    lua.lines().map(|line| line.split("--").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The value of a header line such as `-- uses: …`.
fn line_of<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    header.lines().find_map(|line| line.strip_prefix("-- ")?.strip_prefix(key)).map(str::trim)
}

/// The reply words in some text.
fn replies(text: &str) -> BTreeSet<&'static str> {
    let words: BTreeSet<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    Outcome::ALL.map(Outcome::word).into_iter().filter(|word| words.contains(word)).collect()
}

/// The highest index in `<list>[n]`.
fn highest(text: &str, list: &str) -> u32 {
    let opening = format!("{list}[");
    let after = text.split(&opening).skip(1);
    let index = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().ok();
    after.filter_map(index).max().unwrap_or(0)
}

#[test]
fn every_script_opens_with_its_name_its_caller_its_arguments_its_answers_and_its_cost() {
    for (name, header, body, _) in scripts() {
        assert!(header.starts_with(&format!("-- {name}: ")), "{name}: line 1 says what it is");
        for part in ["Called by ", "KEYS[1]  ", "Returns", "Cost O(", "uses: "] {
            assert!(header.contains(&format!("-- {part}")), "{name}: no `{part}`");
        }
        assert!(body.contains("return"), "{name} answers something");
    }
}

#[test]
fn every_key_and_argument_a_script_reads_is_in_its_header_and_the_other_way_round() {
    for (name, header, body, _) in scripts() {
        let keys = highest(&header, "KEYS");
        assert!(highest(&body, "KEYS") <= keys, "{name} reads KEYS its header does not name");
        let (documented, read) = (highest(&header, "ARGV"), highest(&body, "ARGV"));
        assert!(read <= documented, "{name} reads ARGV[{read}], its header ends at ARGV[{documented}]");
        // A list that is open at its end is walked by a variable; `take` and `index` reach their last so as well.
        assert!(
            read == documented || header.contains(&format!("ARGV[{documented}…]")),
            "{name}: nothing reads ARGV[{documented}]"
        );
        if header.contains(&format!("ARGV[{documented}…]")) {
            assert!(body.contains("#ARGV"), "{name} reads its list to the end");
            let first = [format!("= {documented}, #ARGV"), format!("= {documented} + ")];
            assert!(first.iter().any(|first| body.contains(first)), "{name}: its list begins at {documented}");
        }
    }
}

#[test]
fn flags_are_those_of_the_function_and_a_full_redis_can_drain_but_not_fill() {
    let mut flags = BTreeMap::new();
    for (name, header, _, script) in scripts() {
        let has = Some(script.flags()).filter(|flags| !flags.is_empty());
        assert_eq!(line_of(&header, "flags:"), has, "{name}");
        flags.insert(name, has);
    }
    assert_eq!(flags["fan_out"], None);
    for name in ["take", "start", "finish", "cancel", "renew", "expire", "give_back"] {
        // `take` makes room in the end: what is queued leaves only through it.
        assert_eq!(flags[name], Some("allow-oom"), "{name}");
    }
}

#[test]
fn a_header_names_the_libraries_its_script_uses_in_their_order() {
    let libraries: BTreeMap<String, String> = files("lua/lib", "lua").into_iter().collect();
    for (name, text) in &libraries {
        let name = &name["lua/lib/".len()..name.len() - ".lua".len()];
        assert!(text.starts_with(&format!("-- {name}: ")), "{name}: line 1 says what it is");
    }
    for (name, header, _, script) in scripts() {
        let named: Vec<&str> =
            line_of(&header, "uses:").expect("a line").split(' ').filter(|lib| *lib != "none").collect();
        assert_eq!(named, script.libraries(), "{name}");
    }
}

#[test]
fn replies_have_one_list_and_every_header_names_those_its_body_gives() {
    let libraries = files("lua/lib", "lua");
    let (_, library) = libraries.iter().find(|(path, _)| path == "lua/lib/reply.lua").expect("the replies");
    let listed = library.lines().filter_map(|line| line.strip_prefix("local ")?.split_once(" = '"));
    let listed: Vec<(&str, &str)> = listed.map(|(name, rest)| (name, rest.split('\'').next().expect("text"))).collect();
    let words = Outcome::ALL.map(|outcome| (outcome.word(), outcome.word()));
    assert_eq!(listed, words, "lua/lib/reply.lua and Outcome::ALL");
    for (name, header, body, _) in scripts() {
        let returns = header.split("-- Returns").nth(1).and_then(|rest| rest.split("-- Cost").next()).expect("Returns");
        assert_eq!(replies(&body), replies(returns), "{name}: given by the body, named by the header");
    }
}

/// Rust without line comments, and its modules' tests, which may use anything, cut off.
fn production(rust: &str) -> String {
    let rust = rust.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    rust.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The top modules that a file names after `crate::`, also in braces.
fn imports(rust: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for after in rust.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            Some(list) => {
                let list = list.split(';').next().unwrap_or_default();
                let mut depth = 0;
                for part in list.split_inclusive(['{', '}', ',']) {
                    if depth == 0 {
                        found.insert(word(part.trim_start()));
                    }
                    depth += i32::from(part.ends_with('{')) - i32::from(part.ends_with('}'));
                }
            }
            None => {
                found.insert(word(after));
            }
        }
    }
    found.remove("");
    found
}

#[test]
fn imports_point_down_the_layers_and_stages_never_meet() {
    for (path, text) in files("src", "rs") {
        if path.ends_with("/tests.rs") || path == "src/lib.rs" {
            continue;
        }
        let below: Vec<&str> = path["src/".len()..].trim_end_matches(".rs").split('/').collect();
        let layer = below[0];
        let rust = production(&text);
        for import in imports(&rust).iter().map(String::as_str).filter(|import| *import != layer) {
            let allowed = if WORDS.contains(&layer) {
                WORDS.contains(&import)
            } else if EDGES.contains(&layer) {
                WORDS.contains(&import) || import == "telemetry" || layer == "grpc" && import == "proto"
            } else if layer == "stages" {
                WORDS.contains(&import) || EDGES.contains(&import)
            } else if layer == "client" {
                ["job", "tags", "clock", "proto"].contains(&import)
            } else {
                ["dispatcher", "shutdown", "main", "commands"].contains(&layer)
            };
            assert!(allowed, "{path} must not use crate::{import}");
        }
        if let ["stages", stage, ..] = below[..] {
            for other in rust.split("stages::").skip(1).chain(rust.split("super::super::").skip(1)) {
                // What all stages share has a capital letter, or stands in `stages.rs` itself.
                let shared = other.starts_with(|first: char| first.is_ascii_uppercase());
                let line = other.lines().next().unwrap_or("");
                assert!(shared || other.starts_with(stage), "{path} uses another stage: {line}");
            }
        }
        if WORDS.contains(&layer) {
            for library in ["tokio::", "fred::", "tonic::"] {
                assert!(!rust.contains(library), "{path} is of the words: no {library}");
            }
        }
        assert!(below[0] == "redis" || !rust.contains("fred::"), "{path}: fred stays in src/redis");
        let spawns = rust.contains("tokio::spawn") || rust.contains("task::spawn(");
        let test_file = path.ends_with("_tests.rs");
        assert!(
            ["dispatcher", "commands"].contains(&layer) || test_file || !spawns,
            "{path}: only the dispatcher spawns"
        );
    }
}

#[test]
fn imports_are_found_however_they_are_written() {
    let rust =
        "use crate::{job::{Name, A}, tags, redis::Redis};\nlet x = crate::flow::State::Queued;\nuse crate::clock;";
    assert_eq!(imports(rust), ["clock", "flow", "job", "redis", "tags"].map(String::from).into());
}

#[test]
fn files_are_short_or_say_why_not() {
    let all = [("src", "rs"), ("tests", "rs"), ("lua", "lua")].into_iter().flat_map(|(dir, ext)| files(dir, ext));
    for (path, text) in all {
        let (lines, listed) = (text.lines().count(), LONG_FILES.iter().any(|(long, _)| *long == path));
        assert!(lines <= LINES_MAX || listed, "{path} has {lines} lines");
        assert!(lines > LINES_MAX || !listed, "{path} has {lines} lines: take it off the list");
    }
}
