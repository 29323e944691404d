//! A process that replaces a primary that is silent.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use job_router::redis::ReservedPort;
use tempfile::TempDir;

/// The name by which sentinels know the primary.
pub const SERVICE: &str = "main";
/// How long a primary may be silent before sentinels replace it.
const DOWN_AFTER_MS: u32 = 1_000;

/// It runs until this is dropped.
pub struct Sentinel {
    pub port: u16,
    process: Child,
    _reserved: ReservedPort,
    _dir: TempDir,
}

// === impl Sentinel ===

impl Sentinel {
    pub fn start(primary: u16) -> Self {
        let dir = tempfile::Builder::new().prefix("jr-sentinel-").tempdir().expect("a directory");
        let reserved = ReservedPort::new().expect("a port");
        let port = reserved.get();
        let path: PathBuf = dir.path().join("sentinel.conf");
        let text = format!(
            "bind 127.0.0.1\nport {port}\ndir {}\nlogfile {}\nsentinel monitor {SERVICE} 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\nsentinel failover-timeout {SERVICE} 3000\n\
             sentinel parallel-syncs {SERVICE} 2\n",
            dir.path().display(),
            dir.path().join("log").display(),
        );
        std::fs::write(&path, text).expect("written");
        // It ends with us, whatever ends us: its shell waits for the end of a pipe that we hold.
        let process = Command::new("/bin/sh")
            .args(["-c", r#"redis-server "$1" --sentinel </dev/null & read -r _; kill -KILL $!"#, "sentinel"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a sentinel starts");
        Self { process, port, _reserved: reserved, _dir: dir }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
