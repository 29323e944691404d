//! explain: answers why a job is where it is.
//!
//! In: questions from the admin service. Out: answers. Reads only; a question that Redis does not answer at once has no answer,
//! and its asker is told to ask again.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tracing::warn;

use super::Pod;
use crate::grpc::Question;
use crate::redis::{Explainer, ExplainerKeys};

/// How many questions are answered at a time: each may read the whole registry.
const AT_ONCE: usize = 2;

/// Answers until the pod has stopped.
pub async fn run(pod: Pod, mut questions: mpsc::Receiver<Question>) {
    let keys = ExplainerKeys {
        keys: pod.keys.clone(),
        inbox_stream: pod.config.inbox_stream.clone(),
        lease: pod.config.lease,
        affinity_wait: pod.config.affinity_wait,
    };
    let explainer = Explainer::new(&pod.redis, keys);
    let mut answering = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = pod.stopped.cancelled() => return,
            Some(()) = answering.next() => {}
            Some(question) = questions.recv(), if answering.len() < AT_ONCE => {
                answering.push(answer(&explainer, question));
            }
        }
    }
}

async fn answer(explainer: &Explainer, question: Question) {
    let Question { id, tenant, mut answer } = question;
    let told = tokio::select! {
        told = explainer.explain(id, tenant.as_ref()) => told,
        () = answer.closed() => return, // nobody waits any more
    };
    match told {
        Ok(told) => drop(answer.send(told)),
        Err(error) => warn!(job_id = %id, %error, "job not explained"),
    }
}
