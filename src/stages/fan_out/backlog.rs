//! What this pod has read from the inbox and not yet applied, by tenant.
//!
//! Entries of one tenant stay in their order; tenants take turns. So a flood of one tenant's entries is read past, and an
//! entry behind it is applied in the next call. Only ids are remembered of what would take much memory: it is read again when
//! its turn has come.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::contract::{Message, Rejection};
use crate::job::Tenant;

/// The most entries that are read ahead: some tens of bytes each here, and in Redis, whose consumer group remembers who has
/// them. Behind more, the inbox is first come, first served.
const ENTRIES_MAX: usize = 1 << 18;
/// The most of a tenant's messages that are kept: several calls' worth.
const KEPT_OF_TENANT: usize = 128;
/// The most bytes of messages that are kept, of all tenants.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// An entry's message, or why it is none.
pub(super) type Parsed = Result<Message, Rejection>;

/// All entries that are read and not yet done.
#[derive(Default)]
pub(super) struct Backlog {
    queues: HashMap<Whose, VecDeque<Waiting>>,
    /// Who has entries, in turn.
    turns: VecDeque<Whose>,
    /// Every entry that is here or being applied: one that is read again, after a lost answer, is here once.
    known: HashSet<EntryId>,
    waiting: usize,
    kept_bytes: usize,
}

/// An entry whose turn has come.
#[derive(Debug)]
pub(super) enum Next {
    /// With its message.
    Kept(String, Parsed),
    /// To be read again.
    Left(String),
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

struct Waiting {
    id: EntryId,
    /// None: to be read again. Boxed, as most entries of a flood keep nothing.
    kept: Option<Box<(Parsed, usize)>>,
}

type EntryId = (u64, u64);

// === impl Backlog ===

impl Backlog {
    /// Adds an entry, of so many bytes, unless it is here.
    pub(super) fn add(&mut self, id: &str, parsed: Parsed, bytes: usize) {
        let whose = whose(&parsed);
        let queued = self.queues.get(&whose).map_or(0, VecDeque::len);
        let keeps = queued < KEPT_OF_TENANT && self.kept_bytes + bytes <= KEPT_BYTES_MAX;
        self.push(whose, id, keeps.then(|| Box::new((parsed, bytes))));
    }

    /// Adds an entry that could not be applied, to be tried again.
    pub(super) fn add_again(&mut self, id: &str) {
        self.push(Whose::TriedBefore, id, None);
    }

    fn push(&mut self, whose: Whose, id: &str, kept: Option<Box<(Parsed, usize)>>) {
        let id = entry_id(id);
        if !self.known.insert(id) {
            return;
        }
        self.waiting += 1;
        self.kept_bytes += kept.as_ref().map_or(0, |kept| kept.1);
        let queue = self.queues.entry(whose.clone()).or_default();
        if queue.is_empty() {
            self.turns.push_back(whose);
        }
        queue.push_back(Waiting { id, kept });
    }

    /// The next entries, at most `max`: one of each tenant in turn.
    pub(super) fn next(&mut self, max: usize) -> Vec<Next> {
        let mut nexts = Vec::with_capacity(max.min(self.waiting));
        while nexts.len() < max {
            let Some(whose) = self.turns.pop_front() else { break };
            let queue = self.queues.get_mut(&whose).expect("whose turn it is has entries");
            let Waiting { id, kept } = queue.pop_front().expect("whose turn it is has entries");
            if queue.is_empty() {
                self.queues.remove(&whose);
            } else {
                self.turns.push_back(whose);
            }
            self.waiting -= 1;
            let id = format!("{}-{}", id.0, id.1);
            nexts.push(match kept {
                Some(kept) => {
                    let (parsed, bytes) = *kept;
                    self.kept_bytes -= bytes;
                    Next::Kept(id, parsed)
                }
                None => Next::Left(id),
            });
        }
        nexts
    }

    /// These entries are applied, or given up for now.
    pub(super) fn done(&mut self, ids: &[String]) {
        for id in ids {
            self.known.remove(&entry_id(id));
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

// === impl Next ===

impl Next {
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Kept(id, _) | Self::Left(id) => id,
        }
    }

    pub(super) fn is_left(&self) -> bool {
        matches!(self, Self::Left(_))
    }
}

fn entry_id(id: &str) -> EntryId {
    let parts = id.split_once('-').and_then(|(ms, n)| Some((ms.parse().ok()?, n.parse().ok()?)));
    parts.expect("Redis makes entry ids")
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
    use crate::job::JobId;

    fn message(tenant: &str) -> Parsed {
        let tenant = Tenant::new(tenant).expect("a tenant");
        Ok(Message::JobCanceled { job_id: JobId(1), tenant, reason: "no".into() })
    }

    /// Adds an entry for each character of a text, whose tenant it names, with ids that count up from 1.
    fn backlog(text: &str) -> Backlog {
        let mut backlog = Backlog::default();
        for (at, tenant) in text.chars().enumerate() {
            backlog.add(&format!("{}-0", at + 1), message(&tenant.to_string()), 1);
        }
        backlog
    }

    fn ids(nexts: &[Next]) -> Vec<String> {
        nexts.iter().map(|next| next.id().trim_end_matches("-0").to_owned()).collect()
    }

    #[test]
    fn tenants_take_turns_and_each_ones_entries_stay_in_order() {
        let mut backlog = backlog("aaaaaabaac");
        assert_eq!(ids(&backlog.next(4)), ["1", "7", "10", "2"]);
        assert_eq!(ids(&backlog.next(2)), ["3", "4"]);
        backlog.add("11-0", message("b"), 1);
        assert_eq!(ids(&backlog.next(9)), ["5", "11", "6", "8", "9"], "whose turn was due is not passed over");
        assert_eq!(backlog.len(), 0);
    }

    #[test]
    fn an_entry_is_here_once_until_it_is_done() {
        let mut backlog = backlog("a");
        backlog.add("1-0", message("a"), 1);
        assert_eq!(ids(&backlog.next(9)), ["1"]);
        backlog.add("1-0", message("a"), 1);
        assert_eq!(backlog.len(), 0, "it is being applied");
        backlog.done(&["1-0".to_owned()]);
        backlog.add_again("1-0");
        assert!(matches!(&backlog.next(9)[..], [Next::Left(_)]));
    }

    #[test]
    fn of_a_flood_only_ids_are_kept_and_what_is_behind_it_is_kept_whole() {
        let mut backlog = backlog(&"a".repeat(KEPT_OF_TENANT + 10));
        backlog.add("1000-0", message("b"), 1);
        let nexts = backlog.next(KEPT_OF_TENANT + 1);
        assert!(nexts.iter().all(|next| matches!(next, Next::Kept(..))));
        assert_eq!(ids(&nexts)[1], "1000");
        assert!(backlog.next(10).iter().all(|next| matches!(next, Next::Left(_))));
        assert_eq!(backlog.kept_bytes, 0);
    }

    #[test]
    fn of_large_messages_as_many_are_kept_as_there_is_memory_for() {
        let mut backlog = Backlog::default();
        for at in 1..=5 {
            backlog.add(&format!("{at}-0"), message("a"), KEPT_BYTES_MAX / 4);
        }
        let kept = backlog.next(9).iter().filter(|next| matches!(next, Next::Kept(..))).count();
        assert_eq!(kept, 4);
    }
}
