//! `job-router jobs list`: all that has not ended, page by page, whatever moves meanwhile.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use job_router::job::Lease;
use job_router::runner::Scope;
use serde_json::Value;

use crate::support::{World, instance_lane, job, name, of_tenant, offers, redis_url};

const LONG: Duration = Duration::from_secs(600);

/// What the command prints, a JSON value a line.
fn list(world: &World, more: &[&str]) -> Vec<Value> {
    let prefix = world.prefix.trim_start_matches('{').split(':').next().expect("a prefix");
    let output = Command::new(env!("CARGO_BIN_EXE_job-router"))
        .args(["jobs", "list", "--json", "--redis-url", &redis_url(), "--key-prefix", prefix])
        .args(more)
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// By job its state, of pages of about so many; and how many pages there were.
fn list_all(world: &World, limit: &str, more: &[&str]) -> (BTreeMap<u64, String>, usize) {
    let (mut states, mut pages, mut after) = (BTreeMap::new(), 0, None::<String>);
    loop {
        let mut args = vec!["--limit", limit];
        args.extend(more);
        args.extend(after.iter().flat_map(|after| ["--after", after.as_str()]));
        let mut lines = list(world, &args);
        pages += 1;
        after = lines.last().and_then(|line| line["next"].as_str()).map(str::to_owned);
        lines.retain(|line| line["next"].is_null());
        for line in lines {
            states.insert(line["id"].as_u64().expect("an id"), line["state"].as_str().expect("a state").to_owned());
        }
        if after.is_none() {
            return (states, pages);
        }
    }
}

async fn take(world: &World, n: usize) -> Vec<Lease> {
    let taken = world.partition.take(&name("pod"), LONG, 0, &[instance_lane()], &offers(n)).await.expect("takes");
    taken.jobs.iter().map(|job| job.lease).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_job_that_has_not_ended_is_on_some_page() {
    let world = World::with_scopes(&[Scope::Instance]).await;
    for id in 1..=300 {
        world.queue(of_tenant(job(id), id % 3 + 1, id % 3 + 1)).await;
    }
    let leases = take(&world, 40).await;
    world.partition.start(LONG, &leases[..30]).await.expect("starts");
    world.finish(leases[0]).await;
    world.partition.cancel(leases[1].job_id, "why not", LONG, LONG).await.expect("cancels");

    let (all, pages) = list_all(&world, "50", &[]);
    assert_eq!(all.len(), 299);
    assert!(pages >= 4, "{pages} pages");
    let state = |lease: &Lease| all.get(&lease.job_id.0).map(String::as_str);
    assert_eq!(leases[..3].iter().map(state).collect::<Vec<_>>(), [None, Some("canceling"), Some("running")]);
    assert!(leases[2..30].iter().all(|lease| state(lease) == Some("running")));
    assert!(leases[30..].iter().all(|lease| state(lease) == Some("assigned")));
    assert_eq!(all.values().filter(|state| *state == "queued").count(), 260);
    let (running, _) = list_all(&world, "1000", &["--state", "running"]);
    assert_eq!(running.len(), 28);
    let (queued, _) = list_all(&world, "1000", &["--state", "queued"]);
    assert_eq!(queued.len(), 260);

    let running = list(&world, &["--state", "running", "--limit", "1"]);
    let expected = [("tenant", "ns:".to_owned()), ("system_id", "s".to_owned()), ("pod", "pod".to_owned())];
    for (field, starts_with) in expected {
        assert!(running[0][field].as_str().is_some_and(|text| text.starts_with(&starts_with)), "{}", running[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_are_taken_while_it_reads_are_listed_all_the_same() {
    let world = World::with_scopes(&[Scope::Instance]).await;
    for id in 1..=60 {
        world.queue(job(id)).await;
    }
    let (mut seen, mut from) = (std::collections::BTreeSet::new(), String::new());
    loop {
        let (jobs, next) = world.partition.jobs(&from, 10).await.expect("lists");
        seen.extend(jobs.iter().map(|job| job.id));
        if next.is_empty() {
            break;
        }
        from = next;
        take(&world, 7).await;
    }
    assert_eq!(seen.len(), 60);
}
