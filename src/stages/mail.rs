//! mail: hears what scripts that other pods ran have to say to this one.
//!
//! In: one partition's mailbox, read with a blocking call on its own connection. Out: wakes and new lanes to the take stage;
//! `Start`, `Cancel` and `Revoked` to runners.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::{Pod, ToTake, between, cancel, revoked, runs_for_rails};
use crate::redis::{Mail, Reader};
use crate::telemetry::labels::Wake;
use crate::telemetry::metrics;

/// Reads the mailbox of partition `number` until the pod has stopped. `read` says up to where it has dealt with it; who sets
/// it back, as the mailbox is another one, has all read that is there.
pub async fn run(
    pod: Pod,
    number: u16,
    mut reader: Reader,
    take: mpsc::Sender<ToTake>,
    read: Arc<watch::Sender<String>>,
) {
    let partition = &pod.partitions[usize::from(number)];
    let mut position = read.subscribe();
    while !pod.stopped.is_cancelled() {
        let after = position.borrow_and_update().clone();
        let letters = tokio::select! {
            letters = partition.mail(&mut reader, &pod.name, &after) => letters,
            // Reading mail claims nothing, so the read may be left.
            Ok(()) = position.changed() => continue,
            () = pod.stopped.cancelled() => return,
        };
        match letters {
            Ok((letters, next)) => {
                for letter in letters {
                    deal_with(&pod, number, letter, &take).await;
                }
                read.send_if_modified(|position| {
                    let same = *position == after;
                    if same {
                        *position = next;
                    }
                    same
                });
            }
            Err(error) => warn!(%error, partition = number, "mail not read"), // the reader pauses by itself
        }
    }
}

async fn deal_with(pod: &Pod, number: u16, letter: Mail, take: &mpsc::Sender<ToTake>) {
    match letter {
        Mail::Wake(lane, likes) => {
            metrics().wakes_total.of(Wake::Received).increment(1);
            if let Some(manager) = likes {
                let _ = take.send(ToTake::Likes(number, lane, manager)).await;
            }
            let _ = take.send(ToTake::Wake(number, vec![lane])).await;
        }
        Mail::LaneOpened(lane, capability) => {
            let _ = take.send(ToTake::LaneOpened(number, lane, capability)).await;
        }
        Mail::Resync => {
            let _ = take.send(ToTake::Resync).await;
        }
        Mail::Cancel { lease, grace, reason } => {
            between("mail: before Cancel");
            cancel(pod, lease, grace, reason);
        }
        Mail::Started(lease) => runs_for_rails(pod, lease),
        Mail::Revoke { lease, reason } => {
            if let Some(outbox) = pod.held.remove(lease) {
                outbox.send(revoked(lease, &reason));
            }
        }
    }
}
