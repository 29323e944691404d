//! recover: what time alone brings: heartbeats, leases that ran out, pods that died, wakes that were lost.
//!
//! Redis' clock may jump, so it only says whom to look at. A lease expires, and a pod is dead, when this pod itself has seen it
//! unchanged for long enough on its own monotonic clock; the script then checks that it still is. Where that clock was moved back,
//! it would say nothing for as long: what has a deadline further ahead than any is set is looked at too.

mod breaker;
mod redis_clock;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch as channel};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info, warn};

use super::{BATCH, Pod, ToTake, Undone, between};
use crate::clock::jitter;
use crate::config::Config;
use crate::job::Lease;
use crate::redis::{Due, Expired, Heartbeat, Over, Partition};
use crate::runner::Lane;
use crate::telemetry::labels::{self, GaveBack};
use crate::telemetry::metrics;
use breaker::Breaker;
use redis_clock::RedisClock;
use watch::Watch;

/// How many leases one call reads: a few milliseconds of Redis.
const DUE_PAGE: u32 = 512;
/// How many one look reads at most. What a look does not list is not watched.
const DUE_MAX: usize = 65_536;

/// Makes the pod known in partition `number`.
pub async fn join(pod: &Pod, number: u16) -> Result<(), Undone> {
    let Heartbeat { instance, .. } = pod.until_done("heartbeat", || pod.heartbeat(number, MAIL_BEGINS)).await?;
    pod.follow_instance(number, &instance).await
}

/// Before all that is in a mailbox.
const MAIL_BEGINS: &str = "0-0";

/// Looks after partition `number` until the pod has stopped.
pub async fn run(
    pod: Pod,
    number: u16,
    take: mpsc::Sender<ToTake>,
    resume: mpsc::Sender<(u16, Over)>,
    mail_read: Arc<channel::Sender<String>>,
) {
    let config = pod.config.clone();
    let mut recover = Recover {
        number,
        take,
        resume,
        // Looks come once a heartbeat: one that comes a moment early must not make the verdict a whole heartbeat late.
        pods: Watch::new(config.pod_dead_after.saturating_sub(config.pod_heartbeat / 2)),
        leases: Watch::new(config.lease),
        assigned: Watch::new(config.accept_timeout),
        canceling: Watch::new(canceling_watched(&config)),
        astray: Watch::new(longest(&config)),
        clock: RedisClock::default(),
        standing: Watch::new(config.sweep_interval / 2),
        breaker: Breaker::new(config.mass_expiry_percent, config.mass_expiry_hold, config.lease),
        breaker_told: false,
        primary: None,
        mail_read,
        sweep_cursor: "0".to_owned(),
        pod,
    };
    // The first at once: what Redis' clock says from now on is compared with it.
    let mut heartbeat = tokio::time::interval(config.pod_heartbeat);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Jittered, so that the pods' sweeps spread over the interval.
    let mut sweep = ticks(jitter(config.sweep_interval, 0.2));
    let stopped = recover.pod.stopped.clone();
    loop {
        let done = tokio::select! {
            () = stopped.cancelled() => return,
            _ = heartbeat.tick() => recover.heartbeat().await,
            _ = sweep.tick() => recover.sweep_and_expire().await,
        };
        if let Err(Undone::Stopped) = done {
            return;
        }
    }
}

/// How long a job that was told to stop is watched before it is ended for its runner: at least a lease, as its `Start` may still be on
/// its way, and a runner that hears nothing drops what it has not started by then. One with a longer grace is looked at from `ahead`
/// of its end on.
fn canceling_watched(config: &Config) -> Duration {
    config.lease.max(config.cancel_grace) - config.cancel_grace.saturating_sub(ahead(config))
}

/// How long before its deadline a job is looked at. A lease that was renewed within the last beat and a half is nobody's worry.
fn ahead(config: &Config) -> Duration {
    config.lease.saturating_sub(config.beat_interval + config.beat_interval / 2)
}

/// The longest time ahead for which this pod sets a deadline.
fn longest(config: &Config) -> Duration {
    config.lease.max(config.cancel_grace).max(config.accept_timeout)
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

struct Recover {
    pod: Pod,
    number: u16,
    take: mpsc::Sender<ToTake>,
    resume: mpsc::Sender<(u16, Over)>,
    /// Pods by name; their heartbeats.
    pods: Watch<String, String>,
    /// Leases that were not renewed lately; their beats.
    leases: Watch<Due, ()>,
    /// Jobs pushed by pods that do not look after them any more.
    assigned: Watch<Due, ()>,
    /// Jobs that were told to stop; their runners may go on beating.
    canceling: Watch<Lease, ()>,
    /// Jobs in any state whose deadline was set before Redis' clock was moved back.
    astray: Watch<Due, ()>,
    clock: RedisClock,
    /// Lanes with work; what is at their head.
    standing: Watch<Lane, String>,
    sweep_cursor: String,
    breaker: Breaker,
    breaker_told: bool,
    /// The server and its history, as seen last.
    primary: Option<String>,
    /// Up to where mail was dealt with.
    mail_read: Arc<channel::Sender<String>>,
}

// === impl Recover ===

impl Recover {
    fn partition(&self) -> &Partition {
        &self.pod.partitions[usize::from(self.number)]
    }

    /// Says that this pod lives, and buries those that do not.
    async fn heartbeat(&mut self) -> Result<(), Undone> {
        let mail_read = self.mail_read.borrow().clone();
        let asked = Instant::now();
        let call = || self.pod.heartbeat(self.number, &mail_read);
        let Heartbeat { is_new, pods, instance } = self.pod.until_done("heartbeat", call).await?;
        let answered = Instant::now();
        self.pod.follow_instance(self.number, &instance).await?;
        let own = pods.iter().find(|(name, _)| *name == self.pod.name).and_then(|(_, beat)| beat.parse().ok());
        if own.is_some_and(|now_ms| self.clock.jumped(now_ms, asked, answered)) {
            warn!(partition = self.number, "redis' clock jumped ahead; what it keeps for a time may be gone");
            self.pod.redis.has_forgotten();
            let _ = self.take.send(ToTake::Resync).await;
        }
        if is_new {
            // Others took it for dead, or Redis lost it: whatever it waited for is forgotten.
            info!(pod = %self.pod.name, partition = self.number, "pod joined");
            self.read_all_mail();
            let _ = self.take.send(ToTake::Resync).await;
        }
        let others = pods.into_iter().filter(|(name, _)| *name != self.pod.name);
        let seen = others.map(|(name, beat)| (name.to_string(), beat));
        for (name, heartbeat) in self.pods.unchanged(asked, seen) {
            let Ok(name) = name.parse() else { continue };
            let call = || self.partition().bury(&name, Some(&heartbeat));
            if let Some(given_back) = self.pod.until_done("bury", call).await? {
                metrics().give_backs_total.of(GaveBack::PodDead).increment(given_back);
                warn!(dead_pod = %name, partition = self.number, given_back, "dead pod buried");
            }
        }
        Ok(())
    }

    async fn sweep_and_expire(&mut self) -> Result<(), Undone> {
        self.sweep().await?;
        self.expire().await
    }

    /// Backs up the wakes: a lane with the same head twice may be one whose wake was lost. The take stage knows.
    async fn sweep(&mut self) -> Result<(), Undone> {
        let config = self.pod.config.clone();
        let (asked, mut seen) = (Instant::now(), Vec::new());
        loop {
            let call = || {
                let cursor = &self.sweep_cursor;
                self.partition().sweep(cursor, config.lane_idle_ttl, config.events_max_len, config.scope_ttl)
            };
            let (next, mut page, over) = self.pod.until_done("sweep", call).await?;
            seen.append(&mut page);
            for over in over {
                let _ = self.resume.try_send((self.number, over)); // without room: by the next sweep
            }
            self.sweep_cursor = next;
            if self.sweep_cursor == "0" {
                break;
            }
        }
        let standing: Vec<Lane> = self.standing.unchanged(asked, seen).into_iter().map(|(lane, _)| lane).collect();
        if !standing.is_empty() {
            let _ = self.take.send(ToTake::Standing(self.number, standing)).await;
        }
        Ok(())
    }

    fn tell_breaker(&mut self, open: bool) {
        if open != self.breaker_told {
            self.breaker_told = open;
            metrics().mass_expiry.increment(if open { 1.0 } else { -1.0 });
        }
    }

    /// The mailbox may be another than the one that was read. Its letters have the time in their ids, and where Redis' clock was set
    /// back meanwhile all of them would stand before what was read last.
    fn read_all_mail(&self) {
        self.mail_read.send_replace(MAIL_BEGINS.to_owned());
    }

    /// Another server, or the same with another history, may have lost beats that were acknowledged: what was seen there before says
    /// nothing about how long a lease has been silent.
    fn follow(&mut self, primary: String) {
        if self.primary.as_ref() == Some(&primary) {
            return;
        }
        if self.primary.replace(primary).is_some() {
            metrics().redis_primary_changes_total.increment(1);
            warn!(partition = self.number, lease = ?self.pod.config.lease, "another redis primary; no lease runs out for one lease");
            self.read_all_mail();
        }
        self.leases.forget();
        self.assigned.forget();
        self.canceling.forget();
        self.astray.forget();
    }

    /// Ends leases that this pod has seen unchanged for all their time.
    async fn expire(&mut self) -> Result<(), Undone> {
        let config = self.pod.config.clone();
        let ahead = ahead(&config);
        let asked = Instant::now();
        let far = longest(&config) * 2; // other pods may be configured for longer ones
        let look = self.pod.until_done("due", || self.partition().due(ahead, far, DUE_PAGE, DUE_MAX)).await?;
        self.follow(look.primary);
        let (astray, near): (Vec<_>, Vec<_>) =
            look.due.into_iter().partition(|due| due.overdue_ms < -(far.as_millis() as i64));
        let (canceling, leased): (Vec<_>, Vec<_>) = near.into_iter().partition(|due| due.state == "canceling");
        let (assigned, leased): (Vec<_>, Vec<_>) = leased.into_iter().partition(|due| due.state == "assigned");
        // The pushing pod looks after the time to accept; others only when it is past.
        let overdue = assigned.into_iter().filter(|due| due.overdue_ms >= 0);
        let mut ended = self.assigned.unchanged(asked, overdue.map(|due| (without_time(due), ())));
        let silent = |due: &Due| due.silent.unwrap_or_default();
        let leased = leased.into_iter().map(|due| (silent(&due), without_time(due)));
        let mut run_out = self.leases.unchanged_for(asked, leased.map(|(silent, due)| (due, (), silent)));
        let lost = self.astray.unchanged_for(asked, astray.iter().map(|due| (without_news(due), (), silent(due))));
        let lost = astray.into_iter().filter(|due| lost.contains(&(without_news(due), ())));
        run_out.extend(lost.map(|due| (due, ())));
        if self.breaker.holds(asked, run_out.len(), look.live) {
            error!(
                leases = run_out.len(),
                of = look.live,
                partition = self.number,
                "so many leases run out at once that it looks like a fault between us and the runners; held up for \
                 mass_expiry_hold: look at the network to the runners, and at the pods"
            );
        } else {
            ended.extend(run_out);
        }
        self.tell_breaker(self.breaker.is_open(asked));
        let graceless = self.canceling.unchanged(asked, canceling.iter().map(|due| (due.lease, ())));
        let graceless = canceling.into_iter().filter(|due| graceless.contains(&(due.lease, ())));
        ended.extend(graceless.map(|due| (due, ())));
        for batch in ended.chunks(BATCH) {
            let leases: Vec<_> = batch.iter().map(|(due, ())| (due.lease, due.beat.clone())).collect();
            let call = || self.partition().expire(&self.pod.name, config.ended_ttl, &leases);
            let (outcomes, wakes) = self.pod.until_done("expire", call).await?;
            between("expire: before its wakes");
            for ((lease, _), outcome) in leases.iter().zip(outcomes) {
                let Some(outcome) = label(outcome) else { continue };
                metrics().expiries_total.of(outcome).increment(1);
                if let Some(end) = end_of(outcome) {
                    metrics().jobs_ended_total.of(end).increment(1);
                }
                warn!(job_id = %lease.job_id, lease_id = %lease.lease_id, ?outcome, "lease expired");
            }
            if !wakes.is_empty() {
                let _ = self.take.send(ToTake::Wake(self.number, wakes)).await;
            }
        }
        Ok(())
    }
}

fn without_time(due: Due) -> Due {
    Due { overdue_ms: 0, ..due }
}

/// What stays the same of a job of which nothing is heard. One that was told to stop may go on beating.
fn without_news(due: &Due) -> Due {
    let beat = if due.state == "canceling" { String::new() } else { due.beat.clone() };
    Due { overdue_ms: 0, beat, ..due.clone() }
}

fn end_of(outcome: labels::Expired) -> Option<labels::Ended> {
    match outcome {
        labels::Expired::Requeued => None,
        labels::Expired::Failed => Some(labels::Ended::RunnerLost),
        labels::Expired::Canceled => Some(labels::Ended::Canceled),
    }
}

fn label(outcome: Expired) -> Option<labels::Expired> {
    match outcome {
        Expired::Requeued => Some(labels::Expired::Requeued),
        Expired::Failed => Some(labels::Expired::Failed),
        Expired::Canceled => Some(labels::Expired::Canceled),
        Expired::Not => None,
    }
}
