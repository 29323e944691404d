//! A day that was: one job a line.
//!
//! Arrives: lines of JSON, in any order, `{"tenant": "acme", "project_id": 7, "queued_at_ms": 1767225600000,
//! "duration_ms": 90000, "priority": 0}`. Queue times are in ms of any clock; the day begins at the first. `priority`
//! may be absent; fields that are not known are passed over. Leaves: a [`Day`]. A line that is wrong is refused, and
//! changes nothing.

use super::{Day, DayBuilder};
use crate::contract::Fault;
use crate::contract::reader::Object;
use crate::job::{Priority, ProjectId, Tenant};

/// The last queue time: whole numbers up to here are the same to every JSON parser.
const QUEUED_AT_MAX_MS: i64 = 1 << 53;
/// 31 days: the longest timeout a job may have in GitLab is a month.
const DURATION_MAX_MS: i64 = 31 * 86_400_000;

/// A recording that is being read.
#[derive(Debug, Default)]
pub struct Recording(DayBuilder);

/// Why a line was refused: the field, what it must be, and the shape that it has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct BadLine {
    /// `job.` and the field's name; `job` where the line is no object.
    pub field: String,
    /// For people.
    pub reason: String,
}

// === impl Recording ===

impl Recording {
    /// Adds the job of a line; an empty line has none.
    pub fn add(&mut self, line: &[u8]) -> Result<(), BadLine> {
        let line = line.trim_ascii();
        if line.is_empty() {
            return Ok(());
        }
        let line = std::str::from_utf8(line)
            .map_err(|error| BadLine::new("job", format!("no UTF-8 at byte {}", error.valid_up_to() + 1)))?;
        let object = Object::read("job", line)?;
        let tenant = object.required("tenant", |value| value.parsed(Tenant::new))?;
        let project = ProjectId(object.required("project_id", |value| value.id())?);
        let queued_at_ms = object.required("queued_at_ms", |value| value.whole(0..=QUEUED_AT_MAX_MS))?.unsigned_abs();
        let duration_ms = object.required("duration_ms", |value| value.whole(0..=DURATION_MAX_MS))?.unsigned_abs();
        let priority = object.optional("priority", |value| value.whole(-2..=2))?.unwrap_or_default();
        let priority = Priority::new(priority).expect("it is in range");
        let added = self.0.add(&tenant, project, priority, queued_at_ms, duration_ms);
        added.map_err(|error| BadLine::new("job.tenant", error.to_string()))
    }

    /// The day.
    pub fn day(self) -> Day {
        self.0.build(None)
    }
}

// === impl BadLine ===

impl BadLine {
    fn new(field: &str, reason: String) -> Self {
        Self { field: field.into(), reason }
    }
}

impl From<Fault> for BadLine {
    fn from(fault: Fault) -> Self {
        Self { field: fault.field, reason: fault.reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_job_and_what_is_not_known_is_passed_over() {
        let mut recording = Recording::default();
        let lines = [
            r#"{"tenant":"b","project_id":2,"queued_at_ms":1700000000500,"duration_ms":7,"priority":-1}"#,
            "",
            r#" {"tenant":"a","project_id":1,"queued_at_ms":1700000000000,"duration_ms":0,"runner":"x"} "#,
        ];
        lines.iter().for_each(|line| recording.add(line.as_bytes()).expect("a good line"));
        let day = recording.day();
        let job = |at: usize| (day.tenants()[day.tenant_of(at)].tenant.name(), day.jobs()[at].queued_at_ms);
        assert_eq!([job(0), job(1)], [("a", 0), ("b", 500)]);
        assert_eq!((day.jobs()[1].duration_ms, day.jobs()[1].priority.rank()), (7, -1));
    }

    #[test]
    fn a_bad_line_is_told_by_field_and_shape_and_changes_nothing() {
        let mut recording = Recording::default();
        let good = r#"{"tenant":"a","project_id":1,"queued_at_ms":5,"duration_ms":9}"#;
        recording.add(good.as_bytes()).expect("a good line");
        let mut refused = |from: &str, to: &str| {
            let line = good.replace(from, to);
            recording.add(line.as_bytes()).expect_err("a bad line").to_string()
        };
        assert_eq!(
            refused("9", "\"9\""),
            "job.duration_ms: must be a whole number from 0 to 2678400000, is a string of 1 bytes"
        );
        assert_eq!(refused(",\"queued_at_ms\":5", ""), "job.queued_at_ms: is required");
        assert!(refused(":1,", ":0,").starts_with("job.project_id: must be a whole number from 1 to "));
        assert!(refused("\"a\"", "7").starts_with("job.tenant: must be a string, is "));
        assert!(refused("9", "9,\"priority\":3").starts_with("job.priority: must be a whole number from -2 to 2"));
        assert_eq!(refused("\"a\"", "\"b\""), "job.tenant: must be that of the project's other jobs");
        assert!(refused("{", "[").starts_with("job: must be JSON"));
        assert_eq!(recording.add(b"{\"\xff\"}").expect_err("a bad line").to_string(), "job: no UTF-8 at byte 3");
        assert_eq!(recording.day().jobs().len(), 1);
    }
}
