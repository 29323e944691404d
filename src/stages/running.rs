//! running: keeps leases alive while their runners beat.
//!
//! In: beats. Out: `BeatAck` once the renewal is recorded (the runner counts its lease from when it sent the beat that was
//! acknowledged), with the jobs that are not its any more; `Cancel` for those it should stop.
//!
//! One runner must not hold up the beats of all: of several beats of a session the newest is answered, and Redis is asked only
//! about jobs that the session holds here. What it holds was pushed or resumed here, so anything else is not its.

use std::collections::HashSet;

use tokio::sync::mpsc;

use super::{BATCH, Pod, Undone, between, by_partition, cancel, wire};
use crate::grpc::{Beat, SessionId, Spoken};
use crate::job::Lease;
use crate::proto::{self, router_message::Kind};
use crate::redis::Renewed;

/// A beat and what was found out about its jobs.
struct Answering {
    session: SessionId,
    sequence: u64,
    gone: Vec<Lease>,
}

/// Renews until the pod has stopped.
pub async fn run(pod: Pod, mut beats: mpsc::Receiver<Spoken<Beat>>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            () = pod.stopped.cancelled() => return,
            read = beats.recv_many(&mut batch, BATCH) => if read == 0 { return },
        }
        if let Err(Undone::Stopped) = renew(&pod, newest(batch.drain(..))).await {
            return;
        }
    }
}

/// The last beat of each session: its answer answers those before it.
fn newest(beats: impl DoubleEndedIterator<Item = Spoken<Beat>>) -> Vec<Spoken<Beat>> {
    let mut heard = HashSet::new();
    beats.rev().filter(|beat| heard.insert(beat.session)).collect()
}

async fn renew(pod: &Pod, beats: Vec<Spoken<Beat>>) -> Result<(), Undone> {
    let mut answering = Vec::with_capacity(beats.len());
    let mut leases = Vec::new();
    for Spoken { session, said } in beats {
        let (sequence, beat) = (said.sequence, answering.len());
        let listed: HashSet<Lease> = said.running.into_iter().collect();
        let (held, gone) = listed.into_iter().partition(|lease| pod.held.holds(*lease, session));
        leases.extend(Vec::into_iter(held).map(|lease| (beat, lease)));
        answering.push(Answering { session, sequence, gone });
    }
    let (groups, _) = by_partition(pod, leases, |(_, lease)| *lease);
    for (number, leases) in groups {
        let partition = &pod.partitions[usize::from(number)];
        for leases in leases.chunks(BATCH) {
            let only: Vec<Lease> = leases.iter().map(|(_, lease)| *lease).collect();
            // Looked up before the call: a start that is recorded after the renewal may be known here before its answer is.
            let starting: Vec<bool> = only.iter().map(|lease| pod.held.is_starting(lease.lease_id)).collect();
            let (before, call) = (pod.seen(number), || partition.renew(&pod.name, pod.config.lease, &only));
            let mut renewed = pod.until_done("renew", call).await?;
            // Not known here: or has Redis lost it?
            if renewed.contains(&Renewed::NotYours) && pod.was_lost(number, &before).await? {
                renewed = pod.until_done("renew", call).await?;
            }
            for (((beat, lease), renewed), starting) in leases.iter().zip(renewed).zip(starting) {
                match renewed {
                    Renewed::Running => {}
                    Renewed::Canceling { grace, reason } => cancel(pod, *lease, grace, reason),
                    // Accepted and not yet recorded as started is not gone: the start stage will say.
                    Renewed::NotYours if starting => {}
                    Renewed::NotYours => {
                        pod.held.remove(*lease);
                        answering[*beat].gone.push(*lease);
                    }
                }
            }
        }
    }
    between("running: before BeatAck");
    for Answering { session, sequence, gone } in answering {
        if let Some(outbox) = pod.sessions.get(session) {
            let gone = gone.into_iter().map(wire).collect();
            outbox.send(Kind::BeatAck(proto::BeatAck { sequence, gone }));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_beats_of_a_session_the_newest_is_answered() {
        let (one, two) = (SessionId::next(), SessionId::next());
        let said = |session, sequence| Spoken { session, said: Beat { sequence, running: Vec::new() } };
        let beats = vec![said(one, 1), said(two, 7), said(one, 2), said(one, 3), said(two, 8)];
        let mut newest: Vec<_> =
            newest(beats.into_iter()).iter().map(|beat| (beat.session, beat.said.sequence)).collect();
        newest.sort_unstable();
        assert_eq!(newest, [(one, 3), (two, 8)]);
    }
}
