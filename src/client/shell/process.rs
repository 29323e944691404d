//! One process group: started, watched, and gone at the end.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::guard::Guard;
use super::output::Output;
use crate::client::executor::JobContext;

/// From SIGTERM to SIGKILL. Short: a canceled job holds a slot.
pub(super) const TERM_GRACE: Duration = Duration::from_secs(3);
/// How long output may still come after the group is dead: only processes that left the group hold the pipe.
const DRAIN_WAIT: Duration = Duration::from_secs(1);

/// How a group ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself, with this exit code; 128 + n for signal n.
    Exited(i32),
    /// We stopped it.
    Stopped(Stop),
}

/// Why it was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The job was canceled or killed.
    Canceled,
    /// Its deadline passed.
    OutOfTime,
}

/// A running process group; killed when dropped, and by the guard when we are killed.
struct Group<'a> {
    guard: &'a Guard,
    leader: Child,
    id: Pid,
    /// Readable once the leader has exited.
    exited: AsyncFd<OwnedFd>,
}

/// Runs a command as the leader of a new process group, with both outputs in one pipe so that they keep
/// their order, and no input. When this returns (or is dropped), the group is dead.
pub(super) async fn run(
    mut command: Command,
    deadline: Instant,
    context: &JobContext,
    output: &mut Output,
    guard: &Guard,
) -> io::Result<Ended> {
    let (reader, writer) = io::pipe()?;
    command.stdin(std::process::Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut group = Group::start(command, guard)?;
    let mut reader = pipe::Receiver::from_owned_fd(reader.into())?;

    let mut copy = std::pin::pin!(output.copy(&mut reader));
    let mut copied = false;
    let mut stopped = None;
    let mut stop = std::pin::pin!(stop_signal(deadline, context));
    let mut last_chance = std::pin::pin!(sleep(Duration::MAX));
    loop {
        tokio::select! {
            () = &mut copy, if !copied => copied = true,
            exited = group.exited.readable() => {
                _ = exited?;
                break;
            }
            why = &mut stop, if stopped.is_none() => {
                stopped = Some(why);
                group.signal(Signal::TERM);
                last_chance.as_mut().reset(Instant::now() + TERM_GRACE);
            }
            () = &mut last_chance => break,
            () = context.kill.cancelled() => break,
        }
    }
    let status = group.end().await?;
    if !copied && timeout(DRAIN_WAIT, &mut copy).await.is_err() {
        tracing::debug!("output is still held open by a process that left its group");
    }
    if let Some(why) = stopped {
        return Ok(Ended::Stopped(why));
    }
    if context.kill.is_cancelled() {
        return Ok(Ended::Stopped(Stop::Canceled));
    }
    let signal = std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or_default();
    Ok(Ended::Exited(status.code().unwrap_or(128 + signal)))
}

async fn stop_signal(deadline: Instant, context: &JobContext) -> Stop {
    tokio::select! {
        () = context.cancel.cancelled() => Stop::Canceled,
        () = sleep_until(deadline) => Stop::OutOfTime,
    }
}

// `AsyncFd::new` is deprecated for types whose descriptor may change or close early, in favour of an `unsafe`
// function; an `OwnedFd` does neither.
#[allow(deprecated)]
fn watch(process: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(process, Interest::READABLE)
}

// === impl Group ===

impl<'a> Group<'a> {
    fn start(mut command: Command, guard: &'a Guard) -> io::Result<Self> {
        let leader = command.process_group(0).kill_on_drop(true).spawn()?;
        // The leader is our child and not waited for, so its id is its own until `end`.
        let id = leader.id().and_then(|id| Pid::from_raw(id as i32)).expect("a child not waited for has an id");
        guard.watch(Some(id));
        let watch = pidfd_open(id, PidfdFlags::NONBLOCK).map_err(io::Error::from).and_then(watch);
        match watch {
            Ok(exited) => Ok(Self { guard, leader, id, exited }),
            Err(error) => {
                kill_process_group(id, Signal::KILL).ok();
                guard.watch(None);
                Err(error)
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // Fails only when no process is left, which is as well.
        kill_process_group(self.id, signal).ok();
    }

    /// Kills what is left of the group, then waits for the leader. In this order: until the leader is waited
    /// for, no other process can get the group's number.
    async fn end(&mut self) -> io::Result<std::process::ExitStatus> {
        self.signal(Signal::KILL);
        self.guard.watch(None);
        self.leader.wait().await
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        // `id` is `None` once the leader was waited for: then the number may be another's.
        if self.leader.id().is_some() {
            self.signal(Signal::KILL);
            self.guard.watch(None);
        }
    }
}
