//! A runner's manager in a process of its own. It notes when jobs begin and end, in a file that outlives it.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use job_router::client::{self, Executor, JobContext, Options, Outcome, Shutdown};
use job_router::job::Name;
use rustix::process::Signal;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::clocks::Clock;
use super::history::NotesFile;
use crate::support::processes::{freeze, send};

/// How many jobs each runs at a time.
pub const SLOTS: u32 = 4;
/// The variable that tells the process who it is; [`TEST`] is what it runs.
const ORDERS: &str = "CHAOS_RUNNER";
pub const TEST: &str = "a_runner_of_the_rig";

/// A manager. Killed when dropped; ends by itself when this process is gone.
pub struct ManagerProcess {
    pub manager: String,
    child: Child,
    _stdin: Option<ChildStdin>,
}

// === impl ManagerProcess ===

impl ManagerProcess {
    pub fn start(url: &str, token: &str, manager: &str, slots: u32, notes: &Path, clock: &Clock) -> Self {
        let orders = json!({"url": url, "token": token, "manager": manager, "slots": slots, "notes": notes});
        let mut child = Command::new(std::env::current_exe().expect("this executable"))
            .args([TEST, "--exact", "--ignored", "--nocapture"])
            .env(ORDERS, orders.to_string())
            .envs(clock.environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let stdin = child.stdin.take();
        Self { manager: manager.to_owned(), child, _stdin: stdin }
    }

    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn freeze(&self) {
        freeze(&self.child);
    }

    pub fn thaw(&self) {
        send(&self.child, Signal::CONT);
    }
}

impl Drop for ManagerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process does: runs jobs until it is killed.
pub fn run() {
    let orders = std::env::var(ORDERS).expect("only the rig starts it");
    let orders: Value = serde_json::from_str(&orders).expect("JSON");
    let text = |name: &str| orders[name].as_str().expect("text").to_owned();
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_line(&mut String::new());
        std::process::exit(1);
    });
    let manager = text("manager");
    let notes = Arc::new(NotesFile::open(&PathBuf::from(text("notes"))));
    let slots = orders["slots"].as_u64().expect("a number") as u32;
    let token = SecretString::from(text("token"));
    let options = Options::new(text("url"), token, Name::new(&manager).expect("a name"), slots);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ended = runtime.block_on(client::run(options, Noting { manager, notes }, Shutdown::default()));
    panic!("it runs until it is killed: {ended:?}");
}

struct Noting {
    manager: String,
    notes: Arc<NotesFile>,
}

/// Notes the end of a job, however that ends.
struct Running<'a> {
    noting: &'a Noting,
    job: u64,
    lease: String,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.noting.notes.ended(&self.noting.manager, self.job, &self.lease);
    }
}

impl Executor for Noting {
    async fn run(&self, job: JobContext) -> Outcome {
        let (id, lease) = (job.assignment.lease.job_id.0, job.assignment.lease.lease_id.to_string());
        self.notes.began(&self.manager, id, &lease);
        let _running = Running { noting: self, job: id, lease };
        let payload: Value = serde_json::from_slice(&job.assignment.payload).expect("JSON");
        let runs = Duration::from_millis(payload["runs_ms"].as_u64().expect("a number"));
        tokio::select! {
            () = tokio::time::sleep(runs) => Outcome::success(),
            () = job.cancel.cancelled() => Outcome::canceled(),
            () = job.kill.cancelled() => Outcome::canceled(),
        }
    }
}
