//! A Lua script: its body, the parts of libraries that it uses, and the Redis function that it becomes.
//!
//! Redis keeps functions between calls, in libraries of its own. A script run by EVALSHA would make all the functions it uses
//! anew at each call, which costs more than the rest of a short one. So a script is turned into a library with one function:
//! what is at its top level, other than functions, runs at each call, in its order, and the functions are made once.

use std::collections::HashSet;
use std::fmt::{self, Write as _};
use std::sync::OnceLock;

use bytes::Bytes;

/// How the names of all our functions in Redis begin.
pub(super) const FUNCTION_PREFIX: &str = "job_router_";
/// Hidden, for tests and benchmarks: a line of comment for all sources, which makes this process one of another version.
const OTHER_VERSION: &str = "TEST_SCRIPTS_NOTE";
/// Hexadecimal digits that tell one version of a script from another.
const VERSION_DIGITS: usize = 12;

/// A Lua script compiled into the program. Make it a `static`: it remembers what it becomes.
///
/// ```
/// use job_router::redis::{Library, Script};
/// const GREET: Library = Library { name: "greet", source: "local function greet() return 'hello' end\n" };
/// static HELLO: Script = Script::new("hello", "no-writes", &[GREET], "return greet()");
/// assert!(HELLO.function().starts_with("job_router_hello_"));
/// ```
pub struct Script {
    name: &'static str,
    flags: &'static str,
    libraries: &'static [Library],
    body: &'static str,
    loadable: OnceLock<Loadable>,
}

/// A script as Redis has it.
struct Loadable {
    /// Of the function, and of its library.
    name: Bytes,
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

/// Lua taken apart at its top level.
#[derive(Default)]
struct TopLevel<'a> {
    functions: Vec<&'a str>,
    variables: Vec<&'a str>,
    statements: Vec<String>,
}

// === impl Script ===

impl Script {
    /// A script by its name (for logs, errors and its function), the flags of its function, joined by `,`, the libraries it may
    /// use, in the order in which they build on each other, and its body.
    pub const fn new(
        name: &'static str,
        flags: &'static str,
        libraries: &'static [Library],
        body: &'static str,
    ) -> Self {
        Self { name, flags, libraries, body, loadable: OnceLock::new() }
    }

    /// The name for logs and errors.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The flags of its function, joined by `,`.
    pub fn flags(&self) -> &'static str {
        self.flags
    }

    /// The names of the libraries it uses, in order.
    pub fn libraries(&self) -> &[&'static str] {
        &self.loadable().libraries
    }

    /// The source of its library in Redis.
    pub fn source(&self) -> &str {
        &self.loadable().source
    }

    /// The name of its function in Redis, and of the library with it: what FCALL takes. Another source has another name, so
    /// pods of two versions each call their own.
    pub fn function(&self) -> &str {
        std::str::from_utf8(self.function_bytes()).expect("a name is ASCII")
    }

    pub(super) fn function_bytes(&self) -> &Bytes {
        &self.loadable().name
    }

    fn loadable(&self) -> &Loadable {
        self.loadable.get_or_init(|| {
            let parts = parts_used(self.libraries, self.body);
            let flags: Vec<_> = self.flags.split(',').filter(|flag| !flag.is_empty()).collect();
            let note = std::env::var(OTHER_VERSION).map(|note| format!("-- {}\n", note.escape_default()));
            let library = |name: &str| library(&parts, self.body, &flags, name) + note.as_deref().unwrap_or_default();
            let version = fred::util::sha1_hash(&library(""));
            let name = format!("{FUNCTION_PREFIX}{}_{}", self.name, &version[..VERSION_DIGITS]);
            let source = library(&name);
            Loadable { name: name.into(), source, libraries: parts.into_iter().map(|(library, _)| library).collect() }
        })
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Script").field(&self.name).finish()
    }
}

// === impl TopLevel ===

impl<'a> TopLevel<'a> {
    fn of(lua: &'a str) -> Self {
        let mut top = Self::default();
        let mut in_function = false;
        for line in lua.lines() {
            if in_function {
                top.functions.push(line);
                in_function = line != "end";
            } else if line.starts_with("local function ") {
                top.functions.push(line);
                in_function = !line.ends_with(" end");
            } else if let Some(rest) = line.strip_prefix("local ") {
                let code = rest.split("--").next().expect("there is a first part").trim_end();
                let (names, value) = code.split_once('=').map_or((code, None), |(names, value)| (names, Some(value)));
                top.variables.push(names.trim_end());
                top.statements.push(if value.is_some() { rest.to_owned() } else { format!("{code} = nil") });
            } else if !line.is_empty() && !line.starts_with("--") {
                top.statements.push(line.to_owned());
            }
        }
        top
    }

    /// Declares its variables and functions.
    fn declare(&self, source: &mut String) {
        if !self.variables.is_empty() {
            line(source, format_args!("local {}", self.variables.join(", ")));
        }
        for function in &self.functions {
            line(source, format_args!("{function}"));
        }
    }
}

fn line(source: &mut String, text: fmt::Arguments<'_>) {
    writeln!(source, "{text}").expect("a String takes all text");
}

/// The source of a library with one function. A function of Lua has at most 60 variables of others, so the statements of each of
/// our libraries have a function of their own.
fn library(parts: &[(&str, String)], body: &str, flags: &[&str], name: &str) -> String {
    let (mut source, mut begin) = (format!("#!lua name={name}\nlocal KEYS, ARGV\n"), Vec::new());
    for (library, text) in parts {
        let top = TopLevel::of(text);
        top.declare(&mut source);
        if !top.statements.is_empty() {
            line(&mut source, format_args!("local function begin_{library}()\n{}\nend", top.statements.join("\n")));
            begin.push(format!("begin_{library}()\n"));
        }
    }
    let top = TopLevel::of(body);
    top.declare(&mut source);
    let flags: Vec<_> = flags.iter().map(|flag| format!("'{flag}'")).collect();
    line(
        &mut source,
        format_args!(
            "local function run()\n{}{}\nend\n\
             redis.register_function{{function_name='{name}', flags={{{}}}, callback=function(keys, args)\n\
             KEYS, ARGV = keys, args\nlocal answer = run()\nKEYS, ARGV = nil, nil -- they may be large\nreturn answer\nend}}",
            begin.concat(),
            top.statements.join("\n"),
            flags.join(", ")
        ),
    );
    source
}

/// The parts of libraries that a body uses, by library. Goes backwards, as a part uses only what stands before it.
fn parts_used(libraries: &[Library], body: &str) -> Vec<(&'static str, String)> {
    let mut used: HashSet<&str> = names(body).collect();
    let mut all = Vec::new();
    for library in libraries.iter().rev() {
        let mut parts = Vec::new();
        for part in library.source.split("\n\n").collect::<Vec<_>>().into_iter().rev() {
            let mut defined = part.lines().filter_map(|line| line.strip_prefix("local ")).flat_map(definitions);
            if defined.any(|name| used.contains(name)) {
                used.extend(names(part));
                parts.push(part);
            }
        }
        parts.reverse();
        if !parts.is_empty() {
            all.push((library.name, parts.join("\n")));
        }
    }
    all.reverse();
    all
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
    fn a_script_becomes_a_function_that_begins_anew_at_each_call() {
        let low = Library {
            name: "low",
            source: "-- low\n\nlocal A, B = 1, 2 -- both\nlocal seen\n\nlocal function unused()\n  return A\nend\n",
        };
        let high =
            Library { name: "high", source: "-- high\n\n-- Both.\nlocal function sum(a)\n  return a + B\nend\n" };
        static SUM: OnceLock<Script> = OnceLock::new();
        let libraries: &'static [Library] = Box::leak(Box::new([low, high]));
        let sum =
            SUM.get_or_init(|| Script::new("sum", "allow-oom,no-cluster", libraries, "-- sum\n\nreturn sum(1)\n"));
        let name = sum.function();
        assert!(
            name.starts_with("job_router_sum_") && name.len() == "job_router_sum_".len() + VERSION_DIGITS,
            "{name}"
        );
        assert_eq!(
            sum.source(),
            format!(
                "#!lua name={name}\nlocal KEYS, ARGV\n\
                 local A, B, seen\nlocal function begin_low()\nA, B = 1, 2 -- both\nseen = nil\nend\n\
                 local function sum(a)\n  return a + B\nend\n\
                 local function run()\nbegin_low()\nreturn sum(1)\nend\n\
                 redis.register_function{{function_name='{name}', flags={{'allow-oom', 'no-cluster'}}, \
                 callback=function(keys, args)\n\
                 KEYS, ARGV = keys, args\nlocal answer = run()\nKEYS, ARGV = nil, nil -- they may be large\n\
                 return answer\nend}}\n"
            )
        );
        assert_eq!(sum.libraries(), ["low", "high"]);
        assert!(Script::new("one", "", libraries, "return 1").libraries().is_empty());
    }

    #[test]
    fn another_source_has_another_name() {
        let names = ["return 1", "return 2"].map(|body| Script::new("s", "", &[], body).function().to_owned());
        assert_ne!(names[0], names[1]);
    }

    #[test]
    fn every_definition_of_a_library_is_found_as_such() {
        for library in crate::redis::scripts::LIBRARIES {
            for line in library.source.lines().filter(|line| line.starts_with("local ")) {
                let name = definitions(&line["local ".len()..]).next().expect("it defines something");
                let text: &'static str = Box::leak(format!("return {name}").into_boxed_str());
                let parts = parts_used(&[*library], text);
                assert!(parts.iter().any(|(_, part)| part.contains(line)), "{}: {line}", library.name);
            }
            for part in library.source.split("\n\n").filter(|part| !part.trim().is_empty()) {
                let starts = part.lines().find(|line| !line.starts_with("--")).unwrap_or("local");
                assert!(starts.starts_with("local"), "{}: no part begins with {starts:?}", library.name);
            }
        }
    }
}
