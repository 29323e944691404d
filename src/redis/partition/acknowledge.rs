//! What Rails says of a job that runs at a runner which reports to it.

use std::time::Duration;

use super::{Manager, Partition, ms};
use crate::job::{JobId, Name, OfferId};
use crate::redis::RedisError;
use crate::redis::scripts::{self, Outcome};

impl Partition {
    /// `acknowledge`: Rails says that a runner runs a job, of those that report to it: this one, or whoever it was handed to.
    pub async fn acknowledge(
        &self,
        pod: &Name,
        margin: Duration,
        job_id: JobId,
        offer: OfferId,
        runner: Option<&Manager>,
    ) -> Result<Outcome, RedisError> {
        let runner_id = runner.map_or_else(|| "".into(), |(id, _)| id.0.into());
        let system_id = runner.map_or("", |(_, system_id)| system_id.as_str());
        let args = vec![
            pod.as_str().into(),
            ms(margin),
            job_id.0.into(),
            offer.to_string().into(),
            runner_id,
            system_id.into(),
        ];
        Outcome::try_from(&self.call_durably(&scripts::ACKNOWLEDGE, args).await?)
    }
}
