//! Pages of the jobs that have not ended.

use serde::{Deserialize, Serialize};

use super::partition::parse;
use super::{Partition, RedisError, Reply, scripts};
use crate::job::Tenant;

/// A job that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedJob {
    /// The job.
    pub id: u64,
    /// `queued`, `assigned`, `running` or `canceling`.
    pub state: String,
    /// Who pays for it.
    pub tenant: String,
    /// Its project.
    pub project_id: u64,
    /// How often it was taken.
    pub attempt: u32,
    /// Who holds it; none: it is queued.
    #[serde(flatten)]
    pub holder: Option<JobHolder>,
    /// Since when, in Unix ms of Redis' clock; of a job that was never taken none, its queue time is in its bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
}

/// Who holds a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobHolder {
    /// Its lease.
    pub lease_id: String,
    /// Its runner.
    pub runner_id: u64,
    /// The runner's manager.
    pub system_id: String,
    /// The pod that it is connected to, or was last.
    pub pod: String,
    /// The scope in which it was taken.
    pub scope: String,
}

/// The JSON members of a job's `holder`.
#[derive(Deserialize)]
struct Holder {
    runner_id: u64,
    system_id: String,
}

// === impl Partition ===

impl Partition {
    /// `jobs`: a page of about so many jobs that have not ended; `from` is empty to begin, then as answered. Empty: that was all.
    /// One whose record is of another version is left out.
    pub async fn jobs(&self, from: &str, page: u32) -> Result<(Vec<ListedJob>, String), RedisError> {
        let reply = self.call(&scripts::JOBS, vec![from.into(), page.into()]).await?;
        let [jobs, from] = reply.into_tuple()?;
        let jobs = jobs.into_array()?.into_iter().filter_map(|job| listed_of(job).ok());
        Ok((jobs.collect(), from.as_str()?.to_owned()))
    }
}

fn listed_of(reply: Reply) -> Result<ListedJob, RedisError> {
    let [id, state, tenant, bucket, lease, holder, since_ms] = reply.into_tuple()?;
    let other = RedisError::Unexpected { wanted: "a job's record", got: "one of another version" };
    let tenant = Tenant::from_key(tenant.as_str()?).map_err(|_| other.clone())?;
    let project = bucket.as_str()?.split(':').nth(1).and_then(|id| id.parse().ok()).ok_or(other.clone())?;
    let words: Vec<&str> = lease.as_str()?.split(' ').collect();
    let attempt = words.get(1).map_or(Ok(0), |attempt| attempt.parse()).map_err(|_| other.clone())?;
    let holder = match holder.as_str()?.strip_prefix(',') {
        None => None,
        Some(members) => {
            let Holder { runner_id, system_id } =
                serde_json::from_str(&format!("{{{members}}}")).map_err(|_| other.clone())?;
            let [lease_id, _, _, pod, scope]: [&str; 5] = words[..].try_into().map_err(|_| other.clone())?;
            let [lease_id, pod, scope] = [lease_id, pod, scope].map(str::to_owned);
            Some(JobHolder { lease_id, runner_id, system_id, pod, scope })
        }
    };
    Ok(ListedJob {
        id: parse(&id)?,
        state: state.as_str()?.to_owned(),
        tenant: tenant.name().to_owned(),
        project_id: project,
        attempt,
        holder,
        since_ms: since_ms.as_str()?.parse().ok(),
    })
}
