//! A Lua script: its body, the parts of libraries that it uses, and the name Redis knows it by.
//!
//! Redis runs a script from its first line at every call, and making the functions of all libraries costs as much as a
//! short script's work. So a script gets only the parts whose names it uses.

use std::collections::HashSet;
use std::fmt;
use std::sync::OnceLock;

use bytes::Bytes;

/// A Lua script compiled into the program. Make it a `static`: it remembers its source and its digest.
///
/// ```
/// use job_router::redis::{Library, Script};
/// const GREET: Library = Library { name: "greet", source: "local function greet() return 'hello' end\n" };
/// static HELLO: Script = Script::new("hello", "#!lua", &[GREET], "return greet()");
/// assert_eq!(HELLO.sha1().len(), 40);
/// ```
pub struct Script {
    name: &'static str,
    first_line: &'static str,
    libraries: &'static [Library],
    body: &'static str,
    glued: OnceLock<Glued>,
    sha1: OnceLock<Bytes>,
}

/// A script with the parts it uses.
struct Glued {
    source: String,
    libraries: Vec<&'static str>,
}

/// Lua that scripts share. Its parts are separated by empty lines; each begins with comments or with `local`, and uses only
/// what stands before it.
#[derive(Debug, Clone, Copy)]
pub struct Library {
    /// Its name.
    pub name: &'static str,
    /// Its text.
    pub source: &'static str,
}

// === impl Script ===

impl Script {
    /// A script by its name (for logs and errors), its first line with its flags, the libraries it may use, in the order in
    /// which they build on each other, and its body.
    pub const fn new(
        name: &'static str,
        first_line: &'static str,
        libraries: &'static [Library],
        body: &'static str,
    ) -> Self {
        Self { name, first_line, libraries, body, glued: OnceLock::new(), sha1: OnceLock::new() }
    }

    /// The name for logs and errors.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The names of the libraries it uses, in order.
    pub fn libraries(&self) -> &[&'static str] {
        &self.glued().libraries
    }

    /// The Lua source.
    pub fn source(&self) -> &str {
        &self.glued().source
    }

    fn glued(&self) -> &Glued {
        self.glued.get_or_init(|| glue(self.first_line, self.libraries, self.body))
    }

    /// The SHA-1 of the source in hex: what EVALSHA takes.
    pub fn sha1(&self) -> &str {
        std::str::from_utf8(self.digest()).expect("hex is ASCII")
    }

    pub(super) fn digest(&self) -> &Bytes {
        self.sha1.get_or_init(|| fred::util::sha1_hash(self.source()).into())
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Script").field(&self.name).finish()
    }
}

/// The parts that are used, and the body. Goes backwards, as a part uses only what stands before it.
fn glue(first_line: &str, libraries: &[Library], body: &'static str) -> Glued {
    let mut used: HashSet<&str> = names(body).collect();
    let (mut parts, mut from) = (vec![body], Vec::new());
    for library in libraries.iter().rev() {
        for part in library.source.split("\n\n").collect::<Vec<_>>().into_iter().rev() {
            let mut defined = part.lines().filter_map(|line| line.strip_prefix("local ")).flat_map(definitions);
            if defined.any(|name| used.contains(name)) {
                used.extend(names(part));
                parts.push(part);
                from.push(library.name);
            }
        }
    }
    parts.push(first_line);
    parts.reverse();
    from.reverse();
    from.dedup();
    Glued { source: parts.join("\n"), libraries: from }
}

/// What a `local` line defines: `function f(…)`, `a, b = …`.
fn definitions(line: &str) -> impl Iterator<Item = &str> {
    let line = line.strip_prefix("function ").unwrap_or(line);
    names(line.split(['=', '(']).next().expect("there is a first part"))
}

/// All words outside comments; more than the names that are used, and never fewer.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let code = text.lines().map(|line| line.split("--").next().expect("there is a first part"));
    code.flat_map(|code| code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_gets_the_parts_it_uses_and_what_these_use() {
        let low = Library {
            name: "low",
            source: "-- low\n\nlocal A, B = 1, 2\n\nlocal function unused()\n  return A\nend\n",
        };
        let high =
            Library { name: "high", source: "-- high\n\n-- Both.\nlocal function sum(a)\n  return a + B\nend\n" };
        let glued = glue("#!lua", &[low, high], "return sum(1)");
        assert_eq!(
            glued.source,
            "#!lua\nlocal A, B = 1, 2\n-- Both.\nlocal function sum(a)\n  return a + B\nend\n\nreturn sum(1)"
        );
        assert_eq!(glued.libraries, ["low", "high"]);
        assert!(glue("#!lua", &[low, high], "return 1").libraries.is_empty());
    }

    #[test]
    fn every_definition_of_a_library_is_found_as_such() {
        for library in crate::redis::scripts::LIBRARIES {
            for line in library.source.lines().filter(|line| line.starts_with("local ")) {
                let name = definitions(&line["local ".len()..]).next().expect("it defines something");
                let text: &'static str = Box::leak(format!("return {name}").into_boxed_str());
                assert!(glue("", &[*library], text).source.contains(line), "{}: {line}", library.name);
            }
            for part in library.source.split("\n\n").filter(|part| !part.trim().is_empty()) {
                let starts = part.lines().find(|line| !line.starts_with("--")).unwrap_or("local");
                assert!(starts.starts_with("local"), "{}: no part begins with {starts:?}", library.name);
            }
        }
    }
}
