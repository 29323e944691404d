//! What everybody did and saw, with one clock: what the checker decides over.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value, json};

/// Microseconds of the machine's monotonic clock, the same for all processes.
pub type Micros = u64;

pub fn now() -> Micros {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

/// Does nothing for so long, on a thread that may block.
pub fn pause(for_so_long: Duration) {
    let until = Instant::now() + for_so_long;
    while Instant::now() < until {
        std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
    }
}

/// One thing that somebody did or saw.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub at: Micros,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// A manager of a runner takes part; what Rails says of the runner.
    Manager {
        manager: String,
        runner: Value,
    },
    /// Rails is about to publish a job for the first time.
    Tried {
        job: u64,
        data: Value,
    },
    /// Redis acknowledged it.
    Published {
        job: u64,
    },
    /// Rails applied an event.
    Applied(Told),
    /// An event that is in the stream at the end, in the order of the stream.
    Written(Told),
    /// A job's process runs.
    Began {
        manager: String,
        job: u64,
        lease: String,
    },
    /// It does not any more.
    Ended {
        manager: String,
        job: u64,
        lease: String,
    },
    /// A manager and all its jobs were killed, stand still, go on.
    Killed {
        manager: String,
    },
    Frozen {
        manager: String,
    },
    Thawed {
        manager: String,
    },
    /// The rig did something.
    Fault {
        kind: String,
    },
    /// A primary without a barrier is killed, and what no replica had is gone with it; another has taken over.
    PrimaryLost,
    PrimaryReplaced,
    /// All faults have been over for long enough; jobs still come.
    Calm,
    /// A pod takes so much memory, in KiB, and has so many descriptors open: before the faults and when all is over.
    Level {
        at_end: bool,
        memory: u64,
        descriptors: u64,
    },
    /// A key that should not be there at the end.
    Left {
        key: String,
    },
}

/// An event as far as the checker reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub id: String,
    pub kind: String,
    pub job: u64,
    pub lease: String,
    /// 0: none.
    pub runner: u64,
}

/// Where an actor writes. Clones write to the same place.
#[derive(Debug, Clone, Default)]
pub struct Notes(Arc<Mutex<Vec<Record>>>);

/// Where an actor that may be killed at any moment writes: each line is in the file before it goes on.
pub struct NotesFile(Mutex<File>);

impl Notes {
    pub fn add(&self, what: What) {
        self.add_at(now(), what);
    }

    pub fn add_at(&self, at: Micros, what: What) {
        self.0.lock().expect("no panic").push(Record { at, what });
    }

    pub fn all(&self) -> Vec<Record> {
        self.0.lock().expect("no panic").clone()
    }
}

impl NotesFile {
    pub fn open(path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Self(Mutex::new(file.expect("the file of notes opens")))
    }

    pub fn began(&self, manager: &str, job: u64, lease: &str) {
        self.add("began", manager, job, lease);
    }

    pub fn ended(&self, manager: &str, job: u64, lease: &str) {
        self.add("ended", manager, job, lease);
    }

    fn add(&self, what: &str, manager: &str, job: u64, lease: &str) {
        let line = json!({"at": now(), "what": what, "manager": manager, "job": job, "lease": lease});
        self.0.lock().expect("no panic").write_all(format!("{line}\n").as_bytes()).expect("the notes are written");
    }
}

/// What a file of notes holds. A last line that was cut off by a kill was not acted on.
pub fn read_notes(path: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let records = text.lines().filter_map(|line| {
        let line: Map<String, Value> = serde_json::from_str(line).ok()?;
        let text = |name: &str| Some(line.get(name)?.as_str()?.to_owned());
        let (manager, job, lease) = (text("manager")?, line.get("job")?.as_u64()?, text("lease")?);
        let what = match text("what")?.as_str() {
            "began" => What::Began { manager, job, lease },
            _ => What::Ended { manager, job, lease },
        };
        Some(Record { at: line.get("at")?.as_u64()?, what })
    });
    records.collect()
}
