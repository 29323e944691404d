//! What cleans up after a job when the runner cannot: it was killed, by hand or for want of memory.
//!
//! A shell beside each job reads from a pipe that the runner holds: the process group that runs now, a line each. When the
//! runner is gone, however it went, the pipe closes; the shell kills the last group it was told of and removes the
//! job's directory. A parent-death signal would need `unsafe`, reach only the group's leader, and come when a *thread*
//! of the runner ends.

use std::io::{self, PipeWriter, Write};
use std::path::Path;
use std::process::Stdio;

use rustix::process::Pid;
use tokio::process::{Child, Command};

/// Waits for the runner's end, then cleans up. `$1` the job's directory.
const GUARD: &str = r#"while read -r line; do group=$line; done
[ -z "$group" ] || kill -s KILL -- "-$group"
rm -rf -- "$1""#;

/// The shell and our end of its pipe. Dropping it ends the shell, which then cleans up nothing.
pub(super) struct Guard {
    // First: it must be dead before the pipe closes.
    _shell: Child,
    pipe: PipeWriter,
}

// === impl Guard ===

impl Guard {
    /// Guards a job's directory, and no group yet.
    pub(super) fn start(dir: &Path) -> io::Result<Self> {
        let (reader, pipe) = io::pipe()?;
        let shell = Command::new("/bin/sh")
            .args(["-c", GUARD, "job-router-job-guard"])
            .arg(dir)
            .env_remove("group")
            .current_dir("/")
            .stdin(reader)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C is for the runner, which then still needs it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { _shell: shell, pipe })
    }

    /// Guards this group instead of the one before; none, before the number of the old one may become another's.
    pub(super) fn watch(&self, group: Option<Pid>) {
        let group = group.map(|group| group.as_raw_nonzero().to_string()).unwrap_or_default();
        // Fails only when the shell was killed; all other ends of a job are as they were. Never blocks: a pipe holds
        // thousands of such lines.
        writeln!(&self.pipe, "{group}").ok();
    }
}
