//! From an entry's fields to a [`Message`]: each type's fields, their limits and their defaults.

use std::sync::Arc;

use super::reader::{Object, Refusal, Value};
use super::rejection::{Fault, Rejection};
use super::{
    ATTEMPTS_MAX, Limits, MAX_RUNNING_MAX, Message, MessageType, NAMESPACES_MAX, RUNNER_PRIORITY_MAX,
    RUNNER_SCOPES_MAX, Status, TEXT_MAX_BYTES, TIMEOUT_S_DEFAULT, TIMEOUT_S_MAX, VERSION, WEIGHT_MAX,
};
use crate::job::{
    JobId, Malformed, Name, PendingJob, Priority, ProjectFacts, ProjectId, RunnerId, Tenant, is_reason_word,
};
use crate::runner::{RunnerRecord, RunnerType};
use crate::tags::{Capability, TAG_MAX_BYTES, TAGS_MAX, TagSet};

/// The last moment of the year 9999, in Unix milliseconds: a later one is a mistake in its unit.
const TIME_MAX_MS: i64 = 253_402_300_799_999;

/// What every entry has, whatever its type.
struct Envelope<'a> {
    kind: &'a str,
    data: &'a str,
    traceparent: &'a str,
}

pub(super) fn parse<K: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(K, V)], limits: &Limits) -> Result<Message, Rejection> {
    read(fields, limits.data_max_bytes, |kind, data, traceparent| {
        let kind = kind.parse().map_err(|must: Malformed| refuse_bytes("type", must.0, kind.as_bytes()))?;
        message(kind, data, traceparent, limits)
    })
}

/// Reads what every entry has and hands type, data and traceparent to `finish`; its fault becomes a rejection.
pub(super) fn read<T, K: AsRef<[u8]>, V: AsRef<[u8]>>(
    fields: &[(K, V)],
    data_max_bytes: usize,
    finish: impl FnOnce(&str, &Object<'_>, &str) -> Result<T, Fault>,
) -> Result<T, Rejection> {
    let mut object = None;
    let result = (|| {
        let Envelope { kind, data, traceparent } = envelope(fields, data_max_bytes)?;
        let data = Object::read("data", data)?;
        let object = object.insert((kind.starts_with("job."), data));
        finish(kind, &object.1, traceparent)
    })();
    result.map_err(|fault| {
        let job = object.filter(|(is_job, _)| *is_job).and_then(|(_, data)| data.optional("id", Value::id).ok());
        let data = fields.iter().find(|(name, _)| name.as_ref() == b"data").map_or(&[][..], |(_, data)| data.as_ref());
        Rejection::new(fault, job.flatten().map(JobId), data)
    })
}

fn envelope<K: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(K, V)], data_max_bytes: usize) -> Result<Envelope<'_>, Fault> {
    let version = once(fields, "v")?;
    if version != VERSION.as_bytes() {
        return Err(refuse_bytes("v", "must be 1, the one version of the contract", version));
    }
    let kind = once(fields, "type").and_then(|kind| utf8("type", kind))?;
    let data = once(fields, "data").and_then(|data| match data.len() {
        length if length > data_max_bytes => {
            Err(refuse_bytes("data", &format!("must be at most {data_max_bytes} bytes"), data))
        }
        _ => utf8("data", data),
    })?;
    let traceparent = once(fields, "traceparent").ok().and_then(|text| std::str::from_utf8(text).ok());
    Ok(Envelope { kind, data, traceparent: traceparent.filter(|text| is_traceparent(text)).unwrap_or_default() })
}

/// The field's value. One that is given twice is refused: Redis keeps both, and a reader could see either.
fn once<'a, K: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &'a [(K, V)], name: &'static str) -> Result<&'a [u8], Fault> {
    let mut found = fields.iter().filter(|(field, _)| field.as_ref() == name.as_bytes());
    match (found.next(), found.next()) {
        (Some((_, value)), None) => Ok(value.as_ref()),
        (None, _) => Err(Fault::new(name, "is required")),
        (Some(_), Some(_)) => Err(Fault::new(name, "must be given once, is given twice or more")),
    }
}

fn utf8<'a>(name: &'static str, bytes: &'a [u8]) -> Result<&'a str, Fault> {
    std::str::from_utf8(bytes).map_err(|error| {
        Fault::new(name, format!("must be UTF-8, is {} bytes, broken at byte {}", bytes.len(), error.valid_up_to()))
    })
}

fn refuse_bytes(name: &'static str, must: &str, bytes: &[u8]) -> Fault {
    Fault::new(name, format!("{must}, is {} bytes", bytes.len()))
}

/// Whether it has the shape of W3C `traceparent` version 00: `00-<32 hex>-<16 hex>-<2 hex>`, of any version.
fn is_traceparent(text: &str) -> bool {
    let dash = |i| matches!(i, 2 | 35 | 52);
    text.len() == 55
        && text.bytes().enumerate().all(|(i, b)| match dash(i) {
            true => b == b'-',
            false => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
        })
}

fn message(kind: MessageType, data: &Object<'_>, traceparent: &str, limits: &Limits) -> Result<Message, Fault> {
    Ok(match kind {
        MessageType::JobPending => Message::JobPending(Box::new(pending_job(data, traceparent, limits)?)),
        MessageType::JobCanceled => Message::JobCanceled {
            job_id: JobId(data.required("id", Value::id)?),
            tenant: data.required("tenant", tenant)?,
            reason: blank(data.optional("reason", |reason| reason.string(0..=TEXT_MAX_BYTES))?)
                .map_or_else(|| "canceled".into(), Into::into),
        },
        MessageType::JobRunning => Message::JobRunning {
            job_id: JobId(data.required("id", Value::id)?),
            tenant: data.required("tenant", tenant)?,
            runner_id: data.optional("runner_id", Value::id)?.map(RunnerId),
            system_id: data.optional("system_id", |id| id.parsed(Name::new))?,
        },
        MessageType::JobFinished => Message::JobFinished {
            job_id: JobId(data.required("id", Value::id)?),
            tenant: data.required("tenant", tenant)?,
            status: data.required("status", |status| status.parsed(str::parse::<Status>))?,
            exit_code: data.optional("exit_code", exit_code)?,
            failure_reason: blank(data.optional("failure_reason", |word| word.parsed(reason_word))?),
        },
        MessageType::RunnerUpserted => Message::RunnerUpserted(Box::new(runner(data)?)),
        MessageType::RunnerDeleted => Message::RunnerDeleted { id: RunnerId(data.required("id", Value::id)?) },
        MessageType::TenantUpserted => Message::TenantUpserted {
            tenant: data.required("tenant", tenant)?,
            weight: data.optional("weight", |weight| weight.u32(1..=WEIGHT_MAX))?.unwrap_or(1),
            max_running: data.optional("max_running", max_running)?,
        },
        MessageType::ProjectUpserted => Message::ProjectUpserted {
            project_id: ProjectId(data.required("project_id", Value::id)?),
            tenant: data.required("tenant", tenant)?,
            instance_runners: data.optional("instance_runners", Value::flag)?,
            group_runners: data.optional("group_runners", Value::flag)?,
            max_running: data.optional("max_running", max_running)?,
        },
    })
}

fn pending_job(data: &Object<'_>, traceparent: &str, limits: &Limits) -> Result<PendingJob, Fault> {
    let id = data.required("id", Value::id)?;
    let project_id = data.required("project_id", Value::id)?;
    let tenant = data.optional("tenant", tenant)?;
    let namespace_ids = data.list("namespace_ids", NAMESPACES_MAX, Value::id)?;
    let tenant = tenant.or_else(|| namespace_ids.first().map(|root| Tenant::of_namespace(*root)));
    let tenant = tenant.ok_or_else(|| data.fault("tenant", "is required where namespace_ids names no root".into()))?;
    let pipeline_id = data.optional("pipeline_id", Value::id)?;
    let tags = tag_set(data, "tags")?;
    let protected = flag(data, "protected", false)?;
    let project = ProjectFacts {
        id: ProjectId(project_id),
        namespace_ids,
        instance_runners: flag(data, "instance_runners", true)?,
        group_runners: flag(data, "group_runners", true)?,
    };
    let priority = data.optional("priority", |rank| {
        let rank = rank.whole(-2..=2)?;
        Ok(Priority::new(rank).expect("it is within the range"))
    })?;
    let queued_at_ms = data.optional("queued_at_ms", |at| at.whole(0..=TIME_MAX_MS))?.map(i64::unsigned_abs);
    let timeout_s = data.optional("timeout_s", |timeout| timeout.u32(1..=TIMEOUT_S_MAX))?;
    let requires = tag_set(data, "requires")?;
    let max_attempts = data.optional("max_attempts", |attempts| attempts.u32(1..=ATTEMPTS_MAX))?.unwrap_or(1);
    let affinity = data.optional("affinity", |affinity| affinity.string(1..=TEXT_MAX_BYTES))?;
    let affinity = affinity.map_or_else(
        || match pipeline_id {
            Some(id) => format!("pipeline:{id}").into(),
            None => format!("project:{project_id}").into(),
        },
        Arc::from,
    );
    let payload = data.required("payload", |payload| json_object(payload, limits.payload_max_bytes))?;
    Ok(PendingJob {
        id: JobId(id),
        tenant,
        project,
        pipeline_id,
        capability: Arc::new(Capability { tags, protected, requires }),
        priority: priority.unwrap_or_default(),
        queued_at_ms,
        timeout_s: timeout_s.unwrap_or(TIMEOUT_S_DEFAULT),
        max_attempts,
        affinity,
        payload: payload.raw().to_owned(),
        traceparent: traceparent.to_owned(),
    })
}

fn runner(data: &Object<'_>) -> Result<RunnerRecord, Fault> {
    Ok(RunnerRecord {
        id: data.required("id", Value::id)?,
        token_sha256: data.required("token_sha256", |hash| hash.parsed(sha256))?,
        kind: data.required("type", |kind| kind.parsed(runner_type))?,
        group_ids: data.list("group_ids", RUNNER_SCOPES_MAX, Value::id)?,
        project_ids: data.list("project_ids", RUNNER_SCOPES_MAX, Value::id)?,
        tags: tag_set(data, "tags")?,
        run_untagged: flag(data, "run_untagged", false)?,
        protected_only: flag(data, "protected_only", false)?,
        paused: flag(data, "paused", false)?,
        priority: data.optional("priority", runner_priority)?.unwrap_or(0),
        max_running: data.optional("max_running", max_running)?,
    })
}

// === Fields that several types share ===

fn tenant(value: Value<'_>) -> Result<Tenant, Refusal> {
    value.parsed(Tenant::new)
}

fn flag(data: &Object<'_>, name: &'static str, default: bool) -> Result<bool, Fault> {
    Ok(data.optional(name, Value::flag)?.unwrap_or(default))
}

fn tag_set(data: &Object<'_>, name: &'static str) -> Result<TagSet, Fault> {
    let tags = data.list(name, TAGS_MAX, |tag| tag.string(1..=TAG_MAX_BYTES))?;
    Ok(TagSet::new(tags).expect("number and length of the tags are within the limits"))
}

fn max_running(value: Value<'_>) -> Result<u32, Refusal> {
    value.u32(0..=MAX_RUNNING_MAX)
}

pub(super) fn exit_code(value: Value<'_>) -> Result<i32, Refusal> {
    let code = value.whole(i64::from(i32::MIN)..=i64::from(i32::MAX))?;
    Ok(i32::try_from(code).expect("it is within the range of i32"))
}

pub(super) fn at_ms(value: Value<'_>) -> Result<u64, Refusal> {
    Ok(value.whole(0..=TIME_MAX_MS)?.unsigned_abs())
}

fn runner_priority(value: Value<'_>) -> Result<i32, Refusal> {
    let priority = value.whole(i64::from(-RUNNER_PRIORITY_MAX)..=i64::from(RUNNER_PRIORITY_MAX))?;
    Ok(i32::try_from(priority).expect("it is within the range of i32"))
}

/// A reason word, or nothing.
fn reason_word(text: &str) -> Result<Arc<str>, Malformed> {
    match text.is_empty() || is_reason_word(text) {
        true => Ok(text.into()),
        false => Err(Malformed("must be a word of at most 64 of [a-z0-9_]")),
    }
}

/// An empty string means as much as an absent one.
fn blank<T: AsRef<str>>(text: Option<T>) -> Option<T> {
    text.filter(|text| !text.as_ref().is_empty())
}

fn sha256(text: &str) -> Result<String, Malformed> {
    let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    match digits && text.len() == 64 {
        true => Ok(text.to_owned()),
        false => Err(Malformed("must be SHA-256 as 64 lower-case hex digits")),
    }
}

fn runner_type(text: &str) -> Result<RunnerType, Malformed> {
    match text {
        "instance" => Ok(RunnerType::Instance),
        "group" => Ok(RunnerType::Group),
        "project" => Ok(RunnerType::Project),
        _ => Err(Malformed("must be instance, group or project")),
    }
}

fn json_object(value: Value<'_>, max_bytes: usize) -> Result<Value<'_>, Refusal> {
    let text = value.raw().get();
    if !text.starts_with('{') {
        return Err(value.refuse("must be a JSON object"));
    }
    match text.len() <= max_bytes {
        true => Ok(value),
        false => Err(value.refuse(format_args!("must be at most {max_bytes} bytes"))),
    }
}
