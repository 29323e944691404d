//! The runner registry: who has which token, and what each runner may take.
//!
//! All its keys share one slot, so that a record and its token change in one step. Pods look a runner up when it
//! connects and follow the change log after that.

use std::collections::BTreeMap;

use super::scripts::{self, Outcome};
use super::{Arg, Entry, Reader, Redis, RedisError};
use crate::job::RunnerId;
use crate::runner::RunnerRecord;

/// What stands for the newest change before the first.
pub const NO_CHANGE: &str = "0-0";

/// The runner registry.
#[derive(Clone)]
pub struct Runners {
    redis: Redis,
    prefix: String,
}

// === impl Runners ===

impl Runners {
    /// The registry whose keys begin with `prefix` (`{jr:runners}:`).
    pub fn new(redis: Redis, prefix: String) -> Self {
        Self { redis, prefix }
    }

    /// The key that names the registry's slot.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Stores a record; `version` is the message's inbox entry id, and the newest wins.
    pub async fn upsert(&self, version: &str, record: &RunnerRecord) -> Result<Outcome, RedisError> {
        let json = serde_json::to_string(record).expect("a record is JSON");
        self.store(record.runner_id(), version, &record.token_sha256, json).await
    }

    /// Marks a runner as deleted.
    pub async fn delete(&self, version: &str, id: RunnerId) -> Result<Outcome, RedisError> {
        self.store(id, version, "", String::new()).await
    }

    /// The runner with this token, by the token's SHA-256 in hex.
    pub async fn find(&self, token_sha256: &str) -> Result<Option<RunnerRecord>, RedisError> {
        let keys = vec![self.token_key(token_sha256).into()];
        let reply = self.redis.call(&scripts::RUNNER_FIND, keys, [format!("{}id:", self.prefix).into()]).await?;
        let Some(json) = reply.into_option() else { return Ok(None) };
        record_of(json.as_str()?)
    }

    /// The runner with this id, unless deleted.
    pub async fn get(&self, id: RunnerId) -> Result<Option<RunnerRecord>, RedisError> {
        let reply = self.redis.command("HGET", [self.id_key(id).into(), "record".into()]).await?;
        let Some(json) = reply.into_option() else { return Ok(None) };
        record_of(json.as_str()?)
    }

    /// The ids of runners whose records changed after an entry of the change log (`$`: from now on), with the entry to
    /// go on from.
    pub async fn changes(&self, reader: &mut Reader, after: &str) -> Result<(Vec<RunnerId>, String), RedisError> {
        let stream = format!("{}changes", self.prefix);
        let entries = reader.read(&stream, after, 256, Some(super::BLOCK_MAX)).await?;
        let next = entries.last().map_or_else(|| after.to_owned(), |entry| entry.id.clone());
        let ids = entries.iter().filter_map(|entry| field(entry, "id")?.parse().ok());
        Ok((ids.collect(), next))
    }

    /// The newest entry of the change log; [`NO_CHANGE`] before the first.
    pub async fn last_change(&self) -> Result<String, RedisError> {
        let stream = format!("{}changes", self.prefix);
        let args = [Arg::from(stream), "+".into(), "-".into(), "COUNT".into(), "1".into()];
        let entries = self.redis.command("XREVRANGE", args).await?.into_entries()?;
        Ok(entries.first().map_or_else(|| NO_CHANGE.to_owned(), |entry| entry.id.clone()))
    }

    async fn store(&self, id: RunnerId, version: &str, token: &str, record: String) -> Result<Outcome, RedisError> {
        let id_key = self.id_key(id);
        let token_key = if token.is_empty() { id_key.clone() } else { self.token_key(token) };
        let keys = vec![id_key.into(), token_key.into(), format!("{}changes", self.prefix).into(), self.ids_key()];
        let args = [id.0.into(), version.into(), token.into(), record.into(), self.token_key("").into()];
        let barrier = format!("{}barrier", self.prefix).into();
        Outcome::try_from(&self.redis.call_durably(&scripts::RUNNER_UPSERT, keys, args, barrier).await?)
    }

    /// All runners that are not deleted, by id, read page by page: what changes meanwhile may be seen or not.
    pub async fn all(&self) -> Result<Vec<RunnerRecord>, RedisError> {
        let mut all = BTreeMap::new();
        let mut cursor = "0".to_owned();
        loop {
            let args = [cursor.into(), format!("{}id:", self.prefix).into()];
            let [next, page] = self.redis.call(&scripts::RUNNERS, vec![self.ids_key()], args).await?.into_tuple()?;
            for json in page.into_array()? {
                // One that cannot be read, of a newer version say, hides no other.
                if let Ok(Some(record)) = record_of(json.as_str()?) {
                    all.insert(record.id, record);
                }
            }
            cursor = next.as_str()?.to_owned();
            if cursor == "0" {
                return Ok(all.into_values().collect());
            }
        }
    }

    fn ids_key(&self) -> Arg {
        format!("{}ids", self.prefix).into()
    }

    fn id_key(&self, id: RunnerId) -> String {
        format!("{}id:{id}", self.prefix)
    }

    fn token_key(&self, token_sha256: &str) -> String {
        format!("{}token:{token_sha256}", self.prefix)
    }
}

fn record_of(json: &str) -> Result<Option<RunnerRecord>, RedisError> {
    if json.is_empty() {
        return Ok(None);
    }
    let unexpected = RedisError::Unexpected { wanted: "a runner's record", got: "other JSON" };
    serde_json::from_str(json).map(Some).map_err(|_| unexpected)
}

fn field<'a>(entry: &'a Entry, name: &str) -> Option<&'a str> {
    std::str::from_utf8(entry.field(name)?).ok()
}
