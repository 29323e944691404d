//! The contract from both ends: what is refused and by which name, and that what is sound comes through unchanged.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::samples::{self, KINDS, SECRET};
use super::*;
use crate::job::Priority;
use crate::runner::RunnerType;

const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// One field of a stream entry and its value.
type Pair<'a> = (&'a [u8], &'a [u8]);

/// The least data of a sound message of this type.
fn sound(kind: &str) -> Vec<(&'static str, String)> {
    let fields: &[(&str, &str)] = match kind {
        "job.pending" => &[("id", "42"), ("project_id", "7"), ("tenant", r#""acme""#), ("payload", "{}")],
        "job.canceled" | "job.running" => &[("id", "42"), ("tenant", r#""acme""#)],
        "job.finished" => &[("id", "42"), ("tenant", r#""acme""#), ("status", r#""failed""#)],
        "runner.upserted" => &[
            ("id", "9"),
            ("token_sha256", r#""0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef""#),
            ("type", r#""group""#),
        ],
        "runner.deleted" => &[("id", "9")],
        "tenant.upserted" => &[("tenant", r#""acme""#)],
        "project.upserted" => &[("project_id", "7"), ("tenant", r#""acme""#)],
        _ => panic!("no such type"),
    };
    fields.iter().map(|(name, json)| (*name, (*json).to_owned())).collect()
}

fn object(fields: &[(&str, String)]) -> String {
    let fields: Vec<_> = fields.iter().map(|(name, json)| format!("\"{name}\":{json}")).collect();
    format!("{{{}}}", fields.join(","))
}

/// A sound message's data but for one field; an empty text leaves the field out.
fn data_with(kind: &str, name: &'static str, json: &str) -> String {
    let mut fields = sound(kind);
    fields.retain(|(field, _)| *field != name);
    if !json.is_empty() {
        fields.push((name, json.to_owned()));
    }
    object(&fields)
}

fn read(kind: &str, data: &str) -> Result<Message, Rejection> {
    parse(&[("v", "1"), ("type", kind), ("data", data)], &Limits::default())
}

fn pending(data: &str) -> PendingJob {
    match read("job.pending", data) {
        Ok(Message::JobPending(job)) => *job,
        other => panic!("{other:?}"),
    }
}

fn array(item: &str, count: usize) -> String {
    format!("[{}]", vec![item; count].join(","))
}

fn string(bytes: usize) -> String {
    format!("\"{}\"", SECRET.repeat(bytes / SECRET.len() + 1).split_at(bytes).0)
}

#[test]
fn each_malformed_field_is_named_and_described_but_not_shown() {
    let job = "job.pending";
    let runner = "runner.upserted";
    #[rustfmt::skip]
    let rows: Vec<(&str, &'static str, String, &str, &str)> = vec![
        // type, field, broken value (empty: absent), field named, end of the reason
        (job, "id", "".into(), "data.id", "is required"),
        (job, "id", "null".into(), "data.id", "is required"),
        (job, "id", "0".into(), "data.id", "from 1 to 9223372036854775807, is a number of 1 digits"),
        (job, "id", "-77777".into(), "data.id", "is a negative number"),
        (job, "id", "77777.5".into(), "data.id", "is a number with a fraction or an exponent"),
        (job, "id", "77777.0".into(), "data.id", "is a number with a fraction or an exponent"),
        (job, "id", "77777e2".into(), "data.id", "is a number with a fraction or an exponent"),
        (job, "id", "9223372036854775808".into(), "data.id", "is a number of 19 digits"),
        (job, "id", "7".repeat(400), "data.id", "is a number of 400 digits"),
        (job, "id", r#""77777""#.into(), "data.id", "is a string of 5 bytes"),
        (job, "id", "true".into(), "data.id", "is a boolean"),
        (job, "id", "[77777]".into(), "data.id", "is an array of 1"),
        (job, "id", r#"{"hunter2":77777}"#.into(), "data.id", "is an object of 17 bytes"),
        (job, "project_id", "".into(), "data.project_id", "is required"),
        (job, "project_id", r#""hunter2""#.into(), "data.project_id", "is a string of 7 bytes"),
        (job, "tenant", "".into(), "data.tenant", "is required where namespace_ids names no root"),
        (job, "tenant", "null".into(), "data.tenant", "is required where namespace_ids names no root"),
        (job, "tenant", r#""""#.into(), "data.tenant", "must be 1 to 64 bytes without control characters, is a string of 0 bytes"),
        (job, "tenant", string(65), "data.tenant", "is a string of 65 bytes"),
        (job, "tenant", r#""hunter2\u0000""#.into(), "data.tenant", "is a string of 8 bytes"),
        (job, "tenant", r#""hunter2\n""#.into(), "data.tenant", "is a string of 8 bytes"),
        (job, "tenant", r#""hunter2\ud800""#.into(), "data.tenant", "is a string with an escape that is no character"),
        (job, "tenant", "77777".into(), "data.tenant", "must be a string, is a number of 5 digits"),
        (job, "namespace_ids", "77777".into(), "data.namespace_ids", "must be an array of at most 21, is a number of 5 digits"),
        (job, "namespace_ids", array("77777", 22), "data.namespace_ids", "is an array of 22"),
        (job, "namespace_ids", "[1,null]".into(), "data.namespace_ids[1]", "is null"),
        (job, "namespace_ids", "[1,2,-77777]".into(), "data.namespace_ids[2]", "is a negative number"),
        (job, "pipeline_id", "-77777".into(), "data.pipeline_id", "is a negative number"),
        (job, "tags", r#""hunter2""#.into(), "data.tags", "must be an array of at most 50, is a string of 7 bytes"),
        (job, "tags", r#"{"hunter2":1}"#.into(), "data.tags", "is an object of 13 bytes"),
        (job, "tags", array(r#""hunter2""#, 51), "data.tags", "is an array of 51"),
        (job, "tags", r#"["a","b","c",77777]"#.into(), "data.tags[3]", "is a number of 5 digits"),
        (job, "tags", format!(r#"["a",{}]"#, string(256)), "data.tags[1]", "must be a string of 1 to 255 bytes without control characters, is a string of 256 bytes"),
        (job, "tags", r#"[""]"#.into(), "data.tags[0]", "is a string of 0 bytes"),
        (job, "tags", r#"["hunter2\u0000"]"#.into(), "data.tags[0]", "is a string of 8 bytes"),
        (job, "tags", r#"[["hunter2"]]"#.into(), "data.tags[0]", "is an array of 1"),
        (job, "protected", "1".into(), "data.protected", "must be true or false, is a number of 1 digits"),
        (job, "protected", r#""true""#.into(), "data.protected", "is a string of 4 bytes"),
        (job, "instance_runners", r#""hunter2""#.into(), "data.instance_runners", "is a string of 7 bytes"),
        (job, "group_runners", "[]".into(), "data.group_runners", "is an array of 0"),
        (job, "priority", "3".into(), "data.priority", "from -2 to 2, is a number of 1 digits"),
        (job, "priority", "-3".into(), "data.priority", "is a negative number"),
        (job, "priority", "1.5".into(), "data.priority", "is a number with a fraction or an exponent"),
        (job, "queued_at_ms", "-77777".into(), "data.queued_at_ms", "is a negative number"),
        (job, "queued_at_ms", "253402300800000".into(), "data.queued_at_ms", "is a number of 15 digits"),
        (job, "queued_at_ms", r#""2026-11-22""#.into(), "data.queued_at_ms", "is a string of 10 bytes"),
        (job, "timeout_s", "0".into(), "data.timeout_s", "from 1 to 2592000, is a number of 1 digits"),
        (job, "timeout_s", "2592001".into(), "data.timeout_s", "is a number of 7 digits"),
        (job, "requires", "true".into(), "data.requires", "is a boolean"),
        (job, "requires", "[77777]".into(), "data.requires[0]", "is a number of 5 digits"),
        (job, "max_attempts", "0".into(), "data.max_attempts", "from 1 to 10, is a number of 1 digits"),
        (job, "max_attempts", "11".into(), "data.max_attempts", "is a number of 2 digits"),
        (job, "affinity", r#""""#.into(), "data.affinity", "is a string of 0 bytes"),
        (job, "affinity", string(256), "data.affinity", "is a string of 256 bytes"),
        (job, "payload", "".into(), "data.payload", "is required"),
        (job, "payload", "null".into(), "data.payload", "is required"),
        (job, "payload", r#"["hunter2"]"#.into(), "data.payload", "must be a JSON object, is an array of 1"),
        (job, "payload", r#""hunter2""#.into(), "data.payload", "is a string of 7 bytes"),
        (job, "payload", format!(r#"{{"a":{}}}"#, string(1 << 20)), "data.payload", "must be at most 1048576 bytes, is an object of 1048584 bytes"),
        ("job.canceled", "id", "".into(), "data.id", "is required"),
        ("job.canceled", "tenant", "".into(), "data.tenant", "is required"),
        ("job.canceled", "reason", string(256), "data.reason", "is a string of 256 bytes"),
        ("job.canceled", "reason", "77777".into(), "data.reason", "is a number of 5 digits"),
        ("job.running", "runner_id", r#""hunter2""#.into(), "data.runner_id", "is a string of 7 bytes"),
        ("job.running", "system_id", r#""hunter2 x""#.into(), "data.system_id", "must be 1 to 64 of [A-Za-z0-9_.:-], is a string of 9 bytes"),
        ("job.finished", "status", "".into(), "data.status", "is required"),
        ("job.finished", "status", r#""hunter2""#.into(), "data.status", "must be success, failed or canceled, is a string of 7 bytes"),
        ("job.finished", "exit_code", "2147483648".into(), "data.exit_code", "is a number of 10 digits"),
        ("job.finished", "failure_reason", r#""Hunter2""#.into(), "data.failure_reason", "is a string of 7 bytes"),
        ("job.finished", "failure_reason", string(65), "data.failure_reason", "is a string of 65 bytes"),
        (runner, "token_sha256", "".into(), "data.token_sha256", "is required"),
        (runner, "token_sha256", r#""glrt-hunter2""#.into(), "data.token_sha256", "must be SHA-256 as 64 lower-case hex digits, is a string of 12 bytes"),
        (runner, "token_sha256", format!("\"{}\"", HASH.to_uppercase()), "data.token_sha256", "is a string of 64 bytes"),
        (runner, "token_sha256", format!("\"{}\"", &HASH[1..]), "data.token_sha256", "is a string of 63 bytes"),
        (runner, "type", "".into(), "data.type", "is required"),
        (runner, "type", r#""hunter2""#.into(), "data.type", "must be instance, group or project, is a string of 7 bytes"),
        (runner, "group_ids", array("77777", 1_001), "data.group_ids", "must be an array of at most 1000, is an array of 1001"),
        (runner, "project_ids", "[77777,0]".into(), "data.project_ids[1]", "is a number of 1 digits"),
        (runner, "tags", "[null]".into(), "data.tags[0]", "is null"),
        (runner, "run_untagged", "0".into(), "data.run_untagged", "is a number of 1 digits"),
        (runner, "protected_only", r#""no""#.into(), "data.protected_only", "is a string of 2 bytes"),
        (runner, "paused", "{}".into(), "data.paused", "is an object of 2 bytes"),
        (runner, "priority", "101".into(), "data.priority", "from -100 to 100, is a number of 3 digits"),
        (runner, "priority", "-101".into(), "data.priority", "is a negative number"),
        (runner, "max_running", "1000001".into(), "data.max_running", "from 0 to 1000000, is a number of 7 digits"),
        ("runner.deleted", "id", "".into(), "data.id", "is required"),
        ("tenant.upserted", "tenant", "".into(), "data.tenant", "is required"),
        ("tenant.upserted", "weight", "0".into(), "data.weight", "from 1 to 1000, is a number of 1 digits"),
        ("tenant.upserted", "weight", "1001".into(), "data.weight", "is a number of 4 digits"),
        ("tenant.upserted", "weight", "0.5".into(), "data.weight", "is a number with a fraction or an exponent"),
        ("tenant.upserted", "max_running", "-77777".into(), "data.max_running", "is a negative number"),
        ("project.upserted", "project_id", "".into(), "data.project_id", "is required"),
        ("project.upserted", "group_runners", r#""hunter2""#.into(), "data.group_runners", "is a string of 7 bytes"),
        ("project.upserted", "max_running", r#""hunter2""#.into(), "data.max_running", "is a string of 7 bytes"),
    ];
    assert!(rows.len() >= 60);
    for (kind, field, json, named, ends) in rows {
        let rejection = read(kind, &data_with(kind, field, &json)).expect_err(&format!("{kind} {field} {json}"));
        assert_eq!(rejection.field, named, "{kind} {field} {json}");
        assert!(rejection.reason.ends_with(ends), "{kind} {field}: {rejection}");
        for secret in [SECRET, "77777", "glrt", "Hunter", "2026"] {
            assert!(!rejection.to_string().contains(secret), "{kind} {field}: {rejection}");
        }
        assert!(rejection.reason.len() <= 200);
    }
}

#[test]
fn each_malformed_envelope_is_named_and_described_but_not_shown() {
    let data = object(&sound("job.pending"));
    let data = data.as_bytes();
    let too_long = vec![b' '; Limits::default().data_max_bytes + 1];
    let fields = format!("{{{}\"hunter2\":0}}", r#""x":0,"#.repeat(256));
    #[rustfmt::skip]
    let rows: &[(&[Pair<'_>], &str, &str)] = &[
        (&[], "v", "is required"),
        (&[(b"v", b""), (b"type", b"job.pending"), (b"data", data)], "v", "is 0 bytes"),
        (&[(b"v", b"2"), (b"type", b"job.pending"), (b"data", data)], "v", "must be 1, the one version of the contract, is 1 bytes"),
        (&[(b"v", b"hunter2"), (b"type", b"job.pending"), (b"data", data)], "v", "is 7 bytes"),
        (&[(b"v", b"1"), (b"v", b"1"), (b"type", b"job.pending"), (b"data", data)], "v", "is given twice or more"),
        (&[(b"V", b"1"), (b"type", b"job.pending"), (b"data", data)], "v", "is required"),
        (&[(b"v", b"1"), (b"data", data)], "type", "is required"),
        (&[(b"v", b"1"), (b"type", b"hunter2"), (b"data", data)], "type", "must be a message type of version 1, is 7 bytes"),
        (&[(b"v", b"1"), (b"type", b"job.queued"), (b"data", data)], "type", "is 10 bytes"),
        (&[(b"v", b"1"), (b"type", b"\xff\xfe"), (b"data", data)], "type", "must be UTF-8, is 2 bytes, broken at byte 0"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"type", b"job.canceled"), (b"data", data)], "type", "is given twice or more"),
        (&[(b"v", b"1"), (b"type", b"job.pending")], "data", "is required"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", data), (b"data", data)], "data", "is given twice or more"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", b"")], "data", "must be JSON: EOF while parsing a value at line 1 column 0"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", b"hunter2")], "data", "must be JSON: expected value at line 1 column 1"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", b"\"hunter2\"")], "data", "must be a JSON object, is a string of 7 bytes"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", b"[77777]")], "data", "must be a JSON object, is an array of 1"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", b"null")], "data", "is null"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", b"{\"tenant\":\"hunter2")], "data", "EOF while parsing a string at line 1 column 18"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", b"{\"id\":1} hunter2")], "data", "trailing characters at line 1 column 10"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", b"{\"id\":1,}")], "data", "trailing comma at line 1 column 9"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", b"{\"hunter2\":hunter2}")], "data", "expected value at line 1 column 12"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", b"{\"a\\ud800\":1}")], "data", "unexpected end of hex escape at line 1 column 10"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", b"{\"tenant\":\"hunter2\0\"}")], "data", "found while parsing a string at line 1 column 18"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", b"{\"tenant\":\"hunter2\xff\"}")], "data", "must be UTF-8, is 21 bytes, broken at byte 18"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", b"{\"id\":1,\"id\":1}")], "data.id", "is given twice or more"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", b"{\"id\":1,\"i\\u0064\":null}")], "data.id", "is given twice or more"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", fields.as_bytes())], "data", "must hold at most 256 fields"),
        (&[(b"v", b"1"), (b"type", b"job.pending"), (b"data", &too_long)], "data", "must be at most 1310720 bytes, is 1310721 bytes"),
    ];
    for (fields, named, ends) in rows {
        let rejection = parse(fields, &Limits::default()).expect_err(ends);
        assert_eq!(rejection.field, *named, "{rejection}, not: {ends}");
        assert!(rejection.reason.ends_with(ends), "{rejection}, not: {ends}");
        for secret in [SECRET, "77777", "job.queued"] {
            assert!(!rejection.to_string().contains(secret), "{rejection}");
        }
    }
}

#[test]
fn deep_nesting_neither_overflows_the_stack_nor_is_read() {
    let deep = |open: &str, close: &str| format!("{}1{}", open.repeat(200_000), close.repeat(200_000));
    let payload = format!("{{\"a\":{}}}", deep("[", "]"));
    let job = pending(&data_with("job.pending", "payload", &payload));
    assert_eq!(job.payload.get(), payload);
    assert_eq!(read("job.pending", &deep("[", "]")).expect_err("an array").field, "data");
    let rejection = read("job.pending", &data_with("job.pending", "tags", &deep("[", "]"))).expect_err("nested");
    assert_eq!(rejection.field, "data.tags[0]");
    let rejection = read("job.pending", &data_with("job.pending", "id", &deep("{\"a\":", "}"))).expect_err("nested");
    assert_eq!(rejection.field, "data.id");
}

#[test]
fn a_job_that_says_the_least_gets_the_documented_defaults() {
    let job = pending(r#"{"id":42,"project_id":7,"namespace_ids":[3,5],"payload":{}}"#);
    assert_eq!(job.tenant, Tenant::of_namespace(3));
    assert_eq!(job.project.namespace_ids, [3, 5]);
    assert!(job.project.instance_runners && job.project.group_runners);
    assert_eq!(&*job.affinity, "project:7");
    assert_eq!((job.timeout_s, job.max_attempts, job.priority), (3_600, 1, Priority::default()));
    assert_eq!((job.pipeline_id, job.queued_at_ms, job.traceparent.as_str()), (None, None, ""));
    assert_eq!(*job.capability, crate::tags::Capability::default());
    let job = pending(r#"{"id":42,"project_id":7,"tenant":"t","pipeline_id":8,"payload":{}}"#);
    assert_eq!(&*job.affinity, "pipeline:8");
    assert!(job.project.namespace_ids.is_empty());
}

#[test]
fn null_is_the_same_as_absent_in_every_optional_field() {
    let nulls = "namespace_ids pipeline_id tags protected instance_runners group_runners priority queued_at_ms \
                 timeout_s requires max_attempts affinity"
        .split_whitespace()
        .map(|name| format!(r#","{name}":null"#))
        .collect::<String>();
    let least = r#""id":42,"project_id":7,"tenant":"t","payload":{}"#;
    let (with, without) = (pending(&format!("{{{least}{nulls}}}")), pending(&format!("{{{least}}}")));
    assert_eq!(format!("{with:?}"), format!("{without:?}"));
}

#[test]
fn debug_output_of_a_message_hides_the_payload() {
    let message = read("job.pending", &data_with("job.pending", "payload", r#"{"token":"hunter2"}"#)).expect("sound");
    let shown = format!("{message:?}");
    assert!(shown.contains("acme") && !shown.contains(SECRET), "{shown}");
}

#[test]
fn the_limits_themselves_are_allowed() {
    for (kind, field, json) in [
        ("job.pending", "id", "9223372036854775807".to_owned()),
        ("job.pending", "tenant", string(64)),
        ("job.pending", "namespace_ids", array("1", NAMESPACES_MAX)),
        ("job.pending", "tags", array(&string(255), 50)),
        ("job.pending", "priority", "-2".into()),
        ("job.pending", "queued_at_ms", "253402300799999".into()),
        ("job.pending", "timeout_s", "2592000".into()),
        ("job.pending", "max_attempts", "10".into()),
        ("job.pending", "affinity", string(255)),
        ("job.pending", "payload", format!(r#"{{"a":{}}}"#, string((1 << 20) - 8))),
        ("job.canceled", "reason", string(255)),
        ("job.finished", "exit_code", "-2147483648".into()),
        ("job.finished", "failure_reason", string(64)),
        ("runner.upserted", "group_ids", array("1", RUNNER_SCOPES_MAX)),
        ("runner.upserted", "priority", "-100".into()),
        ("tenant.upserted", "weight", "1000".into()),
        ("tenant.upserted", "max_running", "0".into()),
        ("project.upserted", "max_running", "1000000".into()),
    ] {
        let message = read(kind, &data_with(kind, field, &json)).unwrap_or_else(|no| panic!("{kind} {no}"));
        assert_eq!(message.message_type().as_str(), kind);
    }
}

#[test]
fn a_malformed_traceparent_is_dropped_and_the_job_is_not() {
    let data = object(&sound("job.pending"));
    let traceparent = |values: &[&str]| {
        let mut fields = vec![("v", "1"), ("type", "job.pending"), ("data", data.as_str())];
        fields.extend(values.iter().map(|value| ("traceparent", *value)));
        match parse(&fields, &Limits::default()).expect("the job is sound") {
            Message::JobPending(job) => job.traceparent,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(traceparent(&[TRACEPARENT]), TRACEPARENT);
    assert_eq!(traceparent(&[TRACEPARENT, TRACEPARENT]), "");
    assert_eq!(traceparent(&[&TRACEPARENT.to_uppercase()]), "");
    assert_eq!(traceparent(&[&TRACEPARENT[1..]]), "");
    assert_eq!(traceparent(&[&TRACEPARENT.replace('-', "0")]), "");
    assert_eq!(traceparent(&[""]), "");
    let fields: [(&[u8], &[u8]); 4] =
        [(b"traceparent", b"\xff"), (b"v", b"1"), (b"type", b"job.pending"), (b"data", data.as_bytes())];
    assert!(parse(&fields, &Limits::default()).is_ok());
}

#[test]
fn what_the_other_types_say_comes_through() {
    match read("job.canceled", r#"{"id":42,"tenant":"t","reason":"stopped by \"user\""}"#) {
        Ok(Message::JobCanceled { job_id: JobId(42), reason, .. }) => assert_eq!(&*reason, r#"stopped by "user""#),
        other => panic!("{other:?}"),
    }
    match read("job.canceled", r#"{"id":42,"tenant":"t","reason":""}"#) {
        Ok(Message::JobCanceled { reason, .. }) => assert_eq!(&*reason, "canceled"),
        other => panic!("{other:?}"),
    }
    match read("job.running", r#"{"id":42,"tenant":"t","runner_id":9,"system_id":"s_1"}"#) {
        Ok(Message::JobRunning { runner_id, system_id, .. }) => {
            assert_eq!((runner_id, system_id.expect("given").as_str()), (Some(RunnerId(9)), "s_1"));
        }
        other => panic!("{other:?}"),
    }
    let data = r#"{"id":42,"tenant":"t","status":"failed","exit_code":-1,"failure_reason":"script_failure"}"#;
    match read("job.finished", data) {
        Ok(Message::JobFinished { status: Status::Failed, exit_code: Some(-1), failure_reason, .. }) => {
            assert_eq!(failure_reason.as_deref(), Some("script_failure"));
        }
        other => panic!("{other:?}"),
    }
    match read("job.finished", r#"{"id":42,"tenant":"t","status":"success","failure_reason":""}"#) {
        Ok(Message::JobFinished { status: Status::Success, exit_code: None, failure_reason: None, .. }) => {}
        other => panic!("{other:?}"),
    }
    let data = format!(
        r#"{{"id":9,"token_sha256":"{HASH}","type":"project","group_ids":[1],"project_ids":[2,3],"tags":["b","a","b"],
            "run_untagged":true,"protected_only":true,"paused":true,"priority":-7,"max_running":5}}"#
    );
    match read("runner.upserted", &data) {
        Ok(Message::RunnerUpserted(record)) => {
            assert_eq!((record.id, record.token_sha256.as_str(), record.kind), (9, HASH, RunnerType::Project));
            assert_eq!((&record.group_ids[..], &record.project_ids[..]), (&[1][..], &[2, 3][..]));
            assert_eq!(record.tags.iter().collect::<Vec<_>>(), ["a", "b"]);
            assert!(record.run_untagged && record.protected_only && record.paused);
            assert_eq!((record.priority, record.max_running), (-7, Some(5)));
        }
        other => panic!("{other:?}"),
    }
    match read("project.upserted", r#"{"project_id":7,"tenant":"t","group_runners":false}"#) {
        Ok(Message::ProjectUpserted {
            instance_runners: None, group_runners: Some(false), max_running: None, ..
        }) => {}
        other => panic!("{other:?}"),
    }
    match read("tenant.upserted", r#"{"tenant":"t"}"#) {
        Ok(Message::TenantUpserted { weight: 1, max_running: None, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_rejection_tells_the_job_where_it_can_be_read() {
    let job_id = |kind, data| read(kind, data).expect_err("malformed").job_id;
    assert_eq!(job_id("job.pending", r#"{"id":42,"project_id":0}"#), Some(JobId(42)));
    assert_eq!(job_id("job.new", r#"{"id":42}"#), Some(JobId(42)));
    assert_eq!(job_id("job.pending", r#"{"id":"42"}"#), None);
    assert_eq!(job_id("job.pending", r#"{"id":42"#), None);
    assert_eq!(job_id("runner.upserted", r#"{"id":42}"#), None);
}

#[test]
fn samples_cover_every_kind_and_each_is_refused_by_its_name() {
    let mut kinds = BTreeSet::new();
    for (turn, (kind, fields)) in samples::malformed_kinds(1).take(KINDS.len() * 3).enumerate() {
        let rejection = parse(&fields, &Limits::default()).expect_err(&format!("{turn}: {}", kind.field));
        assert_eq!(rejection.field, kind.field, "{turn}: {rejection}");
        assert!(!rejection.to_string().contains(SECRET), "{turn}: {rejection}");
        kinds.insert(std::ptr::from_ref(kind));
    }
    assert!(kinds.len() == KINDS.len() && KINDS.len() >= 30);
    let entries = |seed| samples::malformed_entries(seed).take(100).collect::<Vec<_>>();
    assert_eq!(entries(7), entries(7));
    assert_ne!(entries(7), entries(8));
    assert!(samples::pending_job(1, 2, "a \"tenant\"").check(&Limits::default()).is_ok());
}

#[test]
fn a_line_becomes_an_entry_that_parses_and_a_bad_line_is_named() {
    let line = format!(r#"{{"type":"runner.deleted","data":{{"id":9}},"traceparent":"{TRACEPARENT}"}}"#);
    let entry = Entry::from_line(&line).expect("sound");
    let fields = [("v", "1"), ("type", "runner.deleted"), ("data", r#"{"id":9}"#), ("traceparent", TRACEPARENT)];
    assert_eq!(entry.fields(), fields);
    assert!(entry.check(&Limits::default()).is_ok());
    for (line, field) in [
        ("", "line"),
        ("[]", "line"),
        ("{}", "line.type"),
        (r#"{"type":7,"data":{}}"#, "line.type"),
        (r#"{"type":"x"}"#, "line.data"),
        (r#"{"type":"x","data":{},"traceparent":1}"#, "line.traceparent"),
    ] {
        assert_eq!(Entry::from_line(line).expect_err(line).field, field);
    }
}

#[test]
fn an_event_reads_back_as_it_was_written() {
    let lease = "0123456789abcdef0123456789abcdef";
    let data = format!(
        r#"{{"event_id":"42.1.1763776000123.finished","at_ms":1763776000123,"id":42,"attempt":1,"lease_id":"{lease}",
            "runner_id":9,"system_id":"s_1","pod":"pod-1","status":"failed","exit_code":2,"new":{{"a":[]}}}}"#
    );
    let event = Event::parse(&[("v", "1"), ("type", "job.finished"), ("data", &data)]).expect("sound");
    assert_eq!((event.event_type, event.id, event.attempt), (EventType::JobFinished, Some(JobId(42)), Some(1)));
    assert_eq!(event.lease_id.expect("given").to_string(), lease);
    assert_eq!((event.text("status"), event.text("exit_code")), (Some("failed"), None));
    assert_eq!(event.rest.len(), 3);
    assert_eq!(Event::parse(&event.fields()), Ok(event));
    for (kind, data, field) in [
        ("job.pending", r#"{"event_id":"e","at_ms":1}"#, "type"),
        ("job.queued", r#"{"at_ms":1}"#, "data.event_id"),
        ("job.queued", r#"{"event_id":"e"}"#, "data.at_ms"),
        ("job.queued", r#"{"event_id":"e","at_ms":1,"id":"42"}"#, "data.id"),
        ("job.queued", r#"{"event_id":"e","at_ms":1,"lease_id":"x"}"#, "data.lease_id"),
    ] {
        assert_eq!(Event::parse(&[("v", "1"), ("type", kind), ("data", data)]).expect_err(data).field, field);
    }
}

/// The entries of `docs/contract.md`: what stands in its lines after `prefix`, as field-value pairs.
fn documented(prefix: &str) -> Vec<Vec<(&'static str, &'static str)>> {
    let lines = include_str!("../../docs/contract.md").lines().filter_map(|line| line.strip_prefix(prefix));
    let pairs = lines.map(|line| {
        let (head, data) = line.split_once(" data ").expect("an example has data");
        let words: Vec<_> = head.split(' ').collect();
        let mut pairs: Vec<_> = words.chunks(2).map(|pair| (pair[0], pair[1])).collect();
        let (data, rest) = data.trim_start_matches('\'').split_once('\'').unwrap_or((data, ""));
        pairs.push(("data", data));
        pairs.extend(rest.trim().split_once(' '));
        pairs
    });
    pairs.collect()
}

#[test]
fn the_documented_entries_parse_and_cover_every_type() {
    let messages = documented("redis-cli XADD jr:inbox '*' ").into_iter().map(|fields| {
        parse(&fields, &Limits::default()).unwrap_or_else(|no| panic!("{fields:?}: {no}")).message_type()
    });
    assert_eq!(messages.collect::<BTreeSet<_>>(), MessageType::ALL.iter().copied().collect());
    let events = documented("event: ")
        .into_iter()
        .map(|fields| Event::parse(&fields).unwrap_or_else(|no| panic!("{fields:?}: {no}")).event_type);
    assert_eq!(events.collect::<BTreeSet<_>>(), EventType::ALL.iter().copied().collect());
}

/// A sound job's data with every field, as values to compare with.
fn any_job() -> impl Strategy<Value = serde_json::Value> {
    let id = || 1..=ID_MAX;
    let text = |most| proptest::string::string_regex(&format!("[a-z \"\\\\é€]{{1,{most}}}")).expect("a regex");
    let project = (id(), prop::collection::vec(id(), 0..=NAMESPACES_MAX), any::<bool>(), any::<bool>());
    let needs =
        (prop::collection::vec(text(20), 0..=50), any::<bool>(), prop::collection::vec(text(20), 0..=50), -2i64..=2);
    let limits = (1..=TIMEOUT_S_MAX, 1..=ATTEMPTS_MAX, 0..=253_402_300_799_999u64);
    let payload = prop::collection::btree_map(".{0,5}", ".{0,9}", 0..4);
    (id(), text(20), id(), text(60), project, needs, limits, payload).prop_map(
        |(id, tenant, pipeline_id, affinity, project, needs, limits, payload)| {
            serde_json::json!({
                "id": id, "tenant": tenant, "pipeline_id": pipeline_id, "affinity": affinity,
                "project_id": project.0, "namespace_ids": project.1,
                "instance_runners": project.2, "group_runners": project.3,
                "tags": needs.0, "protected": needs.1, "requires": needs.2, "priority": needs.3,
                "timeout_s": limits.0, "max_attempts": limits.1, "queued_at_ms": limits.2, "payload": payload,
            })
        },
    )
}

/// The job as data again; sets as they come back, sorted.
fn given_back(job: &PendingJob) -> serde_json::Value {
    serde_json::json!({
        "id": job.id.0, "tenant": job.tenant.name(), "pipeline_id": job.pipeline_id, "affinity": &*job.affinity,
        "project_id": job.project.id.0, "namespace_ids": job.project.namespace_ids,
        "instance_runners": job.project.instance_runners, "group_runners": job.project.group_runners,
        "tags": job.capability.tags, "protected": job.capability.protected, "requires": job.capability.requires,
        "priority": job.priority.rank(), "timeout_s": job.timeout_s, "max_attempts": job.max_attempts,
        "queued_at_ms": job.queued_at_ms,
        "payload": serde_json::from_str::<serde_json::Value>(job.payload.get()).expect("JSON"),
    })
}

fn as_set(value: &mut serde_json::Value) {
    let items: BTreeSet<_> =
        value.as_array().expect("tags").iter().map(|tag| tag.as_str().expect("a tag").to_owned()).collect();
    *value = items.into_iter().collect();
}

proptest! {
    #[test]
    fn no_entry_of_arbitrary_bytes_panics(
        fields in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..8), prop::collection::vec(any::<u8>(), 0..64)), 0..6),
    ) {
        prop_assert!(parse(&fields, &Limits::default()).is_err());
        prop_assert!(Event::parse(&fields).is_err());
    }

    #[test]
    fn no_data_of_arbitrary_bytes_panics_or_passes(kind in 0..8usize, data in prop::collection::vec(any::<u8>(), 0..200)) {
        let kind = MessageType::ALL[kind].as_str().as_bytes();
        let fields: [(&[u8], &[u8]); 3] = [(b"v", b"1"), (b"type", kind), (b"data", &data)];
        let rejection = parse(&fields, &Limits::default()).expect_err("no field is given");
        prop_assert!(rejection.field.starts_with("data") && rejection.reason.len() <= 200);
    }

    #[test]
    fn a_sound_job_with_a_byte_changed_never_panics(job in any_job(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut data = job.to_string().into_bytes();
        let at = at.index(data.len());
        data[at] = byte;
        let fields: [(&[u8], &[u8]); 3] = [(b"v", b"1"), (b"type", b"job.pending"), (b"data", &data)];
        if let Err(rejection) = parse(&fields, &Limits::default()) {
            prop_assert!(rejection.field.starts_with("data") && rejection.field.len() <= 40);
        }
    }

    #[test]
    fn a_sound_job_gives_back_what_was_put_in_and_its_payload_byte_for_byte(mut data in any_job()) {
        let text = serde_json::to_string_pretty(&data).expect("JSON");
        let job = pending(&text);
        prop_assert!(text.contains(job.payload.get()));
        for name in ["tags", "requires"] {
            as_set(&mut data[name]);
        }
        prop_assert_eq!(given_back(&job), data);
    }

    #[test]
    fn unknown_fields_change_nothing(data in any_job(), name in "[a-z]{0,4}_x", value in ".{0,9}") {
        let mut more = data.clone();
        more[&name] = value.clone().into();
        let (data, more) = (data.to_string(), more.to_string());
        let fields = [("type", "job.pending"), (name.as_str(), value.as_str()), ("data", more.as_str()), ("v", "1"), ("", "")];
        match parse(&fields, &Limits::default()) {
            Ok(Message::JobPending(job)) => prop_assert_eq!(given_back(&job), given_back(&pending(&data))),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn a_sound_job_with_one_field_broken_names_that_field(mut data in any_job(), at in any::<prop::sample::Index>()) {
        let names: Vec<String> = data.as_object().expect("an object").keys().cloned().collect();
        let name = &names[at.index(names.len())];
        // A number is wrong where a string, a list, a flag or an object belongs; an object where a number does.
        data[name] = if data[name].is_number() { serde_json::json!({ SECRET: SECRET }) } else { 77_777.into() };
        let rejection = read("job.pending", &data.to_string()).expect_err(name);
        prop_assert_eq!(&rejection.field, &format!("data.{name}"));
        prop_assert!(!rejection.reason.contains(SECRET) && !rejection.reason.contains("77777"));
    }
}
