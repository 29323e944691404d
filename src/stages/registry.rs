//! registry: follows changes of runners, so that a new tag, a pause or a deletion acts at once on what is connected here.
//!
//! In: the registry's change log, read with a blocking call on its own connection. Out: the runner's new record to the take
//! stage.

use tokio::sync::mpsc;
use tracing::warn;

use super::{Pod, ToTake};
use crate::redis::Reader;

/// Follows the log from an entry on until the pod has stopped.
pub async fn run(pod: Pod, mut reader: Reader, mut after: String, take: mpsc::Sender<ToTake>) {
    let mut forgotten = pod.redis.forgotten();
    while !pod.stopped.is_cancelled() {
        let changes = tokio::select! {
            changes = pod.runners.changes(&mut reader, &after) => changes,
            // Reading the log claims nothing, so the read may be left.
            // It may be another log, with ids that stand before what was read last where Redis' clock was set back: read all of it.
            Ok(()) = forgotten.changed() => {
                "0-0".clone_into(&mut after);
                continue;
            }
            () = pod.stopped.cancelled() => return,
        };
        let (ids, next) = match changes {
            Ok(changes) => changes,
            Err(error) => {
                warn!(%error, "runner changes not read"); // the reader pauses by itself
                continue;
            }
        };
        for id in ids {
            let Ok(record) = pod.until_done("runner", || pod.runners.get(id)).await else { continue };
            let _ = take.send(ToTake::Changed(id, record.map(Box::new))).await;
        }
        after = next;
    }
}
