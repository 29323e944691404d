//! The publisher's side: a stream entry from a line of JSON, as `job-router publish` and the benchmarks take it.

use serde_json::value::RawValue;

use super::reader::Object;
use super::rejection::Rejection;
use super::{Limits, Message, VERSION, parse};

/// An entry to append to the inbox. Its envelope is sound; its data need not be: [`check`](Self::check) says.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The value of `type`.
    pub kind: String,
    /// The value of `data`: JSON.
    pub data: Box<RawValue>,
    /// The value of `traceparent`; empty: the entry has none.
    pub traceparent: String,
}

// === impl Entry ===

impl Entry {
    /// An entry from `{"type": "job.pending", "data": {...}}`, with `"traceparent"` where wanted.
    ///
    /// Errors: the line is not such an object. The fields are then named `line`, `line.type`, `line.data` and
    /// `line.traceparent`.
    pub fn from_line(line: &str) -> Result<Self, Rejection> {
        let read = || {
            let line = Object::read("line", line)?;
            Ok(Self {
                kind: line.required("type", |kind| kind.string(1..=64))?.into_owned(),
                data: line.required("data", |data| Ok(data.raw().to_owned()))?,
                traceparent: line
                    .optional("traceparent", |text| text.string(0..=255))?
                    .unwrap_or_default()
                    .into_owned(),
            })
        };
        read().map_err(|fault| Rejection::new(fault, None, b""))
    }

    /// What to give to `XADD` after the id.
    pub fn fields(&self) -> Vec<(&'static str, &str)> {
        let mut fields = vec![("v", VERSION), ("type", self.kind.as_str()), ("data", self.data.get())];
        if !self.traceparent.is_empty() {
            fields.push(("traceparent", &self.traceparent));
        }
        fields
    }

    /// What the router will make of this entry.
    pub fn check(&self, limits: &Limits) -> Result<Message, Rejection> {
        parse(&self.fields(), limits)
    }
}
