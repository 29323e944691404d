//! What this pod has read from the inbox and not yet applied, by tenant.
//!
//! Tenants take turns, so a flood of one tenant's entries is read past, and an entry behind it is applied in the next call.
//! Entries of one tenant are applied in their order, although several batches are under way at once: jobs may follow jobs, as
//! calls that are sent later are done later; anything else waits until what is before it is applied, and what is behind it waits
//! for it.
//!
//! Of each tenant's entries the first are kept with their messages. Of those behind them only ids are remembered; they are read
//! again before their turn comes.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::contract::{Message, Rejection};
use crate::job::Tenant;

/// The most entries that are read ahead: some tens of bytes each here, and in Redis, whose consumer group remembers who has
/// them. Behind more, the inbox is first come, first served.
const ENTRIES_MAX: usize = 1 << 18;
/// How many of each tenant's messages are kept when memory is scarce: several calls' worth. With fewer than half of it, more are
/// read again.
const KEPT_OF_TENANT: usize = 128;
/// The most bytes of messages that are kept, of all tenants. Half of it is for whoever comes first.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// An entry's message, or why it is none.
pub(super) type Parsed = Result<Message, Rejection>;

/// All entries that are read and not yet done.
#[derive(Default)]
pub(super) struct Backlog {
    queues: HashMap<Whose, Queue>,
    /// Who has entries, in turn.
    turns: VecDeque<Whose>,
    /// Of whom more entries are to be read again.
    thin: VecDeque<Whose>,
    under_way: HashMap<Whose, UnderWay>,
    /// Every entry that is here or being applied: one that is read again, after a lost answer, is here once.
    known: HashSet<EntryId>,
    waiting: usize,
    kept_bytes: usize,
}

/// Entries that are applied together.
#[derive(Debug)]
pub(super) struct Batch {
    /// In order.
    pub(super) entries: Vec<(String, Parsed)>,
    pub(super) mark: Mark,
}

/// By what a batch that is under way is known.
#[derive(Debug)]
pub(super) struct Mark {
    whose: Vec<Whose>,
    /// Nothing in it must be waited for but to be sent: jobs, and what is refused.
    is_plain: bool,
}

/// Entries to be read again.
#[derive(Debug)]
pub(super) struct Left {
    whose: Whose,
    /// Their ids, in order.
    pub(super) ids: Vec<String>,
}

/// Who is behind an entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Whose {
    Tenant(Tenant),
    /// What is of no tenant: runners.
    Nobody,
    /// What cannot be read.
    Unreadable,
    /// What could not be applied before.
    TriedBefore,
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Waiting>,
    /// How many of them are kept: the first ones.
    kept: usize,
    /// More are being read again, or are about to be.
    is_thin: bool,
}

struct Waiting {
    id: EntryId,
    /// None: to be read again. Boxed, as most entries of a flood keep nothing.
    kept: Option<Box<(Parsed, usize)>>,
}

/// Batches that are under way with entries of somebody.
#[derive(Default)]
struct UnderWay {
    plain: u32,
    others: u32,
}

type EntryId = (u64, u64);

// === impl Backlog ===

impl Backlog {
    /// Adds an entry, of so many bytes, unless it is here.
    pub(super) fn add(&mut self, id: &str, parsed: Parsed, bytes: usize) {
        let whose = whose(&parsed);
        // What is kept are the first entries: none behind one that is left out.
        let kept =
            self.queues.get(&whose).map_or(Some(0), |queue| (queue.kept == queue.entries.len()).then_some(queue.kept));
        let room = if kept.is_some_and(|kept| kept < KEPT_OF_TENANT) { KEPT_BYTES_MAX } else { KEPT_BYTES_MAX / 2 };
        let keeps = kept.is_some() && self.kept_bytes + bytes <= room;
        self.push(&whose, id, keeps.then(|| Box::new((parsed, bytes))));
    }

    /// Adds an entry that could not be applied, to be tried again.
    pub(super) fn add_again(&mut self, id: &str) {
        self.push(&Whose::TriedBefore, id, None);
    }

    fn push(&mut self, whose: &Whose, id: &str, kept: Option<Box<(Parsed, usize)>>) {
        let id = entry_id(id);
        if !self.known.insert(id) {
            return;
        }
        self.waiting += 1;
        self.kept_bytes += kept.as_ref().map_or(0, |kept| kept.1);
        let queue = self.queues.entry(whose.clone()).or_default();
        if queue.entries.is_empty() {
            self.turns.push_back(whose.clone());
        }
        queue.kept += usize::from(kept.is_some());
        queue.entries.push_back(Waiting { id, kept });
        self.look_whether_thin(whose);
    }

    fn look_whether_thin(&mut self, whose: &Whose) {
        let Some(queue) = self.queues.get_mut(whose) else { return };
        if !queue.is_thin && queue.kept < KEPT_OF_TENANT / 2 && queue.kept < queue.entries.len() {
            queue.is_thin = true;
            self.thin.push_back(whose.clone());
        }
    }

    /// The next entries, at most `max`: one of each tenant in turn. None: what waits must wait for what is under way.
    pub(super) fn next(&mut self, max: usize) -> Option<Batch> {
        let (mut entries, mut mark) = (Vec::new(), Mark { whose: Vec::new(), is_plain: true });
        let mut not_now = Vec::new();
        while entries.len() < max {
            let Some(whose) = self.turns.pop_front() else { break };
            let queue = self.queues.get_mut(&whose).expect("whose turn it is has entries");
            let first = queue.entries.front().expect("whose turn it is has entries");
            let under_way = self.under_way.get(&whose);
            let may_go = first.kept.as_ref().is_some_and(|kept| match under_way {
                None => true,
                Some(UnderWay { others: 0, .. }) => is_plain(&kept.0),
                Some(_) => false,
            });
            if !may_go {
                not_now.push(whose);
                continue;
            }
            let Waiting { id, kept } = queue.entries.pop_front().expect("just seen");
            let (parsed, bytes) = *kept.expect("just seen");
            queue.kept -= 1;
            self.waiting -= 1;
            self.kept_bytes -= bytes;
            mark.is_plain &= is_plain(&parsed);
            entries.push((format!("{}-{}", id.0, id.1), parsed));
            if queue.entries.is_empty() {
                self.queues.remove(&whose);
            } else {
                self.turns.push_back(whose.clone());
                self.look_whether_thin(&whose);
            }
            if !mark.whose.contains(&whose) {
                mark.whose.push(whose);
            }
        }
        // Whose turn was due and could not be had is first when it can.
        not_now.into_iter().rev().for_each(|whose| self.turns.push_front(whose));
        for whose in &mark.whose {
            *self.under_way.entry(whose.clone()).or_default().of(mark.is_plain) += 1;
        }
        (!entries.is_empty()).then_some(Batch { entries, mark })
    }

    /// A batch is applied, or given up for now: what waited for it may go.
    pub(super) fn applied(&mut self, mark: &Mark) {
        for whose in &mark.whose {
            let under_way = self.under_way.get_mut(whose).expect("it is under way");
            *under_way.of(mark.is_plain) -= 1;
            if under_way.plain + under_way.others == 0 {
                self.under_way.remove(whose);
            }
        }
    }

    /// These entries are acknowledged, or will be added again.
    pub(super) fn done(&mut self, ids: &[String]) {
        for id in ids {
            self.known.remove(&entry_id(id));
        }
    }

    /// Entries of somebody to be read again, if some are wanted. Each is answered once, and comes back with `add_left`.
    pub(super) fn left(&mut self) -> Option<Left> {
        let whose = self.thin.pop_front()?;
        let queue = self.queues.get(&whose).expect("who has entries left is here");
        // Of very large messages, as few as it takes to go on.
        let most = match self.kept_bytes {
            bytes if bytes < KEPT_BYTES_MAX / 2 => KEPT_OF_TENANT / 2,
            bytes if bytes < KEPT_BYTES_MAX => KEPT_OF_TENANT / 16,
            _ => 1,
        };
        let left = queue.entries.iter().skip(queue.kept).take(most);
        Some(Left { ids: left.map(|waiting| format!("{}-{}", waiting.id.0, waiting.id.1)).collect(), whose })
    }

    /// Entries that were read again, with their bytes, in order; those of `left` that are not among them are gone.
    pub(super) fn add_left(&mut self, left: &Left, entries: Vec<(String, Parsed, usize)>) {
        let queue = self.queues.get_mut(&left.whose).expect("what is left does not go before it is read");
        let mut entries = entries.into_iter().peekable();
        for id in &left.ids {
            let at = queue.kept;
            debug_assert_eq!(queue.entries[at].id, entry_id(id));
            match entries.next_if(|entry| entry.0 == *id) {
                Some((_, parsed, bytes)) => {
                    queue.entries[at].kept = Some(Box::new((parsed, bytes)));
                    queue.kept += 1;
                    self.kept_bytes += bytes;
                }
                None => {
                    queue.entries.remove(at);
                    self.known.remove(&entry_id(id));
                    self.waiting -= 1;
                }
            }
        }
        queue.is_thin = false;
        if queue.entries.is_empty() {
            self.queues.remove(&left.whose);
            self.turns.retain(|whose| *whose != left.whose);
        } else {
            self.look_whether_thin(&left.whose);
        }
    }

    /// Entries that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// Whether more should be read.
    pub(super) fn has_room(&self) -> bool {
        self.waiting < ENTRIES_MAX
    }
}

// === impl UnderWay ===

impl UnderWay {
    fn of(&mut self, is_plain: bool) -> &mut u32 {
        if is_plain { &mut self.plain } else { &mut self.others }
    }
}

fn entry_id(id: &str) -> EntryId {
    let parts = id.split_once('-').and_then(|(ms, n)| Some((ms.parse().ok()?, n.parse().ok()?)));
    parts.expect("Redis makes entry ids")
}

fn is_plain(parsed: &Parsed) -> bool {
    matches!(parsed, Ok(Message::JobPending(_)) | Err(_))
}

fn whose(parsed: &Parsed) -> Whose {
    match parsed {
        Ok(Message::JobPending(job)) => Whose::Tenant(job.tenant.clone()),
        Ok(
            Message::JobCanceled { tenant, .. }
            | Message::JobRunning { tenant, .. }
            | Message::JobFinished { tenant, .. }
            | Message::TenantUpserted { tenant, .. }
            | Message::ProjectUpserted { tenant, .. },
        ) => Whose::Tenant(tenant.clone()),
        Ok(Message::RunnerUpserted(_) | Message::RunnerDeleted { .. }) => Whose::Nobody,
        Err(_) => Whose::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Entry, Limits, parse};

    /// A job of a tenant that is named by a small letter; the same letter as a capital: a cancel.
    fn message(letter: char) -> Parsed {
        let tenant = letter.to_ascii_lowercase();
        let line = if letter.is_ascii_lowercase() {
            format!(r#"{{"type":"job.pending","data":{{"id":1,"project_id":1,"tenant":"{tenant}","payload":{{}}}}}}"#)
        } else {
            format!(r#"{{"type":"job.canceled","data":{{"id":1,"tenant":"{tenant}"}}}}"#)
        };
        let entry = Entry::from_line(&line).expect("a line");
        let limits = Limits { payload_max_bytes: 1_000, data_max_bytes: 1_000 };
        let parsed = parse(&entry.fields(), &limits);
        assert!(parsed.is_ok(), "{parsed:?}");
        parsed
    }

    /// Adds an entry for each letter of a text, with ids that count up from 1.
    fn backlog(text: &str) -> Backlog {
        let mut backlog = Backlog::default();
        for (at, letter) in text.chars().enumerate() {
            backlog.add(&format!("{}-0", at + 1), message(letter), 1);
        }
        backlog
    }

    fn next(backlog: &mut Backlog, max: usize) -> (Vec<u64>, Mark) {
        let none = Batch { entries: Vec::new(), mark: Mark { whose: Vec::new(), is_plain: true } };
        let Batch { entries, mark } = backlog.next(max).unwrap_or(none);
        (entries.iter().map(|(id, _)| entry_id(id).0).collect(), mark)
    }

    /// The same, applied at once.
    fn apply(backlog: &mut Backlog, max: usize) -> Vec<u64> {
        let (ids, mark) = next(backlog, max);
        backlog.applied(&mark);
        ids
    }

    #[test]
    fn tenants_take_turns_and_each_ones_entries_stay_in_order() {
        let mut backlog = backlog("aaaaaabaac");
        assert_eq!(apply(&mut backlog, 4), [1, 7, 10, 2]);
        assert_eq!(apply(&mut backlog, 2), [3, 4]);
        backlog.add("11-0", message('b'), 1);
        assert_eq!(apply(&mut backlog, 9), [5, 11, 6, 8, 9], "whose turn was due is not passed over");
        assert_eq!(backlog.len(), 0);
        assert!(backlog.under_way.is_empty() && backlog.queues.is_empty() && backlog.turns.is_empty());
    }

    #[test]
    fn jobs_follow_jobs_and_anything_else_waits_for_what_is_before_it_and_is_waited_for() {
        let mut backlog = backlog("aaAabbaA");
        let (first, first_mark) = next(&mut backlog, 3);
        assert_eq!(first, [1, 5, 2]);
        let (second, second_mark) = next(&mut backlog, 9);
        assert_eq!(second, [6], "a job of another; the cancel waits for jobs that are under way");
        backlog.applied(&second_mark);
        assert!(backlog.next(9).is_none());
        backlog.applied(&first_mark);
        let (third, third_mark) = next(&mut backlog, 2);
        assert_eq!(third, [3, 4], "in order within a batch");
        backlog.add("9-0", message('b'), 1);
        assert_eq!(apply(&mut backlog, 9), [9], "the first tenant's job waits for the cancel");
        backlog.applied(&third_mark);
        assert_eq!(apply(&mut backlog, 9), [7, 8]);
    }

    #[test]
    fn an_entry_is_here_once_until_it_is_done() {
        let mut backlog = backlog("a");
        backlog.add("1-0", message('a'), 1);
        assert_eq!(apply(&mut backlog, 9), [1]);
        backlog.add("1-0", message('a'), 1);
        assert_eq!(backlog.len(), 0, "it is not acknowledged yet");
        backlog.done(&["1-0".to_owned()]);
        backlog.add_again("1-0");
        assert!(backlog.next(9).is_none(), "it is to be read again");
        let left = backlog.left().expect("one");
        assert_eq!(left.ids, ["1-0"]);
        assert!(backlog.left().is_none(), "once");
        backlog.add_left(&left, vec![("1-0".to_owned(), message('a'), 1)]);
        assert_eq!(apply(&mut backlog, 9), [1]);
    }

    #[test]
    fn of_a_flood_the_first_are_kept_and_more_are_read_again_before_their_turn() {
        // Each so large that the flood fills its half of the memory at once.
        let bytes = KEPT_BYTES_MAX / 2 / KEPT_OF_TENANT;
        let flood = KEPT_OF_TENANT + 100;
        let mut backlog = Backlog::default();
        for at in 1..=flood {
            backlog.add(&format!("{at}-0"), message('a'), bytes);
        }
        backlog.add("1000-0", message('b'), bytes);
        assert!(backlog.left().is_none(), "enough are kept");
        assert_eq!(backlog.kept_bytes, (KEPT_OF_TENANT + 1) * bytes, "and what is behind it");
        assert_eq!(apply(&mut backlog, 1 + KEPT_OF_TENANT / 2)[1], 1000);
        assert!(backlog.left().is_none());
        apply(&mut backlog, 1);
        let left = backlog.left().expect("less than half is kept");
        assert_eq!((left.ids.len(), left.ids[0].as_str()), (KEPT_OF_TENANT / 2, "129-0"));
        // What comes meanwhile goes behind what is left.
        backlog.add("2000-0", message('a'), bytes);
        assert_eq!(apply(&mut backlog, 500).len(), KEPT_OF_TENANT / 2 - 1, "the rest is not here yet");
        // The first of them is gone.
        let read = left.ids[1..].iter().map(|id| (id.clone(), message('a'), bytes)).collect();
        backlog.add_left(&left, read);
        let ids = apply(&mut backlog, 500);
        assert_eq!((ids.len(), ids[0]), (KEPT_OF_TENANT / 2 - 1, 130));
        let left = backlog.left().expect("the rest");
        assert_eq!(left.ids.last().map(String::as_str), Some("2000-0"));
        backlog.add_left(&left, Vec::new());
        assert_eq!((backlog.len(), backlog.kept_bytes), (0, 0));
        assert!(backlog.queues.is_empty() && backlog.turns.is_empty() && backlog.left().is_none());
    }

    #[test]
    fn of_small_messages_many_are_kept() {
        let mut backlog = backlog(&"a".repeat(10 * KEPT_OF_TENANT));
        assert_eq!(apply(&mut backlog, usize::MAX).len(), 10 * KEPT_OF_TENANT);
    }

    #[test]
    fn of_large_messages_as_many_are_kept_as_there_is_memory_for() {
        let mut backlog = Backlog::default();
        for at in 1..=9 {
            backlog.add(&format!("{at}-0"), message('a'), KEPT_BYTES_MAX / 4);
        }
        assert_eq!(backlog.kept_bytes, KEPT_BYTES_MAX);
        let left = backlog.left().expect("some are left");
        assert_eq!(left.ids, ["5-0"], "one at a time while there is no room");
        assert_eq!(apply(&mut backlog, 9), [1, 2, 3, 4]);
        backlog.add_left(&left, vec![("5-0".to_owned(), message('a'), 1)]);
        assert_eq!(backlog.left().expect("the rest").ids.len(), 4);
    }
}
