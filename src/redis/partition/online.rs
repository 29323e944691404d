//! Which managers of runners are connected: what Rails is told of them.

use std::sync::Arc;
use std::time::Duration;

use super::{Manager, Partition, ms};
use crate::job::Name;
use crate::redis::RedisError;
use crate::redis::scripts;

impl Partition {
    /// `online`: these managers are connected to a pod, each with what it says of itself, a JSON object. Tells Rails of those that are
    /// new, and of each again once in `again`. Answers of how many.
    pub async fn online(
        &self,
        pod: &Name,
        again: Duration,
        managers: &[(Manager, Arc<str>)],
    ) -> Result<u64, RedisError> {
        let mut args = vec![pod.as_str().into(), ms(again)];
        for ((runner_id, system_id), info) in managers {
            args.extend([runner_id.0.into(), system_id.as_str().into(), (&**info).into()]);
        }
        Ok(self.call(&scripts::ONLINE, args).await?.as_i64()?.unsigned_abs())
    }

    /// `offline`: tells Rails of at most so many managers that no pod has said to be connected for a while. Answers of how many.
    pub async fn offline(&self, pod: &Name, silent: Duration, page: u64) -> Result<u64, RedisError> {
        let args = vec![pod.as_str().into(), ms(silent), page.into()];
        Ok(self.call(&scripts::OFFLINE, args).await?.as_i64()?.unsigned_abs())
    }
}
