//! Pods in processes of their own.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// How long a pod may take to say where it listens, on a busy machine.
const LISTENS_IN: Duration = Duration::from_secs(30);

/// A `job-router serve`. Killed when dropped; ends by itself when this process is gone.
pub struct PodProcess {
    child: Child,
    _stdin: Option<ChildStdin>,
    /// `127.0.0.1:<port>`, for runners.
    pub address: String,
}

// === impl PodProcess ===

impl PodProcess {
    /// Starts one with these flags and waits until it says `ready`: `pod ready`, or `pod listening`, which needs no Redis.
    pub fn start(flags: &[String], ready: &'static str) -> Self {
        Self::start_with(flags, ready, Vec::new())
    }

    /// The same with these variables in its environment.
    pub fn start_with(flags: &[String], ready: &'static str, environment: Vec<(String, String)>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_job-router"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("JOB_ROUTER_")) {
            command.env_remove(name);
        }
        command.args(["serve", "--grpc-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--log-format=json"]);
        command.args(flags).args(["--end-with-stdin", "--rebuild-hold=0s"]).envs(environment);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (tell, told) = mpsc::channel();
        let outputs: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        for output in outputs {
            let tell = tell.clone();
            // Read to its end, so that a full pipe holds up nothing.
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if std::env::var_os("SHOW_PODS").is_some() {
                        eprintln!("{line}");
                    }
                    let Ok(line) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
                    if line["message"] == ready {
                        let _ = tell.send(line["grpc"].as_str().expect("an address").to_owned());
                    }
                }
            });
        }
        let stdin = child.stdin.take();
        let address = told.recv_timeout(LISTENS_IN).expect("the pod is ready in time");
        Self { child, _stdin: stdin, address }
    }

    /// Where runners connect.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        send(&self.child, signal);
    }

    /// Freezes it. Returns once all its threads stand still: the signal only asks them to.
    pub fn freeze(&self) {
        freeze(&self.child);
    }

    /// Waits for its end after SIGTERM: exit code 0.
    pub fn drained(mut self) {
        let since = Instant::now();
        loop {
            match self.child.try_wait().expect("ours") {
                Some(status) => return assert!(status.success(), "{status}"),
                None => assert!(since.elapsed() < Duration::from_secs(10), "not drained in time"),
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Its memory, in KiB, and how many descriptors it has open.
    pub fn takes(&mut self) -> (u64, u64) {
        let ended = self.child.try_wait().expect("ours");
        assert!(ended.is_none(), "a pod ended by itself: {ended:?}; SHOW_PODS=1 shows what it said");
        let process = std::path::Path::new("/proc").join(self.child.id().to_string());
        let status = std::fs::read_to_string(process.join("status")).expect("it lives");
        let memory =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        (memory.expect("a number"), std::fs::read_dir(process.join("fd")).expect("it lives").count() as u64)
    }

    /// Whether it has died.
    pub fn is_dead(&mut self) -> bool {
        self.child.try_wait().expect("ours").is_some()
    }

    /// Waits for its end after SIGTERM, whatever it says; kills it where it takes too long.
    pub fn gone(mut self, in_time: Duration) {
        let since = Instant::now();
        while self.child.try_wait().expect("ours").is_none() && since.elapsed() < in_time {
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

impl Drop for PodProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("it is there");
}

/// Freezes a child of ours.
pub fn freeze(child: &Child) {
    send(child, Signal::STOP);
    let stopped = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(Pid::from_child(child)), stopped).expect("ours");
}
