//! Blocking reads of streams, on a connection of their own.
//!
//! A read that is left half-way may still claim entries for its consumer. So the connection is taken out for
//! the time of a read and put back when the answer is there: a read that times out, fails or is dropped
//! closes it, and with it ends the read on the server. What it had claimed by then is in the consumer's own
//! pending list: read that ([`ReadFrom::Pending`]) first, at the start and after each error.

use std::time::Duration;

use rand::Rng;

use super::link::{Link, Reconnect};
use super::{Arg, Entry, RedisError, RedisSettings, Refusal, Reply};

/// The longest a read may block: how late a reader sees that it shall stop.
pub const BLOCK_MAX: Duration = Duration::from_secs(2);
/// How much later than asked a blocked read may answer before the server counts as hung.
const ANSWER_LATE_MAX: Duration = Duration::from_secs(1);
/// The first pause after a failure, doubled each time up to the longest: a loop that just tries again is
/// slowed down here.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How often one read makes its group again: once at first, once when the stream went away under it. More, and
/// somebody deletes it all the time: the caller shall know.
const GROUPS_MADE_MAX: u32 = 3;

/// Which entries a group read gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom<'a> {
    /// Those no consumer has had yet.
    New,
    /// Those this consumer was given and has not acknowledged, after this id (`0`: all). Never blocks.
    Pending(&'a str),
}

/// A connection for one loop of blocking reads. Connects again by itself, with a growing pause after failures.
pub struct Reader {
    settings: RedisSettings,
    link: Option<Link>,
    failures: u32,
}

// === impl Reader ===

impl Reader {
    pub(super) fn new(settings: RedisSettings) -> Self {
        Self { settings, link: None, failures: 0 }
    }

    /// Reads up to `count` entries of a stream as one consumer of a group. Makes group and stream if they are
    /// not there; the group then begins with the oldest entry.
    ///
    /// Waits for up to `block` (1 ms to 2 s) when there is nothing new; `None`: does not wait. Empty: nothing
    /// came; for [`ReadFrom::Pending`]: there is nothing more. Entries that were deleted while pending are
    /// acknowledged here, for nobody can work on them.
    ///
    /// # Errors
    ///
    /// Any but [`RedisError::Settings`]. After one, read [`ReadFrom::Pending`] from `0` first. No later than `block`
    /// and 1 s, or a few command timeouts if it has to connect.
    pub async fn read_group(
        &mut self,
        stream: &str,
        group: &str,
        consumer: &str,
        count: usize,
        block: Option<Duration>,
        from: ReadFrom<'_>,
    ) -> Result<Vec<Entry>, RedisError> {
        let (mut after, block) = match from {
            ReadFrom::New => (">".to_owned(), block),
            ReadFrom::Pending(id) => (id.to_owned(), None),
        };
        let mut groups_made = 0;
        loop {
            let mut args: Vec<Arg> = vec!["GROUP".into(), group.into(), consumer.into()];
            push_count_and_block(&mut args, count, block);
            args.extend(["STREAMS".into(), stream.into(), after.as_str().into()]);
            let reply = match self.send("XREADGROUP", stream, args, block).await {
                Err(error) if groups_made < GROUPS_MADE_MAX && is_without_group(&error) => {
                    self.create_group(stream, group).await?;
                    groups_made += 1;
                    continue;
                }
                reply => reply?,
            };
            let (entries, deleted) = entries_of(reply)?;
            if !deleted.is_empty() {
                let ids = deleted.iter().map(Arg::from);
                let args = [stream, group].into_iter().map(Arg::from).chain(ids).collect();
                self.send("XACK", stream, args, None).await?;
            }
            match deleted.into_iter().next_back() {
                // A page of nothing but deleted entries is not the end of the list.
                Some(last) if entries.is_empty() => after = last,
                _ => return Ok(entries),
            }
        }
    }

    /// Reads up to `count` entries of a stream that come after the id `after` (`$`: from now on), and waits as
    /// [`read_group`](Self::read_group) does.
    ///
    /// # Errors
    ///
    /// As [`read_group`](Self::read_group); after one, read again after the last id that was seen.
    pub async fn read(
        &mut self,
        stream: &str,
        after: &str,
        count: usize,
        block: Option<Duration>,
    ) -> Result<Vec<Entry>, RedisError> {
        let mut args = Vec::new();
        push_count_and_block(&mut args, count, block);
        args.extend(["STREAMS".into(), stream.into(), after.into()]);
        let (entries, _) = entries_of(self.send("XREAD", stream, args, block).await?)?;
        Ok(entries)
    }

    async fn create_group(&mut self, stream: &str, group: &str) -> Result<(), RedisError> {
        let args = [stream, group, "0", "MKSTREAM"].into_iter().map(Arg::from).collect();
        match self.send("XGROUP CREATE", stream, args, None).await {
            Err(error) if error.refusal() == Some(Refusal::BusyGroup) => Ok(()), // Another pod was first.
            reply => reply.map(|_| ()),
        }
    }

    async fn send(
        &mut self,
        name: &'static str,
        key: &str,
        args: Vec<Arg>,
        block: Option<Duration>,
    ) -> Result<Reply, RedisError> {
        let limit = block.map_or(self.settings.command_timeout, |block| limited(block) + ANSWER_LATE_MAX);
        let link = self.take_link().await?;
        // Out of `self` from here: if this future is dropped, or ends early, the connection goes with it.
        let answer = tokio::time::timeout(limit, link.block_on(name, key, args)).await;
        let reply = answer.unwrap_or(Err(RedisError::Timeout(name)));
        match &reply {
            Err(RedisError::Timeout(_) | RedisError::Lost(_) | RedisError::Unavailable(_)) => self.failures += 1,
            _ => {
                self.failures = 0;
                self.link = Some(link);
            }
        }
        reply
    }

    async fn take_link(&mut self) -> Result<Link, RedisError> {
        if let Some(link) = self.link.take() {
            return Ok(link);
        }
        tokio::time::sleep(pause_after(self.failures)).await;
        let link = Link::connect(&self.settings, Reconnect::Never).await;
        if link.is_err() {
            self.failures += 1;
        }
        link
    }
}

/// The pause before the next attempt, half of it random so that pods do not return in step.
fn pause_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(10);
    let pause = if failures == 0 { Duration::ZERO } else { PAUSE_MAX.min(PAUSE_MIN * 2_u32.pow(doublings)) };
    pause.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// Whether the group is not there, or went away with its stream while the read was waiting.
fn is_without_group(error: &RedisError) -> bool {
    matches!(error.refusal(), Some(Refusal::NoGroup | Refusal::Unblocked))
}

/// BLOCK 0 means for ever to Redis, so never less than 1 ms.
fn limited(block: Duration) -> Duration {
    block.clamp(Duration::from_millis(1), BLOCK_MAX)
}

fn push_count_and_block(args: &mut Vec<Arg>, count: usize, block: Option<Duration>) {
    args.extend(["COUNT".into(), (count as u64).into()]);
    if let Some(block) = block {
        args.extend(["BLOCK".into(), (limited(block).as_millis() as u64).into()]);
    }
}

/// The entries of the one stream in the reply, and the ids of those that were deleted.
pub(super) fn entries_of(reply: Reply) -> Result<(Vec<Entry>, Vec<String>), RedisError> {
    let Some(reply) = reply.into_option() else { return Ok((Vec::new(), Vec::new())) };
    // RESP2: [[stream, entries]]. RESP3: {stream: entries}, which a `Reply` has as [stream, entries].
    let mut streams = reply.into_array()?;
    if streams.len() == 1 {
        streams = streams.remove(0).into_array()?;
    }
    let [_, listed] = Reply::Array(streams).into_tuple()?;
    let (mut entries, mut deleted) = (Vec::new(), Vec::new());
    for listed in listed.into_array()? {
        match Entry::of(listed)? {
            (_, Some(entry)) => entries.push(entry),
            (id, None) => deleted.push(id),
        }
    }
    Ok((entries, deleted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_no_further() {
        assert_eq!(pause_after(0), Duration::ZERO);
        for failures in 1..200 {
            let longest = PAUSE_MAX.min(PAUSE_MIN * 2_u32.pow((failures - 1).min(10)));
            let pause = pause_after(failures);
            assert!(longest / 2 <= pause && pause <= longest, "{failures} failures: {pause:?}");
        }
    }

    #[test]
    fn no_read_blocks_for_ever() {
        assert_eq!(limited(Duration::ZERO), Duration::from_millis(1));
        assert_eq!(limited(Duration::from_secs(60)), BLOCK_MAX);
    }
}
