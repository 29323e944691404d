//! Entries for tests, demos and benchmarks: sound jobs, and malformed entries of many kinds.
//!
//! Nothing in the router calls this. It is in the library, and deterministic, so that integration tests, the demo and
//! a report of a failing seed all speak of the same entries.

use super::{Entry, VERSION};

/// A word that stands in every value of a malformed entry that can hold one: no rejection's reason may repeat it.
pub const SECRET: &str = "hunter2";

/// What is wrong with a malformed entry: the field that its rejection names, and how to build it for a job id.
pub struct Kind {
    /// The field that the rejection names.
    pub field: &'static str,
    build: fn(u64) -> Fields,
}

/// An entry's field-value pairs, to give to `XADD`.
pub type Fields = Vec<(String, Vec<u8>)>;

/// A sound `job.pending` of this tenant, with one tag and a small payload.
pub fn pending_job(id: u64, project_id: u64, tenant: &str) -> Entry {
    let tenant = serde_json::Value::from(tenant);
    let line = format!(
        r#"{{"type":"job.pending","data":{{"id":{id},"project_id":{project_id},"tenant":{tenant},"tags":["linux"],"payload":{{"id":{id}}}}}}}"#
    );
    Entry::from_line(&line).expect("a line in the shape that from_line documents")
}

/// Malformed entries without end, of every one of [`KINDS`] in turn, from a place and with job ids that `seed` decides.
pub fn malformed_entries(seed: u64) -> impl Iterator<Item = Fields> {
    malformed_kinds(seed).map(|(_, fields)| fields)
}

/// [`malformed_entries`], each with its kind.
pub fn malformed_kinds(seed: u64) -> impl Iterator<Item = (&'static Kind, Fields)> {
    let start = (mix(seed) % KINDS.len() as u64) as usize;
    KINDS.iter().cycle().skip(start).zip(0u64..).map(move |(kind, turn)| {
        let id = 1 + mix(seed ^ mix(turn)) % 1_000_000_000;
        (kind, (kind.build)(id))
    })
}

/// The finaliser of SplitMix64: the same numbers on every machine and in every release.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn entry(kind: &str, data: impl Into<Vec<u8>>) -> Fields {
    [("v", VERSION.into()), ("type", kind.into()), ("data", data.into())].map(|(k, v)| (k.to_owned(), v)).into()
}

fn job(id: u64, broken: &str) -> Fields {
    let data =
        format!(r#"{{"id":{id},"project_id":2,"namespace_ids":[3,4],{broken}"payload":{{"variables":["{SECRET}"]}}}}"#);
    entry("job.pending", data)
}

fn without(name: &str, mut fields: Fields) -> Fields {
    fields.retain(|(field, _)| field != name);
    fields
}

fn also(name: &str, value: &str, mut fields: Fields) -> Fields {
    fields.push((name.to_owned(), value.into()));
    fields
}

macro_rules! kinds {
    ($($field:literal: $build:expr,)+) => {
        /// Every kind of malformed entry there is.
        pub const KINDS: &[Kind] = &[$(Kind { field: $field, build: $build },)+];
    };
}

kinds! {
    "v": |_| Vec::new(),
    "v": |id| without("v", job(id, "")),
    "v": |id| also("v", "2", without("v", job(id, ""))),
    "v": |id| also("v", "1", job(id, "")),
    "v": |_| vec![("\u{0}".into(), vec![0xff; 16])],
    "type": |id| without("type", job(id, "")),
    "type": |id| also("type", "job.hunter2", without("type", job(id, ""))),
    "type": |id| also("type", "job.canceled", job(id, "")),
    "data": |id| without("data", job(id, "")),
    "data": |_| entry("job.pending", ""),
    "data": |_| entry("job.pending", "hunter2"),
    "data": |_| entry("job.pending", r#""hunter2""#),
    "data": |_| entry("job.pending", r#"["hunter2"]"#),
    "data": |_| entry("job.pending", "null"),
    "data": |id| entry("job.pending", format!(r#"{{"id":{id},"payload":{{"token":"hunter2""#)),
    "data": |id| entry("job.pending", [br#"{"tenant":"hunter2"#.as_slice(), &[0xc3, 0x28], &id.to_be_bytes()].concat()),
    "data": |id| entry("job.pending", format!("{{\"id\":{id},\"tenant\":\"hunter2\u{0}\"}}")),
    "data": |_| entry("job.pending", "[".repeat(100_000)),
    "data": |_| entry("job.pending", format!("{{{}\"hunter2\":0}}", "\"x\":0,".repeat(300))),
    "data.id": |_| entry("job.pending", "{}"),
    "data.id": |id| entry("job.pending", format!(r#"{{"id":"{id}hunter2"}}"#)),
    "data.id": |id| entry("job.pending", format!(r#"{{"id":-{id}}}"#)),
    "data.id": |id| entry("job.pending", format!(r#"{{"id":{id}.5}}"#)),
    "data.id": |_| entry("job.pending", r#"{"id":9223372036854775808}"#),
    "data.id": |id| entry("job.pending", format!(r#"{{"id":{id},"id":{id}}}"#)),
    "data.project_id": |id| entry("job.pending", format!(r#"{{"id":{id},"payload":{{}}}}"#)),
    "data.tenant": |id| entry("job.pending", format!(r#"{{"id":{id},"project_id":2,"payload":{{}}}}"#)),
    "data.tenant": |id| job(id, &format!(r#""tenant":"{}","#, SECRET.repeat(10))),
    "data.tenant": |id| job(id, r#""tenant":"hunter2\ud800","#),
    "data.namespace_ids": |id| job(id, r#""namespace_ids":[5],"#),
    "data.pipeline_id": |id| job(id, r#""pipeline_id":1e400,"#),
    "data.tags": |id| job(id, r#""tags":"hunter2","#),
    "data.tags": |id| job(id, &format!(r#""tags":[{}"x"],"#, r#""hunter2","#.repeat(50))),
    "data.tags[0]": |id| job(id, r#""tags":[["hunter2"]],"#),
    "data.tags[1]": |id| job(id, &format!(r#""tags":["x","{}"],"#, SECRET.repeat(40))),
    "data.protected": |id| job(id, r#""protected":"hunter2","#),
    "data.instance_runners": |id| job(id, r#""instance_runners":1,"#),
    "data.priority": |id| job(id, r#""priority":3,"#),
    "data.queued_at_ms": |id| job(id, r#""queued_at_ms":"hunter2","#),
    "data.timeout_s": |id| job(id, r#""timeout_s":0,"#),
    "data.requires[0]": |id| job(id, r#""requires":[""],"#),
    "data.max_attempts": |id| job(id, r#""max_attempts":11,"#),
    "data.affinity": |id| job(id, r#""affinity":"hunter2\u0000","#),
    "data.payload": |id| job(id, r#""payload":{"token":"hunter2"},"#),
    "data.payload": |id| entry("job.pending", format!(r#"{{"id":{id},"project_id":2,"tenant":"t","payload":"hunter2"}}"#)),
    "data.payload": |id| entry("job.pending", format!(r#"{{"id":{id},"project_id":2,"tenant":"t"}}"#)),
    "data.tenant": |id| entry("job.canceled", format!(r#"{{"id":{id}}}"#)),
    "data.status": |id| entry("job.finished", format!(r#"{{"id":{id},"tenant":"t","status":"hunter2"}}"#)),
    "data.token_sha256": |id| entry("runner.upserted", format!(r#"{{"id":{id},"token_sha256":"glrt-hunter2"}}"#)),
    "data.type": |id| {
        let hash = "a".repeat(64);
        entry("runner.upserted", format!(r#"{{"id":{id},"token_sha256":"{hash}","type":"hunter2"}}"#))
    },
    "data.id": |_| entry("runner.deleted", r#"{"id":0}"#),
    "data.weight": |_| entry("tenant.upserted", r#"{"tenant":"t","weight":0}"#),
    "data.max_running": |id| entry("project.upserted", format!(r#"{{"project_id":{id},"tenant":"t","max_running":-1}}"#)),
}
