//! The wall clocks of a run's hosts: each process sees one that can be moved while it runs. Its other clocks are right.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// By so much a clock is wrong: two hours, as where somebody took the local time for the universal one.
pub const WRONG_BY_S: i64 = 2 * 3_600;

/// What makes such clocks.
#[derive(Debug, Clone)]
pub struct Clocks {
    directory: PathBuf,
    library: PathBuf,
}

/// The wall clock of a host.
#[derive(Debug, Clone)]
pub struct Clock {
    file: PathBuf,
    library: PathBuf,
}

// === impl Clocks ===

impl Clocks {
    /// In a directory that outlives all processes.
    pub fn new(directory: &Path) -> Self {
        let library = directory.join("clock.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chaos/clock.c");
        let flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"];
        let built = Command::new("cc").args(flags).arg(&library).arg(source).output().expect("there is a C compiler");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Self { directory: directory.to_owned(), library }
    }

    /// The clock of a host, which is right until it is moved.
    pub fn of(&self, host: &str) -> Clock {
        let clock = Clock { file: self.directory.join(format!("{host}.clock")), library: self.library.clone() };
        clock.move_to(0);
        clock
    }
}

// === impl Clock ===

impl Clock {
    /// The variables of a process that sees it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        vec![("LD_PRELOAD".to_owned(), text(&self.library)), ("CHAOS_CLOCK".to_owned(), text(&self.file))]
    }

    /// From now on it is so far ahead of what is right, or behind it.
    pub fn move_to(&self, ahead_s: i64) {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&self.file).expect("opens");
        file.write_all_at(&ahead_s.to_ne_bytes(), 0).expect("written");
    }
}
