//! The documents: what they point to is there. Needs no Redis.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use job_router::config::DEFAULTS_TOML;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files with this ending, but for what is built or hidden.
fn files(ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder can be read") {
            let path = entry.expect("an entry can be read").path();
            let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
            if name.starts_with('.') || ["target", "node_modules"].contains(&&*name) {
                continue;
            } else if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn text_of(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines of a document that are not code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// The targets of a document's links.
fn links(text: &str) -> Vec<&str> {
    let parts = prose(text).flat_map(|line| line.split("](").skip(1));
    parts.filter_map(|part| part.split_once(')').map(|(target, _)| target)).collect()
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    prose(text).filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

#[test]
fn every_relative_link_points_to_a_file_and_a_heading_that_exist() {
    let mut broken = Vec::new();
    for document in files("md") {
        let text = text_of(&document);
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => document.clone(),
                path => document.parent().expect("a file is in a folder").join(path),
            };
            let exists = target.exists() && (heading.is_empty() || anchors(&text_of(&target)).contains(heading));
            if !exists {
                broken.push(format!("{}: {link}", document.strip_prefix(root()).expect("below the root").display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn every_test_that_a_document_names_exists() {
    let sources: String = files("rs").iter().map(|path| text_of(path)).collect();
    let mut missing = Vec::new();
    for document in files("md") {
        let text = text_of(&document);
        let quoted = text.split('`').skip(1).step_by(2);
        // A test's name is a sentence: a word of the code with so many parts is one, unless it is a metric or a setting.
        let sentence = |word: &&str| {
            word.matches('_').count() >= 4
                && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
                && !word.starts_with("job_router_")
                && !DEFAULTS_TOML.contains(&format!("\n{word} = "))
        };
        for name in quoted.filter(sentence).filter(|name| !sources.contains(&format!("fn {name}("))) {
            missing.push(format!("{}: {name}", document.strip_prefix(root()).expect("below the root").display()));
        }
    }
    assert!(missing.is_empty(), "no such tests:\n{}", missing.join("\n"));
}

#[test]
fn the_architecture_names_every_script_and_every_stage() {
    let architecture = text_of(&root().join("ARCHITECTURE.md"));
    let sources = files("lua").into_iter().chain(files("rs"));
    let parts = sources.filter(|path| {
        let folder = path.parent().expect("a file is in a folder");
        folder.ends_with("lua") || folder.ends_with("lua/lib") || folder.ends_with("src/stages")
    });
    let missing: Vec<String> = parts
        .map(|path| path.strip_prefix(root()).expect("below the root").display().to_string())
        .filter(|path| !architecture.contains(&format!("({path})")))
        .collect();
    assert!(missing.is_empty(), "not in ARCHITECTURE.md: {missing:?}");
}
