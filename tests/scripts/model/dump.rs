//! Everything a partition holds, read in one call, and compared with the reference.

use std::collections::{BTreeMap, BTreeSet};

use job_router::fairness::{aged_head, at_cap, bucket_score, fifo_score, head_in, head_of, share_rank, share_rank_in};
use job_router::flow::State;
use job_router::job::Priority;
use job_router::pause::Target;
use job_router::redis::LaneOrder;
use job_router::runner::{Lane, Scope};

use super::reference::{Bucket, Reference};
use crate::support::{World, text};

/// One flat list per key: its name, its type, its content. Only keys that begin with ARGV[3]; of the events only those after ARGV[2]; of buckets also
/// who has which entry and the last one read.
const DUMP: &str = r"
local all = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. ARGV[3] .. '*')) do
  local kind = redis.call('TYPE', key).ok
  local value
  if kind == 'string' then value = { redis.call('GET', key), '' }
  elseif kind == 'hash' then value = redis.call('HGETALL', key)
  elseif kind == 'set' then
    value = {}
    for _, member in ipairs(redis.call('SMEMBERS', key)) do value[#value + 1] = member; value[#value + 1] = '' end
  elseif kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  else
    value = {}
    local from = key == ARGV[1] .. 'events' and '(' .. ARGV[2] or '-'
    for _, entry in ipairs(redis.call('XRANGE', key, from, '+')) do
      value[#value + 1] = entry[1]
      value[#value + 1] = table.concat(entry[2], ' ')
    end
    if string.find(key, ':bucket:', 1, true) then
      for _, pending in ipairs(redis.call('XPENDING', key, 'dispatchers', '-', '+', 10000)) do
        value[#value + 1] = 'held ' .. pending[1]
        value[#value + 1] = pending[2]
      end
      value[#value + 1] = 'last'
      value[#value + 1] = redis.call('XINFO', 'GROUPS', key)[1][8]
    end
  end
  all[#all + 1] = { key, kind, value }
end
return all";

/// Key (without the prefix) to its pairs: members and scores, fields and values, entry ids and entries.
pub type Pairs = Vec<(String, String)>;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dump {
    pub keys: BTreeMap<String, Pairs>,
}

impl Dump {
    pub async fn read(world: &World, last_event: &str) -> Self {
        Self::read_keys(world, last_event, "").await
    }

    /// Only the instance lanes.
    pub async fn read_lanes(world: &World) -> Self {
        Self::read_keys(world, "0", "lane:instance:").await
    }

    async fn read_keys(world: &World, last_event: &str, begin: &str) -> Self {
        let reply = world.command("EVAL", &[DUMP, "0", &world.prefix, last_event, begin]).await;
        let mut keys = BTreeMap::new();
        for key in reply.into_array().expect("keys") {
            let [name, kind, value] = key.into_tuple().expect("name, type, value");
            let value: Vec<String> = value.into_array().expect("pairs").iter().map(text).collect();
            let mut pairs: Pairs = value.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
            if ["hash", "set"].contains(&kind.as_str().expect("text")) {
                pairs.sort();
            }
            keys.insert(name.as_str().expect("text")[world.prefix.len()..].to_owned(), pairs);
        }
        Self { keys }
    }

    pub fn pairs(&self, key: &str) -> &[(String, String)] {
        self.keys.get(key).map_or(&[], |pairs| pairs)
    }

    pub fn members(&self, key: &str) -> BTreeSet<String> {
        self.pairs(key).iter().map(|(member, _)| member.clone()).collect()
    }

    fn field(&self, key: &str, field: &str) -> Option<&str> {
        self.pairs(key).iter().find(|(name, _)| name == field).map(|(_, value)| value.as_str())
    }

    pub fn score(&self, key: &str, member: &str) -> Option<u64> {
        self.field(key, member).map(|score| score.parse::<f64>().expect("a score") as u64)
    }

    /// Compares what one call left with what the same call again left. Events are compared with the reference's.
    pub fn assert_same(&self, other: &Self, wakes_differ: bool, what: &str) {
        let compared = |key: &str| {
            !["events", "pods", "scopes"].contains(&key)
                && !(wakes_differ && (key.starts_with("mail:") || key.starts_with("waiting:")))
        };
        for key in self.keys.keys().chain(other.keys.keys()).filter(|key| compared(key)) {
            assert_eq!(self.keys.get(key), other.keys.get(key), "{key} after it was repeated: {what}");
        }
    }

    /// Compares the whole state; panics with the first difference.
    pub fn check(&self, model: &Reference) {
        self.check_jobs(model);
        self.check_buckets(model);
        self.check_counts(model);
        self.check_lanes(model);
        self.check_pauses(model);
        self.check_no_other_keys(model);
    }

    fn check_pauses(&self, model: &Reference) {
        let paused: BTreeSet<String> = model.paused.iter().map(Target::field).collect();
        assert_eq!(self.members("paused"), paused, "paused");
        assert!(self.members("pause_ends").is_subset(&paused), "pause_ends: nothing is left half way");
    }

    fn check_jobs(&self, model: &Reference) {
        let mut due = BTreeSet::new();
        let mut held: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (id, job) in &model.jobs {
            let key = format!("job:{id}");
            let field = |field| self.field(&key, field);
            assert_eq!(field("state"), job.state.word(), "{key}");
            let lease: Vec<&str> = field("lease").map(|lease| lease.split(' ').collect()).unwrap_or_default();
            let part = |at: usize| lease.get(at).copied();
            assert_eq!(part(0).unwrap_or_default(), job.lease.map(|id| id.to_string()).unwrap_or_default(), "{key}");
            assert_eq!(part(1).unwrap_or("0"), job.attempt.to_string(), "{key}");
            assert_eq!(field("beat").unwrap_or_default(), job.beat_text(), "{key}");
            assert_eq!(field("starts").unwrap_or("0"), job.starts.to_string(), "{key}");
            assert_eq!(field("failed_deliveries").unwrap_or("0"), job.failures.to_string(), "{key}");
            assert!(self.keys.contains_key(&format!("order:{id}")), "{key} has an order");
            if job.state != State::Queued {
                due.insert(id.to_string());
                held.entry(format!("pod:{}:jobs", job.pod)).or_default().insert(id.to_string());
                assert_eq!(part(3), Some(&*job.pod), "{key}");
            }
        }
        assert_eq!(self.members("deadlines"), due, "deadlines");
        for (key, jobs) in &held {
            assert_eq!(self.members(key), *jobs, "{key}");
        }
        for key in self.keys.keys().filter(|key| key.starts_with("pod:")) {
            assert!(held.contains_key(key), "{key} is of nobody");
        }
        for (id, (outcome, lease)) in &model.ended {
            let record = &self.pairs(&format!("ended:{id}"))[0].0;
            let lease = lease.map_or("-".to_owned(), |lease| lease.to_string());
            assert!(record.starts_with(&format!("{outcome} {lease} ")), "ended:{id}: {record}, not {outcome} {lease}");
        }
    }

    fn check_buckets(&self, model: &Reference) {
        let heads = model.heads();
        let names: BTreeSet<String> =
            heads.keys().map(|(fp, project, prio)| format!("{project}:{fp}:{prio}")).collect();
        assert_eq!(self.members("buckets"), names, "buckets");
        let mut buckets: BTreeMap<Bucket, Vec<(u64, u64)>> = BTreeMap::new();
        for (id, job) in model.jobs.iter().filter(|(_, job)| job.has_place) {
            buckets.entry(job.bucket).or_default().push((job.seq, *id));
        }
        let mut with_returned = BTreeSet::new();
        for ((fp, project, priority), jobs) in &mut buckets {
            jobs.sort_unstable();
            let name = format!("{fp}:{project}:{priority}");
            let pairs = self.pairs(&format!("bucket:{name}"));
            let last = pairs.iter().find(|(key, _)| key == "last").map(|(_, id)| entry_id(id)).expect("a group");
            let held: BTreeMap<&str, &str> =
                pairs.iter().filter_map(|(key, by)| Some((key.strip_prefix("held ")?, by.as_str()))).collect();
            let entries: Vec<_> = pairs.iter().filter(|(key, _)| key != "last" && !key.starts_with("held ")).collect();
            let ids: Vec<String> = jobs.iter().map(|(_, id)| format!("id {id} at {}", model.jobs[id].at)).collect();
            assert_eq!(entries.iter().map(|(_, entry)| entry.clone()).collect::<Vec<_>>(), ids, "bucket {name}");
            assert_eq!(held.keys().filter(|held| !entries.iter().any(|(id, _)| id == *held)).count(), 0, "{name}");
            for ((entry, _), (_, id)) in entries.iter().zip(jobs.iter()) {
                let holder = held.get(entry.as_str()).copied();
                assert_eq!(holder.is_none(), entry_id(entry) > last, "bucket {name}, job {id}: read, so held");
                let queued = model.jobs[id].state == State::Queued;
                assert_eq!(queued, holder.is_none_or(|by| by == "returned"), "bucket {name}, job {id}: {holder:?}");
                if holder == Some("returned") {
                    with_returned.insert(name.clone());
                }
            }
        }
        assert!(self.members("returned").is_superset(&with_returned), "returned");
        for name in self.members("returned") {
            assert!(self.keys.contains_key(&format!("bucket:{name}")), "returned names the gone {name}");
        }
        for key in self.keys.keys().filter_map(|key| key.strip_prefix("bucket:")) {
            let known = buckets.keys().any(|(fp, project, priority)| key == format!("{fp}:{project}:{priority}"));
            assert!(known, "bucket {key} is empty");
        }
    }

    fn check_counts(&self, model: &Reference) {
        let mut keys = BTreeMap::new();
        for (id, job) in &model.jobs {
            if job.state != State::Queued && job.scope == Some(Scope::Instance) {
                for key in [format!("running:{}", job.tenant), format!("running:{}:{}", job.tenant, job.bucket.1)] {
                    keys.entry(key).or_insert_with(BTreeSet::new).insert(id.to_string());
                }
            }
            if let (Some(scope @ Scope::Group(_)), true) = (job.scope, job.state != State::Queued) {
                let key = format!("running:{scope}:{}", job.bucket.1);
                keys.entry(key).or_insert_with(BTreeSet::new).insert(id.to_string());
            }
        }
        for key in self.keys.keys().filter(|key| key.starts_with("running:")) {
            assert!(keys.contains_key(key), "{key} counts nothing that runs");
        }
        for (key, ids) in keys {
            assert_eq!(self.members(&key), ids, "{key}");
        }
    }

    /// Every queued bucket stands in the lanes of its open scopes, with its head and no score too high, unless it or
    /// its tenant is at a cap; and nothing else stands there but where a project was before it moved.
    fn check_lanes(&self, model: &Reference) {
        for ((fp, id, prio), (_, head)) in &model.heads() {
            let project = &model.projects[id];
            if project.unindexed {
                continue;
            }
            let (member, head) = (format!("{id}:{prio}"), head_of(head.at));
            let priority = Priority::new((*prio).into()).expect("in range");
            for scope in model.scopes_of(*id) {
                let lane = Lane { scope, fingerprint: *fp };
                let score = |key: &str, member: &str| self.score(key, member);
                assert!(self.field("lanes", &lane.to_string()).is_some(), "{lane} is open");
                if scope != Scope::Instance {
                    let stands = score(&format!("lane:{lane}"), &member);
                    if stands.is_none() && model.tenant_paused(&project.tenant) {
                        continue;
                    }
                    let running = match model.policy.order_of(lane) {
                        LaneOrder::Fair => model.running_in(scope, *id).len() as u32,
                        LaneOrder::Fifo => 0,
                    };
                    let (low, high) = match model.ageing_ms() {
                        Some(ageing_ms) => [aged_head(priority, head, ageing_ms); 2].into(),
                        None => (fifo_score(priority, head), bucket_score(priority, running, head)),
                    };
                    let stands = stands.unwrap_or_else(|| panic!("{member} is not in {lane}"));
                    assert!((low..=high).contains(&stands), "{member} in {lane}: {stands}, not {low} to {high}");
                    assert_eq!(head_in(stands), head_in(low), "{member} in {lane}");
                    continue;
                }
                let running = model.running(&project.tenant, Some(*id)).len() as u32;
                let stands = score(&format!("lane:{lane}:{}", project.tenant), &member);
                if let (Some(stands), true) = (stands, model.is_plain(lane)) {
                    let ageing_ms = model.ageing_ms().unwrap_or(0);
                    assert_eq!(stands, aged_head(priority, head, ageing_ms), "{member} in {lane}");
                } else if let Some(stands) = stands {
                    assert_eq!(head_in(stands), head, "{member} in {lane}");
                    assert!(stands <= bucket_score(priority, running, head), "{member} in {lane} stands too high");
                    assert!(stands >= fifo_score(priority, head), "{member} in {lane} stands too low");
                } else {
                    assert!(at_cap(running, project.cap), "{member} is not in {lane} of {}", project.tenant);
                    continue;
                }
                let payer = model.payers.get(&project.tenant).cloned().unwrap_or_default();
                let running = model.running(&project.tenant, None).len() as u32;
                match score(&format!("lane:{lane}"), &project.tenant) {
                    Some(score) => {
                        let rank = share_rank(running, payer.weight.unwrap_or(1));
                        assert!(share_rank_in(score) <= rank, "{} in {lane} stands too high", project.tenant);
                    }
                    None => assert!(
                        at_cap(running, payer.cap) || model.tenant_paused(&project.tenant),
                        "{} is not in {lane}",
                        project.tenant
                    ),
                }
            }
        }
        let heads = model.heads();
        let mut tenant_lanes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for key in self.keys.keys().filter(|key| key.starts_with("lane:")) {
            let words: Vec<&str> = key.split(':').collect();
            let (scope, fp, tenant) = match words[..] {
                ["lane", "instance", fp] => (Scope::Instance, fp, None),
                ["lane", "instance", fp, tenant] => (Scope::Instance, fp, Some(tenant)),
                ["lane", kind, id, fp] => (format!("{kind}:{id}").parse().expect("a scope"), fp, None),
                _ => panic!("{key} is no lane"),
            };
            if let Some(tenant) = tenant {
                tenant_lanes.entry(format!("tenant:{tenant}:lanes")).or_default().insert(fp.to_owned());
            }
            for (member, _) in self.pairs(key) {
                if scope == Scope::Instance && tenant.is_none() {
                    assert!(self.keys.contains_key(&format!("{key}:{member}")), "{key}: {member} has no buckets there");
                    continue;
                }
                let (id, prio) = member.split_once(':').expect("project:priority");
                let (id, prio): (u64, i8) = (id.parse().expect("an id"), prio.parse().expect("a priority"));
                let project = &model.projects[&id];
                let queued = heads.contains_key(&(fp.parse().expect("a fingerprint"), id, prio));
                let belongs =
                    model.scopes_of(id).contains(&scope) && tenant.is_none_or(|tenant| tenant == project.tenant);
                assert!(project.moved || queued && belongs, "{key} names {member}");
            }
        }
        for key in self.keys.keys().filter(|key| key.starts_with("tenant:") && key.ends_with(":lanes")) {
            assert!(tenant_lanes.contains_key(key), "{key} names lanes it is not in");
        }
        for (key, lanes) in tenant_lanes {
            assert_eq!(self.members(&key), lanes, "{key}");
        }
    }

    fn check_no_other_keys(&self, model: &Reference) {
        const ONE: [&str; 14] = [
            "instance",
            "paused",
            "policy",
            "pause_ends",
            "pods",
            "lanes",
            "capabilities",
            "scopes",
            "events",
            "buckets",
            "returned",
            "deadlines",
            "capped",
            "turn",
        ];
        // What a take took goes by itself, a minute later.
        const CHECKED: [&str; 8] = ["lane:", "bucket:", "running:", "pod:", "mail:", "waiting:", "tenant:", "took:"];
        for key in self.keys.keys() {
            let of = |prefix: &str| key.strip_prefix(prefix).and_then(|id| id.parse::<u64>().ok());
            let known = ONE.contains(&key.as_str())
                || CHECKED.iter().any(|prefix| key.starts_with(prefix))
                || of("job:").is_some_and(|id| model.jobs.contains_key(&id))
                || of("order:").is_some_and(|id| model.jobs.contains_key(&id))
                || of("ended:").is_some_and(|id| model.ended.contains_key(&id))
                || of("project:").is_some_and(|id| model.projects.contains_key(&id));
            assert!(known, "{key} is left over");
        }
    }
}

fn entry_id(text: &str) -> (u64, u64) {
    let (ms, n) = text.split_once('-').expect("an entry id");
    (ms.parse().expect("ms"), n.parse().expect("a number"))
}
