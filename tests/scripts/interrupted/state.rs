//! Everything a world holds, but for what may differ between a call and the same in two goes.

use std::collections::{BTreeMap, BTreeSet};

use job_router::redis::{Arg, Reply};

use crate::interrupted::server::Server;
use crate::support::text;

/// One list per key: name, type, 1 if it ends by itself, content. Of streams with a group also who has which entry and
/// the last one read.
const READ: &str = r"
local all = {}
for _, key in ipairs(redis.call('KEYS', '{*')) do
  local kind = redis.call('TYPE', key).ok
  local value, groups = nil, {}
  if kind == 'string' then value = { redis.call('GET', key) }
  elseif kind == 'hash' then value = redis.call('HGETALL', key)
  elseif kind == 'set' then value = redis.call('SMEMBERS', key)
  elseif kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  else
    value = {}
    for _, entry in ipairs(redis.call('XRANGE', key, '-', '+')) do
      value[#value + 1] = entry[1]
      value[#value + 1] = table.concat(entry[2], ' ')
    end
    for _, group in ipairs(redis.call('XINFO', 'GROUPS', key)) do
      groups[#groups + 1] = { group[8], redis.call('XPENDING', key, group[2], '-', '+', 10000) }
    end
  end
  all[#all + 1] = { key, kind, redis.call('PTTL', key) > 0 and 1 or 0, value, groups }
end
return all";

/// Key to its content as text. What is left out, and why:
///
/// - Ids of stream entries: a call in two goes adds in two goes. They stand as places in their stream.
/// - How often a pod's letter or an event came: both may come again, and say the same then.
/// - Order of letters, and of events of two jobs: what Lua's `pairs` says.
/// - In `waiting`, pods that are gone, and fractions: who was woken, so that the next wake is another's.
/// - How long a key has to live, but not whether it ends.
/// - How often a beat was counted: it is counted by the call again, too.
/// - Turns of tenants: one that a cut-off call did not come to write is lost, and with it who of equals is next.
///
/// Scores in lanes stand apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    keys: BTreeMap<String, BTreeSet<String>>,
    /// By lane and member.
    scores: BTreeMap<(String, String), u64>,
}

struct Key {
    name: String,
    kind: String,
    ends: bool,
    value: Vec<String>,
    groups: Vec<Reply>,
}

impl State {
    pub async fn read(server: &Server) -> Self {
        let reply = server.command("EVAL", [READ, "0"].map(Arg::from)).await;
        let keys: Vec<Key> = reply.into_array().expect("keys").into_iter().map(Key::of).collect();
        let places: BTreeMap<&str, Vec<&str>> = keys
            .iter()
            .filter(|key| key.kind == "stream")
            .map(|key| (key.name.as_str(), key.value.iter().step_by(2).map(String::as_str).collect()))
            .collect();
        let pods = keys.iter().find(|key| key.name == "pods");
        let pods: BTreeSet<&str> = pods.into_iter().flat_map(|pods| pods.value.iter().map(String::as_str)).collect();
        let mut state = Self::default();
        for key in &keys {
            let mut content = key.content(&places);
            if key.name.starts_with("waiting:") {
                content.retain(|pod| pods.contains(pod.split(' ').next().expect("a pod")));
            }
            if content.is_empty() || key.name == "turn" {
                continue;
            }
            let mut content: BTreeSet<String> = content.into_iter().collect();
            content.insert(if key.ends { "(ends by itself)" } else { "(stays)" }.to_owned());
            state.keys.insert(key.name.clone(), content);
            if key.name.starts_with("lane:") {
                let scores =
                    key.value.chunks(2).map(|pair| ((key.name.clone(), pair[0].clone()), score(&pair[1]) as u64));
                state.scores.extend(scores);
            }
        }
        state
    }

    pub fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// In what this one, left by a call in two goes, differs from that of a whole one. Two things may:
    ///
    /// - A score in a lane is lower: scores are lower bounds, and `take` mends them. The queue time in it is the same.
    /// - A bucket is named in `returned` that has nothing given back: whoever looks there next takes it out.
    pub fn differences(&self, whole: &Self) -> Vec<String> {
        let none = BTreeSet::new();
        let mut found = Vec::new();
        let names: BTreeSet<&String> = self.keys.keys().chain(whole.keys.keys()).collect();
        for name in names {
            let [here, there] = [self, whole].map(|state| state.keys.get(name).unwrap_or(&none));
            found.extend(there.difference(here).map(|gone| format!("- {name}: {gone}")));
            if name != "returned" {
                found.extend(here.difference(there).map(|new| format!("+ {name}: {new}")));
            }
        }
        for (place, score) in &self.scores {
            let of_bucket = place.1.contains(':');
            let fits = |whole: &u64| {
                let same_head = !of_bucket || (whole & HEAD) == (score & HEAD);
                *score <= whole + TURNS_MAX && same_head
            };
            if !whole.scores.get(place).is_none_or(fits) {
                found.push(format!("{place:?} stands at {score}, not {}", whole.scores[place]));
            }
        }
        found
    }
}

impl Key {
    fn of(reply: Reply) -> Self {
        let [name, kind, ends, value, groups] = reply.into_tuple().expect("a key");
        let name = text(&name);
        Self {
            name: name.split_once("}:").expect("a prefix").1.to_owned(),
            kind: text(&kind),
            ends: ends.as_i64().expect("a number") == 1,
            value: value.into_array().expect("a list").iter().map(text).collect(),
            groups: groups.into_array().expect("a list"),
        }
    }

    fn content(&self, places: &BTreeMap<&str, Vec<&str>>) -> Vec<String> {
        let pairs = || self.value.chunks(2).map(|pair| (pair[0].as_str(), pair[1].as_str()));
        match self.kind.as_str() {
            "hash" => {
                let fields = pairs().filter(|(field, _)| *field != "served");
                fields.map(|(field, value)| Self::field(field, value, places)).collect()
            }
            "zset" if self.name.starts_with("lane:") => pairs().map(|(member, _)| member.to_owned()).collect(),
            "zset" if self.name.starts_with("waiting:") => {
                pairs().map(|(member, rank)| format!("{member} {}", score(rank).floor())).collect()
            }
            "zset" => pairs().map(|(member, score)| format!("{member} {score}")).collect(),
            "stream" if self.groups.is_empty() => pairs().map(|(_, entry)| entry.to_owned()).collect(),
            "stream" => self.entries(&places[self.name.as_str()]),
            _ => self.value.clone(),
        }
    }

    fn field(field: &str, value: &str, places: &BTreeMap<&str, Vec<&str>>) -> String {
        let value = match field {
            "place" => {
                let (bucket, id) = value.split_once(' ').expect("a bucket and an entry");
                let ids = places.get(format!("bucket:{bucket}").as_str());
                let place = ids.and_then(|ids| ids.iter().position(|known| *known == id));
                format!("{bucket} {place:?}")
            }
            "beat" if value != "0" => "some".to_owned(),
            _ => value.to_owned(),
        };
        format!("{field}={value}")
    }

    fn entries(&self, ids: &[&str]) -> Vec<String> {
        let number = |id: &str| {
            let (ms, n) = id.split_once('-').expect("an entry id");
            (ms.parse::<u64>().expect("ms"), n.parse::<u64>().expect("a number"))
        };
        let place = |id: &str| ids.iter().filter(|known| number(known) <= number(id)).count();
        let mut all: Vec<String> =
            self.value.chunks(2).map(|pair| format!("entry {}: {}", place(&pair[0]), pair[1])).collect();
        for group in self.groups.iter().cloned() {
            let [last, pending] = group.into_tuple().expect("a group");
            all.push(format!("read up to {}", place(&text(&last))));
            for entry in pending.into_array().expect("a list") {
                let [id, by, ..] = entry.into_tuple::<4>().expect("a pending entry");
                all.push(format!("entry {} is with {}", place(&text(&id)), text(&by)));
            }
        }
        all
    }
}

/// The queue time in the score of a bucket.
const HEAD: u64 = (1 << 40) - 1;
/// How many turns one call may be later than another of the same time.
const TURNS_MAX: u64 = 64;

fn score(text: &str) -> f64 {
    text.parse().expect("a score")
}
