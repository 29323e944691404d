//! How many queued jobs each pause holds up, read from the buckets. O(buckets).

use std::collections::BTreeMap;

use anyhow::Context;
use futures::future::try_join_all;
use job_router::job::{ProjectFacts, ProjectId, Tenant};
use job_router::pause::{Pause, Target};
use job_router::redis::{Partition, Redis};
use job_router::runner::{Lane, Scope};
use job_router::tags::Fingerprint;

use crate::commands::lanes;

/// Buckets looked at at once.
const AT_ONCE: usize = 256;

/// Queued jobs that each of these pauses of a partition holds up.
pub(super) async fn count(redis: &Redis, partition: &Partition, pauses: &[Pause]) -> anyhow::Result<Vec<u64>> {
    let mut counts = vec![0; pauses.len()];
    if pauses.is_empty() {
        return Ok(counts);
    }
    let buckets = lanes::members(redis, &partition.key("buckets")).await?;
    let mut projects: BTreeMap<ProjectId, (Tenant, ProjectFacts)> = BTreeMap::new();
    for page in buckets.chunks(AT_ONCE) {
        let page = page.iter().map(|member| parts(member)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut unknown: Vec<ProjectId> = page.iter().map(|(id, ..)| *id).collect();
        unknown.dedup(); // sorted by name, so by project
        unknown.retain(|id| !projects.contains_key(id));
        let read = try_join_all(unknown.into_iter().map(|id| facts(redis, partition, id))).await?;
        projects.extend(read.into_iter().flatten());
        let jobs = page.iter().map(|(id, fingerprint, priority)| {
            let bucket = format!("bucket:{fingerprint}:{id}:{priority}");
            async move { lanes::queued(redis, &partition.key(&bucket)).await }
        });
        let jobs = try_join_all(jobs).await?;
        for ((id, fingerprint, _), jobs) in page.iter().zip(jobs) {
            let Some((tenant, facts)) = projects.get(id) else { continue };
            for (count, pause) in counts.iter_mut().zip(pauses) {
                if holds(&pause.target, *fingerprint, tenant, facts) {
                    *count += jobs;
                }
            }
        }
    }
    Ok(counts)
}

fn holds(target: &Target, fingerprint: Fingerprint, tenant: &Tenant, facts: &ProjectFacts) -> bool {
    Scope::of_project(facts).any(|scope| target.holds(Lane { scope, fingerprint }, tenant, facts.id))
}

/// Project, fingerprint and priority of a member of `buckets`.
fn parts(member: &str) -> anyhow::Result<(ProjectId, Fingerprint, &str)> {
    let parts: Vec<&str> = member.split(':').collect();
    let [id, fingerprint, priority] = parts[..] else { anyhow::bail!("a bucket of another version") };
    Ok((id.parse()?, fingerprint.parse()?, priority))
}

/// What Rails told of a project.
async fn facts(
    redis: &Redis,
    partition: &Partition,
    id: ProjectId,
) -> anyhow::Result<Option<(ProjectId, (Tenant, ProjectFacts))>> {
    let facts = redis.command("HGET", [partition.key(&format!("project:{id}")).into(), "facts".into()]).await?;
    let Some(facts) = facts.into_option() else { return Ok(None) };
    let words: Vec<&str> = facts.as_str()?.split(' ').collect();
    let [tenant, instance, group, namespaces] = words[..] else { anyhow::bail!("a project of another version") };
    let namespaces = namespaces.split(',').filter(|id| !id.is_empty()).map(str::parse);
    let facts = ProjectFacts {
        id,
        namespace_ids: namespaces.collect::<Result<_, _>>().context("a project of another version")?,
        instance_runners: instance == "1",
        group_runners: group == "1",
    };
    Ok(Some((id, (Tenant::from_key(tenant)?, facts))))
}
