//! The generated messages of `proto/`; documented there.
#![allow(missing_docs, clippy::all, unreachable_pub)]

tonic::include_proto!("job_router.v1");

/// GitLab's own names.
pub mod gitlab {
    tonic::include_proto!("gitlab.agent.job_router.rpc");
}
