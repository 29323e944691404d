//! The admin service: questions of people and tools, on the admin port. Reads only.
//!
//! Nobody logs in there, so what a caller may use up is bounded: a small message, a short queue, a deadline.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status};

use crate::explain::Explanation;
use crate::job::{JobId, Tenant};
use crate::proto::admin_service_server::{AdminService, AdminServiceServer};
use crate::proto::{ExplainRequest, ExplainResponse};

/// The largest question: an id and a tenant.
const QUESTION_MAX_BYTES: usize = 1024;
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// The greatest id of a job: Rails keeps ids in a signed `bigint`.
const ID_MAX: u64 = i64::MAX as u64;

/// Why is this job where it is?
#[derive(Debug)]
pub struct Question {
    /// The job.
    pub id: JobId,
    /// Its tenant, where known.
    pub tenant: Option<Tenant>,
    /// Where to put the answer; dropped: there is none, Redis is away.
    pub answer: oneshot::Sender<Explanation>,
}

/// The service of `admin.proto`.
#[derive(Debug)]
pub struct Desk {
    questions: mpsc::Sender<Question>,
}

/// The service, whose questions go to whoever answers them, and where it is served: its path begins with this.
pub fn admin_service(questions: mpsc::Sender<Question>) -> (&'static str, AdminServiceServer<Desk>) {
    let service = AdminServiceServer::new(Desk { questions }).max_decoding_message_size(QUESTION_MAX_BYTES);
    ("/job_router.v1.AdminService", service)
}

#[tonic::async_trait]
impl AdminService for Desk {
    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        let ExplainRequest { id, tenant } = request.into_inner();
        if !(1..=ID_MAX).contains(&id) {
            return Err(Status::invalid_argument(format!("id: must be 1 to {ID_MAX}, is {id}")));
        }
        let refused = |must| Status::invalid_argument(format!("tenant: {must}; is text of {} bytes", tenant.len()));
        let tenant = (!tenant.is_empty()).then(|| Tenant::new(&tenant).map_err(refused)).transpose()?;
        let (answer, answered) = oneshot::channel();
        let asked = self.questions.try_send(Question { id: JobId(id), tenant, answer });
        asked.map_err(|_| Status::resource_exhausted("too many questions at once; retry with back-off"))?;
        let told = tokio::time::timeout(ANSWER_MAX, answered).await;
        let told = told.map_err(|_| Status::deadline_exceeded("no answer within 10 s"))?;
        let told = told.map_err(|_| Status::unavailable("the job queue cannot be reached; retry with back-off"))?;
        Ok(Response::new(ExplainResponse {
            state: told.state.to_owned(),
            reason: told.why.reason.as_str().to_owned(),
            summary: told.why.summary.clone(),
            stuck: told.stuck,
            json: told.to_json(),
            text: told.to_text(),
        }))
    }
}
