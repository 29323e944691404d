//! Whole sessions over real gRPC, against a router that the test plays by hand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status as GrpcStatus, Streaming};

use super::*;
use crate::job::{JobId, Lease, LeaseId};
use crate::proto::router_message::Kind as Down;
use crate::proto::runner_message::Kind as Up;
use crate::proto::runner_service_server::{RunnerService, RunnerServiceServer};
use crate::proto::{
    self, Assign, BeatAck, Cancel, Drain, Finished, FinishedAck, Hello, Resumed, Revoked, RouterMessage, RunnerMessage,
    Slots, Start, Welcome,
};

/// Generous: the machine may be busy; a test that waits this long has failed.
const LIMIT: Duration = Duration::from_secs(20);
const LEASE_MS: u32 = 60_000;

// === The router, played by hand ===

/// Hands each call to the test, which answers it.
struct Script {
    calls: mpsc::Sender<Call>,
}

struct Call {
    token: String,
    inbound: Streaming<RunnerMessage>,
    answer: oneshot::Sender<Result<UnboundedReceiver<Result<RouterMessage, GrpcStatus>>, GrpcStatus>>,
}

#[tonic::async_trait]
impl RunnerService for Script {
    type SessionStream = UnboundedReceiver<Result<RouterMessage, GrpcStatus>>;

    async fn session(
        &self,
        request: Request<Streaming<RunnerMessage>>,
    ) -> Result<Response<Self::SessionStream>, GrpcStatus> {
        let token = request.metadata().get("authorization").expect("a token").to_str().expect("ASCII").to_owned();
        let (answer, answered) = oneshot::channel();
        self.calls.send(Call { token, inbound: request.into_inner(), answer }).await.expect("the test is there");
        let outbound = answered.await.expect("the test answers")?;
        Ok(Response::new(outbound))
    }
}

struct Router {
    url: String,
    calls: mpsc::Receiver<Call>,
    server: JoinHandle<()>,
}

/// One call that the test has let in.
struct Peer {
    inbound: Streaming<RunnerMessage>,
    sender: UnboundedSender<Result<RouterMessage, GrpcStatus>>,
    hello: Hello,
    /// Whether beats are acknowledged while waiting for other messages.
    answer_beats: bool,
}

impl Router {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (sender, calls) = mpsc::channel(8);
        let service = RunnerServiceServer::new(Script { calls: sender });
        let serve = tonic::transport::Server::builder().add_service(service);
        let server = tokio::spawn(async move {
            serve.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("serves");
        });
        Self { url, calls, server }
    }

    async fn call(&mut self) -> Call {
        timeout(LIMIT, self.calls.recv()).await.expect("a call in time").expect("served")
    }

    async fn refuse(&mut self, status: GrpcStatus) {
        self.call().await.answer.send(Err(status)).expect("waits");
    }

    /// Lets the next session in, up to its Hello.
    async fn meet(&mut self) -> Peer {
        let Call { token, mut inbound, answer } = self.call().await;
        assert_eq!(token, "Bearer secret-token");
        let (sender, outbound) = unbounded();
        answer.send(Ok(outbound)).expect("waits");
        let first = timeout(LIMIT, inbound.message()).await.expect("in time").expect("no error").expect("a message");
        let Some(Up::Hello(hello)) = first.kind else { panic!("not a Hello: {first:?}") };
        Peer { inbound, sender, hello, answer_beats: true }
    }

    /// Lets the next session in and resumes all it lists.
    async fn welcome(&mut self) -> Peer {
        let peer = self.meet().await;
        let resumed =
            peer.hello.running.iter().cloned().map(|lease| Resumed { lease: Some(lease), ..Resumed::default() });
        let resumed = resumed.collect();
        peer.send(Down::Welcome(Welcome {
            lease_ms: LEASE_MS,
            beat_interval_ms: 10_000,
            resumed,
            ..Welcome::default()
        }))
        .await;
        peer
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Peer {
    async fn send(&self, kind: Down) {
        self.sender.unbounded_send(Ok(RouterMessage { kind: Some(kind) })).expect("the session is open");
    }

    /// The next message but beats.
    async fn next(&mut self) -> Option<Up> {
        loop {
            let message = timeout(LIMIT, self.inbound.message()).await.expect("a message in time");
            match message.ok()??.kind.expect("a kind") {
                Up::Beat(beat) if self.answer_beats => {
                    self.send(Down::BeatAck(BeatAck { sequence: beat.sequence, gone: vec![] })).await;
                }
                Up::Beat(_) => {}
                other => return Some(other),
            }
        }
    }

    /// Pushes a job up to its Accepted.
    async fn assign(&mut self, job_id: u64) -> Lease {
        let lease = Lease { job_id: JobId(job_id), lease_id: LeaseId::random(0) };
        let assign = Assign { lease: on_wire(&lease), payload: "{}".into(), timeout_ms: 60_000, ..Assign::default() };
        self.send(Down::Assign(assign)).await;
        let answer = self.next().await;
        assert!(matches!(&answer, Some(Up::Accepted(m)) if m.lease == on_wire(&lease)), "{answer:?}");
        lease
    }

    async fn run(&mut self, job_id: u64) -> Lease {
        let lease = self.assign(job_id).await;
        self.send(Down::Start(Start { lease: on_wire(&lease) })).await;
        lease
    }

    async fn finished(&mut self) -> Finished {
        loop {
            match self.next().await {
                Some(Up::Finished(finished)) => return finished,
                Some(Up::Slots(_) | Up::Goodbye(_)) => {}
                other => panic!("not a Finished: {other:?}"),
            }
        }
    }

    async fn slots(&mut self) -> Slots {
        let message = self.next().await;
        let Some(Up::Slots(slots)) = message else { panic!("not Slots: {message:?}") };
        slots
    }

    async fn acknowledge(&self, lease: &Lease) {
        self.send(Down::FinishedAck(FinishedAck { lease: on_wire(lease), recorded: true })).await;
    }

    /// Waits until the runner has closed the session, then closes the router's half.
    async fn closed(mut self) {
        while self.next().await.is_some() {}
    }
}

fn on_wire(lease: &Lease) -> Option<proto::Lease> {
    Some(proto::Lease { job_id: lease.job_id.0, lease_id: lease.lease_id.to_string() })
}

// === The runner under test ===

/// Jobs that end when the test says so.
#[derive(Clone, Default)]
struct Puppet {
    strings: Arc<Mutex<HashMap<u64, oneshot::Sender<Outcome>>>>,
}

impl Executor for Puppet {
    async fn run(&self, job: JobContext) -> Outcome {
        let job_id = job.assignment.lease.job_id.0;
        let (end, ended) = oneshot::channel();
        self.strings.lock().unwrap().insert(job_id, end);
        tokio::select! {
            outcome = ended => outcome.expect("the test ends it"),
            () = job.cancel.cancelled() => {
                self.strings.lock().unwrap().remove(&job_id);
                Outcome::canceled()
            }
        }
    }
}

impl Puppet {
    fn runs(&self, job_id: u64) -> bool {
        self.strings.lock().unwrap().contains_key(&job_id)
    }

    async fn started(&self, job_id: u64) {
        wait_for("the job runs", || self.runs(job_id)).await;
    }

    async fn end(&self, job_id: u64) {
        self.started(job_id).await;
        let end = self.strings.lock().unwrap().remove(&job_id);
        end.expect("it runs").send(Outcome::success()).expect("it waits");
    }
}

async fn wait_for(what: &str, done: impl Fn() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < limit, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

struct Runner {
    puppet: Puppet,
    shutdown: Shutdown,
    task: JoinHandle<Result<Summary, ClientError>>,
}

impl Runner {
    fn start(router: &Router, slots: u32) -> Self {
        let (puppet, shutdown) = (Puppet::default(), Shutdown::default());
        let task = tokio::spawn(run(options(router, slots), puppet.clone(), shutdown.clone()));
        Self { puppet, shutdown, task }
    }

    async fn end(self) -> Result<Summary, ClientError> {
        timeout(LIMIT, self.task).await.expect("the runner ends in time").expect("no panic")
    }
}

fn options(router: &Router, slots: u32) -> Options {
    let name = "test-1".parse().expect("a name");
    Options::new(router.url.clone(), "secret-token".into(), name, slots)
}

// === The tests ===

#[tokio::test]
async fn a_job_is_accepted_started_finished_and_its_slot_told() {
    let mut router = Router::start().await;
    let runner = Runner::start(&router, 2);
    let mut peer = router.welcome().await;
    assert_eq!((peer.hello.slots, peer.hello.system_id.as_str()), (2, "test-1"));
    let lease = peer.run(7).await;
    runner.puppet.end(7).await;
    let finished = peer.finished().await;
    assert_eq!((finished.lease.clone(), finished.status()), (on_wire(&lease), proto::Status::Success));
    assert_eq!(peer.slots().await, Slots { free: 2, assigns_seen: 1 });
    peer.acknowledge(&lease).await;
    runner.shutdown.stop.cancel();
    peer.closed().await;
    let summary = runner.end().await.expect("a clean end");
    assert_eq!((summary.succeeded, summary.unacknowledged), (1, 0));
}

#[tokio::test]
async fn of_very_many_messages_at_once_none_is_passed_over() {
    const JOBS: u64 = 3_000;
    let mut router = Router::start().await;
    let runner = Runner::start(&router, JOBS as u32);
    let mut peer = router.welcome().await;
    for job_id in 1..=JOBS {
        // Short, so that very many are in one frame; without a payload, so that each is declined.
        let lease = on_wire(&Lease { job_id: JobId(job_id), lease_id: LeaseId::random(0) });
        peer.send(Down::Assign(Assign { lease, ..Assign::default() })).await;
    }
    for job_id in 1..=JOBS {
        let answer = loop {
            match peer.next().await {
                Some(Up::Slots(_)) => {}
                answer => break answer,
            }
        };
        let is_of_job = |lease: &Option<proto::Lease>| lease.as_ref().is_some_and(|lease| lease.job_id == job_id);
        assert!(matches!(&answer, Some(Up::Declined(m)) if is_of_job(&m.lease)), "{job_id}: {answer:?}");
    }
    runner.shutdown.kill.cancel();
    drop(peer);
    let _ = runner.end().await;
}

#[tokio::test]
async fn an_outcome_whose_acknowledgement_was_lost_is_repeated_on_the_next_session() {
    let mut router = Router::start().await;
    let runner = Runner::start(&router, 1);
    let mut peer = router.welcome().await;
    let lease = peer.run(1).await;
    runner.puppet.end(1).await;
    peer.finished().await;
    drop(peer);
    for _ in 0..2 {
        let mut peer = router.welcome().await;
        assert_eq!(peer.hello.slots, 1, "its slot is free all the same");
        assert_eq!(peer.finished().await.lease, on_wire(&lease));
        // Lost once more.
    }
    let mut peer = router.welcome().await;
    peer.finished().await;
    peer.acknowledge(&lease).await;
    runner.shutdown.stop.cancel();
    peer.closed().await;
    assert_eq!(runner.end().await.expect("a clean end").unacknowledged, 0);
}

#[tokio::test]
async fn an_outcome_whose_acknowledgement_was_lost_is_repeated_on_the_same_session() {
    let mut router = Router::start().await;
    let runner = Runner::start(&router, 1);
    let mut peer = router.meet().await;
    peer.send(Down::Welcome(Welcome { lease_ms: 2_000, beat_interval_ms: 50, ..Welcome::default() })).await;
    let lease = peer.run(1).await;
    runner.puppet.end(1).await;
    for time in 1..=3 {
        let finished = timeout(LIMIT, peer.finished()).await.unwrap_or_else(|_| panic!("not said, time {time}"));
        assert_eq!(finished.lease, on_wire(&lease));
    }
    peer.acknowledge(&lease).await;
    runner.shutdown.stop.cancel();
    peer.closed().await;
    let summary = runner.end().await.expect("a clean end");
    assert_eq!((summary.sessions, summary.succeeded, summary.unacknowledged), (1, 1, 0));
}

#[tokio::test]
async fn a_running_job_outlives_the_connection_and_is_resumed() {
    let mut router = Router::start().await;
    let runner = Runner::start(&router, 2);
    let mut peer = router.welcome().await;
    let (one, two) = (peer.run(1).await, peer.run(2).await);
    runner.puppet.started(1).await;
    runner.puppet.started(2).await;
    drop(peer);
    let peer = router.meet().await;
    assert_eq!((peer.hello.slots, peer.hello.running.len()), (0, 2));
    let resumed = vec![Resumed { lease: on_wire(&one), ..Resumed::default() }];
    let welcome = Welcome { lease_ms: LEASE_MS, beat_interval_ms: 10_000, resumed, ..Welcome::default() };
    peer.send(Down::Welcome(welcome)).await;
    let puppet = runner.puppet.clone();
    wait_for("the job that was not resumed is stopped", || !puppet.runs(2)).await;
    runner.puppet.end(1).await;
    let mut peer = peer;
    assert_eq!(peer.finished().await.lease, on_wire(&one));
    peer.acknowledge(&one).await;
    runner.shutdown.stop.cancel();
    peer.closed().await;
    assert_eq!(runner.end().await.expect("a clean end").lost, 1, "{two:?}");
}

#[tokio::test]
async fn after_drain_the_old_session_serves_until_the_new_one_is_welcome() {
    let mut router = Router::start().await;
    let runner = Runner::start(&router, 2);
    let mut old = router.welcome().await;
    let lease = old.run(1).await;
    runner.puppet.started(1).await;
    old.send(Down::Drain(Drain { reconnect_after_ms: 10 })).await;
    assert_eq!(old.slots().await.free, 0);
    let new = router.meet().await;
    assert_eq!((new.hello.slots, new.hello.running.len()), (1, 1));
    // The new pod hesitates: the outcome goes over the old one.
    runner.puppet.end(1).await;
    assert_eq!(old.finished().await.lease, on_wire(&lease));
    let resumed = vec![Resumed { lease: on_wire(&lease), ..Resumed::default() }];
    let welcome = Welcome { lease_ms: LEASE_MS, beat_interval_ms: 10_000, resumed, ..Welcome::default() };
    new.send(Down::Welcome(welcome)).await;
    old.closed().await;
    let mut new = new;
    assert_eq!(new.finished().await.lease, on_wire(&lease), "its acknowledgement may have been lost");
    assert_eq!(new.slots().await, Slots { free: 2, assigns_seen: 0 });
    runner.shutdown.kill.cancel();
    new.acknowledge(&lease).await;
    new.closed().await;
    runner.end().await.expect("a clean end");
}

#[tokio::test]
async fn a_canceled_job_reports_and_a_revoked_one_does_not() {
    let mut router = Router::start().await;
    let runner = Runner::start(&router, 2);
    let mut peer = router.welcome().await;
    let (canceled, revoked) = (peer.run(1).await, peer.run(2).await);
    runner.puppet.started(1).await;
    runner.puppet.started(2).await;
    peer.send(Down::Revoked(Revoked { lease: on_wire(&revoked), reason: "expired".to_owned() })).await;
    assert_eq!(peer.slots().await, Slots { free: 1, assigns_seen: 2 });
    peer.send(Down::Cancel(Cancel { lease: on_wire(&canceled), grace_ms: 10_000, reason: String::new() })).await;
    let finished = peer.finished().await;
    assert_eq!((finished.lease.clone(), finished.status()), (on_wire(&canceled), proto::Status::Canceled));
    assert_eq!(peer.slots().await, Slots { free: 2, assigns_seen: 2 });
}

#[tokio::test]
async fn a_job_whose_beats_go_unanswered_is_dead_before_its_lease_ends() {
    let mut router = Router::start().await;
    let runner = Runner::start(&router, 1);
    let mut peer = router.meet().await;
    peer.answer_beats = false;
    peer.send(Down::Welcome(Welcome { lease_ms: 400, beat_interval_ms: 50, ..Welcome::default() })).await;
    let before = Instant::now();
    peer.run(1).await;
    runner.puppet.started(1).await;
    assert_eq!(peer.slots().await, Slots { free: 1, assigns_seen: 1 }, "and no Finished");
    let lived = before.elapsed();
    assert!(lived >= Duration::from_millis(300), "not before the fence: {lived:?}");
    assert!(!runner.puppet.runs(1));
    runner.shutdown.kill.cancel();
    peer.closed().await;
    assert_eq!(runner.end().await.expect("a clean end").fenced, 1);
}

#[tokio::test]
async fn answered_beats_keep_a_job_alive_past_many_leases() {
    let mut router = Router::start().await;
    let runner = Runner::start(&router, 1);
    let mut peer = router.meet().await;
    peer.send(Down::Welcome(Welcome { lease_ms: 2_000, beat_interval_ms: 100, ..Welcome::default() })).await;
    peer.run(1).await;
    runner.puppet.started(1).await;
    let puppet = runner.puppet.clone();
    let later = async {
        tokio::time::sleep(Duration::from_millis(3_000)).await;
        puppet.end(1).await;
    };
    let (finished, ()) = tokio::join!(peer.finished(), later);
    assert_eq!(finished.status(), proto::Status::Success);
}

#[tokio::test]
async fn an_unknown_token_is_tried_again_and_a_deleted_runner_ends() {
    let mut router = Router::start().await;
    let runner = Runner::start(&router, 1);
    router.refuse(GrpcStatus::unauthenticated("unknown token")).await;
    router.refuse(GrpcStatus::unavailable("draining")).await;
    router.refuse(GrpcStatus::permission_denied("runner deleted")).await;
    let error = runner.end().await.expect_err("refused");
    assert!(matches!(&error, ClientError::Refused(text) if text.contains("runner deleted")), "{error}");
    assert!(!error.to_string().contains("secret-token"));
}

#[tokio::test]
async fn at_shutdown_unstarted_jobs_go_back_at_once_and_running_ones_may_end() {
    let mut router = Router::start().await;
    let runner = Runner::start(&router, 2);
    let mut peer = router.welcome().await;
    let running = peer.run(1).await;
    runner.puppet.started(1).await;
    let waiting = peer.assign(2).await;
    runner.shutdown.stop.cancel();
    let declined = peer.next().await;
    assert!(matches!(&declined, Some(Up::Declined(m)) if m.lease == on_wire(&waiting)), "{declined:?}");
    assert!(matches!(peer.next().await, Some(Up::Goodbye(_))));
    peer.send(Down::Revoked(Revoked { lease: on_wire(&waiting), reason: "declined".to_owned() })).await;
    runner.puppet.end(1).await;
    assert_eq!(peer.finished().await.status(), proto::Status::Success);
    peer.acknowledge(&running).await;
    peer.closed().await;
    assert_eq!(runner.end().await.expect("a clean end").succeeded, 1);
}

#[tokio::test]
async fn a_start_that_crosses_a_kill_runs_nothing_and_is_answered_with_a_failure() {
    let mut router = Router::start().await;
    let runner = Runner::start(&router, 1);
    let mut peer = router.welcome().await;
    let lease = peer.assign(1).await;
    runner.shutdown.kill.cancel();
    assert!(matches!(peer.next().await, Some(Up::Declined(_))));
    peer.send(Down::Start(Start { lease: on_wire(&lease) })).await;
    let finished = peer.finished().await;
    assert_eq!((finished.status(), finished.failure_reason.as_str()), (proto::Status::Failed, "runner_system_failure"));
    assert!(!runner.puppet.runs(1));
    peer.acknowledge(&lease).await;
    peer.closed().await;
    let summary = runner.end().await.expect("a clean end");
    assert_eq!((summary.failed, summary.unacknowledged), (1, 0));
}

#[tokio::test]
async fn a_job_that_outlives_the_grace_is_killed_and_blamed_on_the_runner() {
    let mut router = Router::start().await;
    let shutdown = Shutdown::default();
    let options = Options { shutdown_grace: Duration::from_millis(20), ..options(&router, 1) };
    let puppet = Puppet::default();
    let task = tokio::spawn(run(options, puppet.clone(), shutdown.clone()));
    let mut peer = router.welcome().await;
    let lease = peer.run(1).await;
    puppet.started(1).await;
    shutdown.stop.cancel();
    let finished = peer.finished().await;
    assert_eq!((finished.status(), finished.failure_reason.as_str()), (proto::Status::Failed, "runner_system_failure"));
    peer.acknowledge(&lease).await;
    peer.closed().await;
    timeout(LIMIT, task).await.expect("in time").expect("no panic").expect("a clean end");
}

#[tokio::test]
async fn a_runner_without_a_router_ends_when_told() {
    let shutdown = Shutdown::default();
    let name = "test-1".parse().expect("a name");
    let options = Options::new("http://127.0.0.1:1", "secret-token".into(), name, 1);
    let task = tokio::spawn(run(options, Puppet::default(), shutdown.clone()));
    shutdown.stop.cancel();
    let ended = timeout(LIMIT, task).await.expect("in time").expect("no panic");
    assert_eq!(ended.expect("a clean end"), Summary::default());
}
