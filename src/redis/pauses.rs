//! What is paused in a partition: the typed face of `pause` and `resume`.

use super::scripts::{self, Outcome};
use super::{Arg, Partition, RedisError, Reply};
use crate::pause::{Note, Pause, Target};

/// A pause whose time is over, as seen by a sweep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Over {
    /// What was paused.
    pub target: Target,
    /// Its end, as Redis wrote it.
    pub end: String,
}

/// What became of a pause that was to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumed {
    /// It has ended, now or by an earlier call that was left half way.
    Done,
    /// It was none, or has another end by now.
    Not,
}

// === impl Partition ===

impl Partition {
    /// All pauses of this partition: the hash `paused`. One of a newer version is passed over.
    pub async fn pauses(&self) -> Result<Vec<Pause>, RedisError> {
        let flat = self.command("HGETALL", "paused").await?.into_array()?;
        let mut pauses = Vec::with_capacity(flat.len() / 2);
        for pair in flat.chunks_exact(2) {
            pauses.extend(Pause::read(pair[0].as_str()?, pair[1].as_str()?));
        }
        pauses.sort_by(|a: &Pause, b| a.target.cmp(&b.target));
        Ok(pauses)
    }

    /// `pause`: nothing new of the target is assigned until it is resumed, or until `until_ms`, in Unix ms of Redis' clock.
    pub async fn pause(
        &self,
        target: &Target,
        until_ms: Option<u64>,
        by: &Note,
        note: &Note,
    ) -> Result<(), RedisError> {
        let until_ms = until_ms.map(|ms| ms.to_string()).unwrap_or_default();
        let args = vec![target.field().into(), name(target), until_ms.into(), by.json().into(), note.json().into()];
        Outcome::try_from(&self.call(&scripts::PAUSE, args).await?).map(drop)
    }

    /// `resume` and `index`: ends a pause, and wakes who waits for what it held up. `over`: its end as a sweep saw it, where
    /// nobody asks for this but its time is past.
    pub async fn resume(&self, target: &Target, by: &Note, over: Option<&str>) -> Result<Resumed, RedisError> {
        let args = |indexed: bool| {
            let over = over.unwrap_or_default();
            vec![target.field().into(), name(target), by.json().into(), over.into(), u64::from(indexed).into()]
        };
        if Outcome::try_from(&self.call(&scripts::RESUME, args(false)).await?)? != Outcome::Ok {
            return Ok(Resumed::Not);
        }
        match target {
            Target::All | Target::Lane(_) => return Ok(Resumed::Done),
            Target::Tenant(tenant) => self.index_buckets("", None, Some(tenant)).await?,
            Target::Project(id) => self.index_buckets("", Some(*id), None).await?,
        };
        self.call(&scripts::RESUME, args(true)).await?;
        Ok(Resumed::Done)
    }
}

/// What a sweep says of pauses whose time is over: targets and ends, flat. One of a newer version is passed over.
pub(super) fn over_of(reply: Reply) -> Result<Vec<Over>, RedisError> {
    let mut over = Vec::new();
    for pair in reply.into_array()?.chunks_exact(2) {
        let (target, end) = (Target::from_field(pair[0].as_str()?), pair[1].as_str()?.to_owned());
        over.extend(target.map(|target| Over { target, end }));
    }
    Ok(over)
}

fn name(target: &Target) -> Arg {
    serde_json::to_string(&target.to_string()).expect("a string is JSON").into()
}
