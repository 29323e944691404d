//! A runner that speaks raw messages: it says what it is told to say, and nothing else.

use std::collections::VecDeque;
use std::time::Duration;

use job_router::proto::router_message::Kind as Down;
use job_router::proto::runner_message::Kind as Up;
use job_router::proto::runner_service_client::RunnerServiceClient;
use job_router::proto::{self, RouterMessage, RunnerMessage, Status as JobStatus};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use super::pods::{LIMIT, token};

/// One session, welcome or not.
pub struct Raw {
    up: mpsc::Sender<RunnerMessage>,
    down: Streaming<RouterMessage>,
    channel: Channel,
    /// Passed over while it waited for something else.
    passed: VecDeque<Down>,
}

/// A connection.
pub async fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned()).expect("a URL").connect().await.expect("connects")
}

pub fn hello(system_id: &str, slots: u32) -> proto::Hello {
    proto::Hello { system_id: system_id.to_owned(), slots, ..proto::Hello::default() }
}

pub fn accepted(lease: &proto::Lease) -> Up {
    Up::Accepted(proto::Accepted { lease: Some(lease.clone()) })
}

pub fn declined(lease: &proto::Lease) -> Up {
    Up::Declined(proto::Declined { lease: Some(lease.clone()), reason: "busy".to_owned() })
}

pub fn finished(lease: &proto::Lease) -> Up {
    let status = JobStatus::Success.into();
    Up::Finished(proto::Finished { lease: Some(lease.clone()), status, exit_code: 0, failure_reason: String::new() })
}

pub fn beat(sequence: u64, running: &[proto::Lease]) -> Up {
    Up::Beat(proto::Beat { sequence, running: running.to_vec() })
}

pub fn slots(free: u32, assigns_seen: u64) -> Up {
    Up::Slots(proto::Slots { free, assigns_seen })
}

impl Raw {
    /// A stream with this `authorization`, on which nothing was said yet.
    pub async fn stream(channel: Channel, authorization: Option<&str>) -> Result<Self, Status> {
        let (up, queue) = mpsc::channel(1024);
        let mut request = Request::new(ReceiverStream::new(queue));
        if let Some(value) = authorization {
            request.metadata_mut().insert("authorization", value.parse().expect("ASCII"));
        }
        let down = RunnerServiceClient::new(channel.clone()).session(request).await?.into_inner();
        Ok(Self { up, down, channel, passed: VecDeque::new() })
    }

    /// Runner `id` says Hello; the answer is yet to be read.
    pub async fn greet(url: &str, id: u64, hello: proto::Hello) -> Self {
        let bearer = format!("Bearer {}", token(id));
        let raw = Self::stream(channel(url).await, Some(&bearer)).await.expect("a stream");
        raw.say(Up::Hello(hello)).await;
        raw
    }

    /// Runner `id` says Hello and is welcome.
    pub async fn open(url: &str, id: u64, hello: proto::Hello) -> (Self, proto::Welcome) {
        let mut raw = Self::greet(url, id, hello).await;
        match raw.next().await {
            Ok(Some(Down::Welcome(welcome))) => (raw, welcome),
            other => panic!("not welcome: {other:?}"),
        }
    }

    /// Waits until the router has noticed the end of all streams but those of `staying` sessions: until `max_sessions` less
    /// `staying` more have room at once.
    pub async fn until_others_have_left(url: &str, max_sessions: usize, staying: usize) {
        let channel = channel(url).await;
        let all = async {
            loop {
                let streams = (staying..max_sessions).map(|_| Self::stream(channel.clone(), Some("Bearer nobody")));
                if futures::future::join_all(streams).await.iter().all(Result::is_ok) {
                    return;
                }
            }
        };
        tokio::time::timeout(LIMIT, all).await.expect("they leave in time");
    }

    /// Waits until the router has read all that was said on this connection so far: until it has answered a call that came after.
    pub async fn until_heard(&self) {
        let heard = async {
            while self.up.capacity() < self.up.max_capacity() {
                tokio::task::yield_now().await;
            }
            let mut grpc = tonic::client::Grpc::new(self.channel.clone());
            grpc.ready().await.expect("a connection");
            let codec = tonic_prost::ProstCodec::<proto::Hello, proto::Hello>::default();
            let path = tonic::codegen::http::uri::PathAndQuery::from_static("/no_such/Call");
            let answer = grpc.unary(Request::new(proto::Hello::default()), path, codec).await;
            assert_eq!(answer.expect_err("there is none").code(), tonic::Code::Unimplemented);
        };
        tokio::time::timeout(LIMIT, heard).await.expect("the connection is driven");
    }

    /// Says something; a session that has ended does not hear it.
    pub async fn say(&self, kind: Up) {
        let _ = self.up.send(RunnerMessage { kind: Some(kind) }).await;
    }

    /// The next message, or how the session ended.
    pub async fn next(&mut self) -> Result<Option<Down>, Status> {
        self.next_within(LIMIT).await
    }

    /// The same, where it may take longer.
    pub async fn next_within(&mut self, limit: Duration) -> Result<Option<Down>, Status> {
        let message = tokio::time::timeout(limit, self.down.message()).await.expect("a message in time")?;
        Ok(message.map(|message| message.kind.expect("a kind")))
    }

    /// The next Assign.
    pub async fn assign(&mut self) -> proto::Assign {
        self.until(|kind| if let Down::Assign(assign) = kind { Some(assign.clone()) } else { None }).await
    }

    /// The next message of a kind. What comes before it is kept for the next call.
    pub async fn until<T>(&mut self, mut pick: impl FnMut(&Down) -> Option<T>) -> T {
        if let Some(place) = self.passed.iter().position(|kind| pick(kind).is_some()) {
            let kind = self.passed.remove(place).expect("just found");
            return pick(&kind).expect("just picked");
        }
        loop {
            let kind = self.next().await.expect("no error").expect("no end");
            match pick(&kind) {
                Some(found) => return found,
                None => self.passed.push_back(kind),
            }
        }
    }

    /// The status with which the session ends; what comes before it is passed over.
    pub async fn end(&mut self) -> Result<(), Status> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    /// Takes an assigned job as far as its Start.
    pub async fn accept(&mut self, assign: &proto::Assign) -> proto::Lease {
        let lease = assign.lease.clone().expect("a lease");
        self.say(accepted(&lease)).await;
        self.until(|kind| matches!(&kind, Down::Start(start) if start.lease.as_ref() == Some(&lease)).then_some(()))
            .await;
        lease
    }

    /// Everything the router has said, and nobody has asked for, by the time it answers a beat of no jobs.
    pub async fn so_far(&mut self, sequence: u64) -> Vec<Down> {
        self.say(beat(sequence, &[])).await;
        let mut said = Vec::from(std::mem::take(&mut self.passed));
        loop {
            match self.next().await.expect("no error").expect("no end") {
                Down::BeatAck(ack) if ack.sequence == sequence => return said,
                kind => said.push(kind),
            }
        }
    }
}
