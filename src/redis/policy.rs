//! How it is chosen who is next, where that is not the default: the typed face of `policy`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Partition, RedisError, scripts};
use crate::runner::{Lane, Scope};

/// Who goes first in a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneOrder {
    /// In an instance lane by shares; in a group's by priority, then by running jobs of the project, then the oldest.
    Fair,
    /// In an instance lane the oldest; in a group's or a project's by priority, then the oldest.
    Fifo,
}

/// What holds for a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Of lanes of groups.
    pub group: LaneOrder,
    /// Of instance lanes.
    pub instance: LaneOrder,
    /// Of single instance lanes, whatever holds for them all.
    pub lanes: BTreeMap<Lane, LaneOrder>,
    /// What a step of priority is worth where priorities hold across tenants. Then all lanes are plain queues.
    pub ageing: Option<Duration>,
}

// === impl LaneOrder ===

impl LaneOrder {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fair => "fair",
            Self::Fifo => "fifo",
        }
    }

    fn of(word: &str) -> Option<Self> {
        [Self::Fair, Self::Fifo].into_iter().find(|order| order.as_str() == word)
    }
}

// === impl Policy ===

impl Policy {
    /// The order of a lane.
    pub fn order_of(&self, lane: Lane) -> LaneOrder {
        match lane.scope {
            _ if self.ageing.is_some() => LaneOrder::Fifo,
            Scope::Instance => *self.lanes.get(&lane).unwrap_or(&self.instance),
            Scope::Group(_) => self.group,
            Scope::Project(_) => LaneOrder::Fifo,
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self { group: LaneOrder::Fifo, instance: LaneOrder::Fair, lanes: BTreeMap::new(), ageing: None }
    }
}

// === impl Partition ===

impl Partition {
    /// What holds here: the hash `policy`. What a newer version wrote is passed over.
    pub async fn policy(&self) -> Result<Policy, RedisError> {
        let flat = self.command("HGETALL", "policy").await?.into_array()?;
        let mut policy = Policy::default();
        for pair in flat.chunks_exact(2) {
            let (field, value) = (pair[0].as_str()?, pair[1].as_str()?);
            match (field.split_once(':'), LaneOrder::of(value)) {
                (None, Some(order)) if field == "group" => policy.group = order,
                (None, Some(order)) if field == "instance" => policy.instance = order,
                (Some(("lane", lane)), Some(order)) => drop(lane.parse().map(|lane| policy.lanes.insert(lane, order))),
                _ if field == "ageing_ms" => policy.ageing = value.parse().ok().map(Duration::from_millis),
                _ => {}
            }
        }
        Ok(policy)
    }

    /// `policy`, as a pod is configured. Answers whether anything is another now; then all buckets were indexed anew.
    pub async fn configure(&self, group: LaneOrder, ageing: Option<Duration>) -> Result<bool, RedisError> {
        let group = if group == LaneOrder::Fair { "fair" } else { "" };
        let ageing_ms = ageing.map(|ageing| ageing.as_millis().to_string()).unwrap_or_default();
        self.set_policy([("group".to_owned(), group.to_owned()), ("ageing_ms".to_owned(), ageing_ms)]).await
    }

    /// `policy`, as an operator says: the order of one instance lane, or of all. Acts on what is queued.
    pub async fn set_lane_order(&self, lane: Option<Lane>, order: LaneOrder) -> Result<bool, RedisError> {
        let field = match (lane, order) {
            (None, LaneOrder::Fair) => ("instance".to_owned(), String::new()),
            (None, LaneOrder::Fifo) => ("instance".to_owned(), "fifo".to_owned()),
            (Some(lane), order) => (format!("lane:{lane}"), order.as_str().to_owned()),
        };
        self.set_policy([field]).await
    }

    async fn set_policy<const N: usize>(&self, fields: [(String, String); N]) -> Result<bool, RedisError> {
        let args = fields.into_iter().flat_map(|(field, value)| [field.into(), value.into()]).collect();
        let changed = self.call(&scripts::POLICY, args).await?.as_i64()? == 1;
        if changed {
            self.index_buckets("", None, None).await?;
            self.call(&scripts::POLICY, Vec::new()).await?;
        }
        Ok(changed)
    }
}
