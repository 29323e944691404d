//! What is refused: one `message.rejected` event for each entry, so that Rails knows.

use futures::future::join_all;
use serde_json::json;
use tracing::{error, warn};

use super::{FanOut, Kept};
use crate::clock::unix_ms;
use crate::contract::{EventType, Rejection};
use crate::job::JobId;
use crate::stages::Undone;
use crate::telemetry::labels::Rejected;
use crate::telemetry::metrics;

impl FanOut {
    /// One `message.rejected` each, on the first partition's stream: a bad message may name no tenant.
    pub(super) async fn reject_all(&self, rejected: &[(String, Rejection)]) -> Result<Kept, Undone> {
        let told = join_all(rejected.iter().map(|(entry_id, rejection)| async move {
            warn!(entry_id, field = %rejection.field, reason = %rejection.reason, "message rejected");
            let data = json!({
                "event_id": format!("{entry_id}.rejected"),
                "at_ms": unix_ms(),
                "id": rejection.job_id.map(|id| id.0),
                "pod": self.pod.name.as_str(),
                "entry_id": entry_id,
                "field": rejection.field,
                "reason": rejection.reason,
                "data_start": rejection.data_start(),
            });
            self.tell_rejected(entry_id, data, class(rejection)).await
        }));
        let mut kept = Kept::new();
        for of_one in told.await {
            kept.extend(of_one?);
        }
        Ok(kept)
    }

    /// A message that its script fails on is a bug of ours, or somebody else's writing in our keys. It must not stop what comes
    /// behind it, and Rails must not believe that it was applied.
    pub(super) async fn reject_not_applied(&self, entry_id: &str, job_id: Option<JobId>) -> Result<Kept, Undone> {
        let data = json!({
            "event_id": format!("{entry_id}.rejected"),
            "at_ms": unix_ms(),
            "id": job_id.map(|id| id.0),
            "pod": self.pod.name.as_str(),
            "entry_id": entry_id,
            "field": "data",
            "reason": "the router could not apply this message; its log says why",
            "data_start": "",
        });
        self.tell_rejected(entry_id, data, Rejected::NotApplied).await
    }

    async fn tell_rejected(
        &self,
        entry_id: &str,
        mut data: serde_json::Value,
        class: Rejected,
    ) -> Result<Kept, Undone> {
        if data["id"].is_null() {
            data.as_object_mut().expect("made as an object").remove("id");
        }
        let data = data.to_string();
        let partition = &self.pod.partitions[0];
        let call = || partition.event(EventType::MessageRejected, data.clone());
        match self.pod.until_done("event", call).await {
            Err(Undone::Failed(_)) => {
                error!(entry_id, "message neither applied nor rejected; tried again when it is claimed");
                Ok(vec![entry_id.to_owned()])
            }
            told => {
                told?;
                metrics().messages_rejected_total.of(class).increment(1);
                Ok(Kept::new())
            }
        }
    }
}

fn class(rejection: &Rejection) -> Rejected {
    match rejection.field.as_str() {
        "v" => Rejected::UnknownVersion,
        "type" => Rejected::UnknownType,
        "data" => Rejected::NotJson,
        _ => Rejected::BadField,
    }
}
