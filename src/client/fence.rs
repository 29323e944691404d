//! The runner's half of a lease: when to beat, and when a job must be gone whatever the network does.
//!
//! Invariants:
//! 1. A job's lease counts from when the last **acknowledged** beat that listed it was **sent** (before
//!    that: from when `Accepted` was). The router counts from a later moment, so its lease ends later.
//! 2. The job is killed a quarter of a lease before that end, so that killing has time too.
//! 3. Time is `CLOCK_BOOTTIME`: it goes on while the machine is suspended, as the router's clock does.
//!
//! Pure but for [`BootTime::now`]; everything else takes `now`.

use std::collections::VecDeque;

/// Milliseconds since boot, suspended time included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BootTime(pub(super) u64);

/// The beats of one session.
#[derive(Debug)]
pub(super) struct Beats {
    lease_ms: u64,
    interval_ms: u64,
    due: BootTime,
    next_sequence: u64,
    /// Sent and not acknowledged, oldest first. At most 65: no interval is below a 64th of the lease,
    /// and a session whose oldest is a lease old is given up ([`silent`](Beats::silent)).
    unacknowledged: VecDeque<(u64, BootTime)>,
}

// === impl BootTime ===

impl BootTime {
    /// Reads the clock.
    pub(super) fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // Neither part is ever negative: the clock starts with zero at boot.
        Self(now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000)
    }

    /// So many milliseconds later; the end of time if that is too far.
    pub(super) fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

// === impl Beats ===

impl Beats {
    /// For a session with these times, the first beat due at once: it renews what was resumed.
    ///
    /// The interval is held between a 64th and a quarter of the lease, whatever the router asks: slower
    /// would let healthy jobs be fenced.
    pub(super) fn new(lease_ms: u32, beat_interval_ms: u32, now: BootTime) -> Self {
        let lease_ms = u64::from(lease_ms).max(1);
        let interval_ms = u64::from(beat_interval_ms).clamp(lease_ms.div_ceil(64), lease_ms.div_ceil(4));
        Self { lease_ms, interval_ms, due: now, next_sequence: 1, unacknowledged: VecDeque::new() }
    }

    /// The sequence of the beat to send now, if one is due; counts it as sent.
    pub(super) fn send(&mut self, now: BootTime) -> Option<u64> {
        if now < self.due {
            return None;
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.due = now.plus(self.interval_ms);
        self.unacknowledged.push_back((sequence, now));
        Some(sequence)
    }

    /// When the acknowledged beat was sent; `None` if it was never sent or a later one is acknowledged already.
    pub(super) fn acknowledge(&mut self, sequence: u64) -> Option<BootTime> {
        let place = self.unacknowledged.iter().position(|(sent, _)| *sent == sequence)?;
        self.unacknowledged.drain(..=place).next_back().map(|(_, at)| at)
    }

    /// The sequence of the next beat: the first that can list a job accepted now.
    pub(super) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// When a job must be gone whose lease was last renewed by a message sent at `sent`.
    pub(super) fn fence(&self, sent: BootTime) -> BootTime {
        sent.plus(self.lease_ms - self.lease_ms / 4)
    }

    /// Whether beats have gone unanswered for a whole lease: such a session serves nobody.
    pub(super) fn silent(&self, now: BootTime) -> bool {
        self.unacknowledged.front().is_some_and(|(_, at)| now >= at.plus(self.lease_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: BootTime = BootTime(1_000_000);

    #[test]
    fn the_clock_runs_forward() {
        let before = BootTime::now();
        assert!(BootTime::now() >= before && before.0 > 0);
    }

    #[test]
    fn with_the_default_lease_the_fence_leaves_fifteen_seconds() {
        let beats = Beats::new(60_000, 10_000, START);
        assert_eq!(beats.fence(START), START.plus(45_000));
    }

    #[test]
    fn a_lease_counts_from_the_sending_of_the_acknowledged_beat_not_from_its_answer() {
        let mut beats = Beats::new(60_000, 10_000, START);
        assert_eq!(beats.send(START), Some(1));
        assert_eq!(beats.send(START.plus(9_999)), None);
        assert_eq!(beats.send(START.plus(10_000)), Some(2));
        assert_eq!(beats.send(START.plus(20_000)), Some(3));
        assert_eq!(beats.acknowledge(2), Some(START.plus(10_000)));
        assert_eq!(beats.acknowledge(1), None, "an older answer renews nothing");
        assert_eq!(beats.acknowledge(2), None, "nor does a repeated one");
        assert_eq!(beats.acknowledge(9), None, "nor one for a beat never sent");
        assert_eq!(beats.acknowledge(3), Some(START.plus(20_000)));
    }

    #[test]
    fn a_session_is_silent_only_after_a_whole_lease_without_an_answer() {
        let mut beats = Beats::new(60_000, 10_000, START);
        assert!(!beats.silent(START.plus(100_000)), "nothing was asked");
        beats.send(START);
        assert!(!beats.silent(START.plus(59_999)));
        assert!(beats.silent(START.plus(60_000)));
        beats.acknowledge(1);
        assert!(!beats.silent(START.plus(60_000)));
    }

    #[test]
    fn no_interval_can_fence_healthy_jobs_or_grow_the_ledger() {
        for asked in [0, 1, 10_000, u32::MAX] {
            let mut beats = Beats::new(60_000, asked, START);
            beats.send(START);
            assert!(beats.send(START.plus(937)).is_none() && beats.send(START.plus(15_000)).is_some(), "asked {asked}");
        }
    }
}
