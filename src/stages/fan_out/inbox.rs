//! The inbox itself: reading what is new, taking over what dead pods had read, acknowledging what is done.

use std::time::Duration;

use futures::future::join_all;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, sleep};
use tracing::{info, warn};

use crate::redis::{Arg, Entry, ReadFrom, Reader, RedisError};
use crate::stages::Pod;
use crate::stages::Undone;

/// How long an idle read waits; also how fast the stage ends.
const BLOCK: Duration = Duration::from_millis(500);
/// How often to look for entries that dead pods left.
const CLAIM_EVERY: Duration = Duration::from_secs(1);
/// For how long an entry is pending with this pod before it may be one that the pod does not know of.
const LOST_AFTER: Duration = Duration::from_secs(5);
/// Behind every entry there is.
const END: &str = "18446744073709551615-18446744073709551615";

/// Reads the inbox until the pod drains, as far as there is room for what was read.
pub(super) async fn read_all(pod: &Pod, mut reader: Reader, entries_in: mpsc::Sender<Vec<Entry>>) {
    let mut claim = tokio::time::interval_at(Instant::now() + CLAIM_EVERY, CLAIM_EVERY);
    claim.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut from = Some("0".to_owned()); // one's own pending entries first: a read whose answer was lost
    while !pod.draining.is_cancelled() {
        let room = tokio::select! {
            biased;
            room = entries_in.reserve() => room,
            // A consumer that is not heard of counts as dead.
            () = sleep(BLOCK) => {
                if let Err(error) = read(pod, &mut reader, Some(END)).await {
                    warn!(%error, "inbox not read");
                }
                continue;
            }
        };
        let Ok(room) = room else { return };
        let entries = match read(pod, &mut reader, from.as_deref()).await {
            Ok(entries) => entries,
            Err(error) => {
                warn!(%error, "inbox not read"); // the reader pauses by itself
                from = Some("0".to_owned());
                continue;
            }
        };
        // Pending entries page by page, until there are none.
        from = from.and_then(|_| entries.last().map(|entry| entry.id.clone()));
        if entries.is_empty() {
            drop(room); // what is claimed needs it
        } else {
            room.send(entries);
        }
        if claim.tick_if_due() {
            match claim_all(pod, &entries_in).await {
                Ok(()) => {}
                Err(error) => warn!(%error, "entries of dead pods not claimed"),
            }
        }
    }
}

/// Whether a tick has come, without waiting for it.
trait TickIfDue {
    fn tick_if_due(&mut self) -> bool;
}

impl TickIfDue for tokio::time::Interval {
    fn tick_if_due(&mut self) -> bool {
        use futures::FutureExt;
        self.tick().now_or_never().is_some()
    }
}

async fn read(pod: &Pod, reader: &mut Reader, pending_after: Option<&str>) -> Result<Vec<Entry>, RedisError> {
    let config = &pod.config;
    let from = pending_after.map_or(ReadFrom::New, ReadFrom::Pending);
    let (count, consumer) = (config.inbox_batch as usize, pod.name.as_str());
    reader.read_group(&config.inbox_stream, config.inbox_group.as_str(), consumer, count, Some(BLOCK), from).await
}

/// Takes over entries that dead pods had read and not acknowledged. A pod is dead when its consumer, which reads all the time,
/// has not been heard of for long, or when it was buried: how long that is, is by Redis' clock, and one that was set back never says. One
/// that was only slow sees its entries applied twice, which changes nothing.
///
/// So it does with entries that have been pending with this pod itself for long, the first page of them: a claim whose answer was lost
/// may have been done later than anything that was asked after it. Those that the pod knows of it passes over.
async fn claim_all(pod: &Pod, entries_in: &mpsc::Sender<Vec<Entry>>) -> Result<(), RedisError> {
    let config = &pod.config;
    let dead_after = config.pod_dead_after.max(BLOCK * 4).as_millis() as u64;
    let stream = || Arg::from(&config.inbox_stream);
    let group = || Arg::from(config.inbox_group.as_str());
    let consumers = pod.redis.command("XINFO CONSUMERS", [stream(), group()]).await?;
    for consumer in consumers.into_array()? {
        let (name, pending, idle_ms) = consumer_of(consumer)?;
        let own = name == pod.name.as_str();
        if pending == 0 {
            continue;
        }
        let idle = match own {
            true => dead_after.max(LOST_AFTER.as_millis() as u64),
            false if idle_ms >= dead_after => dead_after,
            false if is_buried(pod, &name).await? => 0,
            false => continue,
        };
        let page = u64::from(config.inbox_batch);
        while !pod.draining.is_cancelled() {
            let of = [stream(), group(), "IDLE".into(), idle.into()].into_iter();
            let args = of.chain(["-".into(), "+".into(), page.into(), (&name).into()]);
            let listed = pod.redis.command("XPENDING", args).await?.into_array()?;
            if listed.is_empty() {
                break;
            }
            let claim = [stream(), group(), pod.name.as_str().into(), idle.into()];
            let mut args = Vec::from(claim);
            for pending in listed {
                let [id, ..] = pending.into_tuple::<4>()?;
                args.push(Arg::from(id.as_str()?));
            }
            let entries = pod.redis.command("XCLAIM", args).await?.into_entries()?;
            if !own {
                info!(entries = entries.len(), pod = name, "inbox entries of a dead pod taken over");
            }
            if entries.is_empty() || entries_in.send(entries).await.is_err() || own {
                break; // another pod was first
            }
        }
    }
    Ok(())
}

/// Whether a pod of this name has left, or was found dead, which each pod finds on its own clock.
async fn is_buried(pod: &Pod, name: &str) -> Result<bool, RedisError> {
    let args = [Arg::from(pod.partitions[0].key("pods")), name.into()];
    Ok(pod.redis.command("ZSCORE", args).await?.into_option().is_none())
}

/// Its name, how many entries it has, and for how many ms it was not heard of.
fn consumer_of(reply: crate::redis::Reply) -> Result<(String, u64, u64), RedisError> {
    let mut fields = reply.into_array()?.into_iter();
    let (mut name, mut pending, mut idle_ms) = (String::new(), 0, 0);
    while let (Some(field), Some(value)) = (fields.next(), fields.next()) {
        match field.as_str()? {
            "name" => value.as_str()?.clone_into(&mut name),
            "pending" => pending = value.as_u64()?,
            "idle" => idle_ms = value.as_u64()?,
            _ => {}
        }
    }
    Ok((name, pending, idle_ms))
}

/// Reads entries again; those that are gone are left out.
pub(super) async fn fetch(pod: &Pod, ids: &[String]) -> Result<Vec<Entry>, Undone> {
    let stream = &pod.config.inbox_stream;
    let fetched = join_all(ids.iter().map(async |id| {
        let range =
            async || pod.redis.command("XRANGE", [Arg::from(stream), id.into(), id.into()]).await?.into_entries();
        pod.until_done("read again", range).await
    }));
    Ok(fetched.await.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
}

/// These entries are done with.
pub(super) async fn acknowledge(pod: &Pod, ids: &[String]) -> Result<(), Undone> {
    if ids.is_empty() {
        return Ok(());
    }
    let stream = Arg::from(&pod.config.inbox_stream);
    let group = Arg::from(pod.config.inbox_group.as_str());
    let ids = ids.iter().map(Arg::from);
    let acked = [stream.clone(), group].into_iter().chain(ids.clone()).collect::<Vec<_>>();
    let deleted = [stream].into_iter().chain(ids).collect::<Vec<_>>();
    // In this order on one connection: an entry that is gone but pending would be claimed for ever.
    let call = || async {
        // Boxed, as two such futures side by side are large.
        let acked = Box::pin(pod.redis.command("XACK", acked.clone()));
        let deleted = Box::pin(pod.redis.command("XDEL", deleted.clone()));
        let (acked, deleted) = tokio::join!(acked, deleted);
        acked.and(deleted)
    };
    pod.until_done("acknowledge", call).await.map(drop)
}

/// The inbox as this pod leaves: its consumer goes, with nothing pending, as the stage has ended.
pub async fn leave(pod: &Pod) -> Result<(), RedisError> {
    let config = &pod.config;
    let args = [Arg::from(&config.inbox_stream), config.inbox_group.as_str().into(), pod.name.as_str().into()];
    let pending = [Arg::from(&config.inbox_stream), config.inbox_group.as_str().into(), "-".into(), "+".into()];
    let pending = pending.into_iter().chain(["1".into(), pod.name.as_str().into()]);
    // Entries that could not be applied stay with the consumer, for another pod to claim.
    if pod.redis.command("XPENDING", pending).await?.into_array()?.is_empty() {
        pod.redis.command("XGROUP DELCONSUMER", args).await?;
    }
    Ok(())
}
