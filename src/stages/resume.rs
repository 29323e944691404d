//! resume: ends pauses whose time is over.
//!
//! In: what a sweep found, on whichever pod comes first; several may try, and one does it. Out: nothing; who waits is woken by mail.
//! A stage of its own, as indexing a large tenant's queue may take longer than a heartbeat may.

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::Pod;
use crate::pause::Note;
use crate::redis::{Over, Resumed};

/// How many may wait: one sweep's. What finds no room is found again by the next.
pub const CHANNEL: usize = 64;

/// Ends pauses until the pod has stopped.
pub async fn run(pod: Pod, mut over: mpsc::Receiver<(u16, Over)>) {
    let by = Note::new(pod.name.as_str()).expect("a name is short");
    loop {
        let (number, over) = tokio::select! {
            () = pod.stopped.cancelled() => return,
            over = over.recv() => match over { Some(over) => over, None => return },
        };
        let partition = &pod.partitions[usize::from(number)];
        match partition.resume(&over.target, &by, Some(&over.end)).await {
            Ok(Resumed::Done) => info!(queue = over.target.field(), partition = number, "pause ended by its time"),
            Ok(Resumed::Not) => {} // another pod was faster, or its end is another now
            // Not repeated here: the next sweep finds what is not done to the end.
            Err(error) => {
                warn!(%error, queue = over.target.field(), partition = number, "pause not ended, tried again");
            }
        }
    }
}
