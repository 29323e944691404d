//! That the double is as strict as the real client: processes against a played router, under a paused clock.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::client::{Answer, Call, Reach};
use super::notes::Notes;
use super::process::{Config, Entry, Process};
use super::rails::{Rails, State};

const HOUR: Duration = Duration::from_secs(3_600);

/// What the router does with a call.
#[derive(Debug, Clone, Copy)]
enum Does {
    Fails(Code),
    /// Answers empty after so many seconds.
    Holds(u64),
    /// Answers this job after so many seconds.
    Gives(u64, u64),
    /// Answers half a job.
    Garbles,
}

/// A router that does what it is told with one call after the other, the last thing again and again.
struct Played {
    plan: Mutex<VecDeque<Does>>,
    begun: Instant,
    /// When it was called, in seconds, and by whom.
    calls: Mutex<Vec<(f64, String)>>,
    /// When it was looked for.
    discoveries: Mutex<Vec<f64>>,
    is_there: bool,
    rails: Arc<Rails>,
    notes: Arc<Notes>,
}

// === impl Played ===

impl Played {
    fn new(plan: &[Does]) -> Arc<Self> {
        Arc::new(Self::of(plan, true))
    }

    fn of(plan: &[Does], is_there: bool) -> Self {
        let (plan, begun, rails) = (Mutex::new(plan.iter().copied().collect()), Instant::now(), Rails::alone());
        let (calls, discoveries, notes) = Default::default();
        Self { plan, begun, calls, discoveries, is_there, rails, notes }
    }

    fn next(&self) -> Does {
        let mut plan = self.plan.lock().expect("no panic");
        if plan.len() > 1 { plan.pop_front() } else { plan.front().copied() }.expect("a plan")
    }

    async fn answer(self: Arc<Self>, call: Call) -> Result<Answer, Code> {
        self.calls.lock().expect("no panic").push((self.now(), call.token));
        let job_response = match self.next() {
            Does::Fails(code) => return Err(code),
            Does::Holds(seconds) => {
                sleep(Duration::from_secs(seconds)).await;
                Default::default()
            }
            Does::Gives(id, seconds) => {
                sleep(Duration::from_secs(seconds)).await;
                self.rails.payload(id)
            }
            Does::Garbles => r#"{"id": 1, "token": "#.into(),
        };
        Ok(Answer { job_response, last_update: Some(String::new()), request_id: Some(call.request_id) })
    }

    /// Starts a process that looks every 3 s, with an entry for each token.
    fn process(self: &Arc<Self>, concurrent: usize, tokens: &[&str]) -> Process {
        let entry = |token: &&str| Entry { runner_id: 1, token: (*token).to_owned(), limit: 0, request_concurrency: 1 };
        let entries = tokens.iter().map(entry).collect();
        self.start(Config { concurrent, check_interval: Duration::from_secs(3), ..Config::new("s_1", entries) })
    }

    fn start(self: &Arc<Self>, config: Config) -> Process {
        let (router, discovery) = (self.clone(), self.clone());
        let reach = Reach {
            discover: Arc::new(move |_token| {
                let discovery = discovery.clone();
                let told: BoxFuture<'static, _> = Box::pin(async move {
                    discovery.discoveries.lock().expect("no panic").push(discovery.now());
                    discovery.is_there.then(|| "grpc://router".to_owned())
                });
                told
            }),
            get_job: Arc::new(move |call| {
                let answered: BoxFuture<'static, _> = Box::pin(router.clone().answer(call));
                answered
            }),
        };
        Process::start_with(config, reach, CancellationToken::new(), self.rails.clone(), self.notes.clone())
    }

    fn now(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Lets it run until just before this second.
    async fn until(&self, second: u64) {
        sleep_until(self.begun + Duration::from_secs(second) - Duration::from_millis(1)).await;
    }

    /// When, in seconds, it was called with a token.
    fn calls_with(&self, token: &str) -> Vec<f64> {
        let calls = self.calls.lock().expect("no panic");
        calls.iter().filter(|(_, with)| with == token).map(|(at, _)| (at * 100.0).round() / 100.0).collect()
    }

    /// How often a breaker opened, an entry stopped, and Rails was polled.
    fn counts(&self) -> (u64, u64, u64) {
        let noted = self.notes.read();
        (noted.breaker_openings, noted.unhealthy, noted.rest_polls)
    }
}

#[tokio::test(start_paused = true)]
async fn three_unavailable_over_five_seconds_send_it_to_rails_for_thirty() {
    for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled] {
        let router = Played::new(&[Does::Fails(code)]);
        let _process = router.process(1, &["a"]);
        router.until(6).await;
        assert_eq!((router.calls_with("a"), router.counts()), (vec![0.0, 3.0], (0, 0, 0)));
        router.until(36).await;
        // The call that opened it went to Rails as well, and then one every 3 s.
        assert_eq!((router.calls_with("a"), router.counts()), (vec![0.0, 3.0, 6.0], (1, 0, 10)));
        router.until(66).await;
        assert_eq!((router.calls_with("a"), router.counts()), (vec![0.0, 3.0, 6.0, 36.0], (2, 0, 20)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_tries_and_is_held_sends_all_others_to_rails() {
    let fails = Does::Fails(Code::Unavailable);
    let router = Played::new(&[fails, fails, fails, fails, fails, Does::Holds(50), Does::Holds(1)]);
    let _process = router.process(4, &["a", "b"]);
    router.until(36).await;
    let (openings, _, polls) = router.counts();
    assert_eq!((router.calls_with("a"), router.calls_with("b")), (vec![0.0, 3.0, 6.0], vec![1.5, 4.5]));
    assert_eq!((openings, polls), (1, 20));
    router.until(86).await;
    assert_eq!((router.calls_with("a"), router.calls_with("b")), (vec![0.0, 3.0, 6.0, 36.0], vec![1.5, 4.5]));
    assert_eq!(router.counts(), (1, 0, 37), "and every one of the other entry");
    router.until(90).await;
    assert_eq!(router.calls_with("b").last(), Some(&88.5), "its answer, though empty, closes it");
}

#[tokio::test(start_paused = true)]
async fn what_rails_has_while_the_router_is_away_is_run() {
    let router = Played::new(&[Does::Fails(Code::Unavailable)]);
    router.rails.publish(1, &[], Duration::ZERO);
    let _process = router.process(1, &["a"]);
    router.until(20).await;
    assert_eq!(router.rails.records()[&1].state, State::Pending, "a poll is answered when a story says so");
    router.rails.answer_polls();
    router.until(30).await;
    assert_eq!(router.rails.records()[&1].state, State::Success);
}

#[tokio::test(start_paused = true)]
async fn three_refusals_stop_an_entry_for_an_hour() {
    for code in [Code::PermissionDenied, Code::InvalidArgument, Code::ResourceExhausted, Code::Internal, Code::Unknown]
    {
        let router = Played::new(&[Does::Fails(code)]);
        let _process = router.process(1, &["a"]);
        router.until(3_600).await;
        assert_eq!((router.calls_with("a"), router.counts()), (vec![0.0, 3.0, 6.0], (0, 1, 0)));
        router.until(3_700).await;
        assert_eq!((router.calls_with("a").len(), router.counts()), (6, (0, 2, 0)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_cannot_be_read_counts_as_a_refusal() {
    let router = Played::new(&[Does::Garbles]);
    let _process = router.process(1, &["a"]);
    router.until(100).await;
    assert_eq!((router.calls_with("a").len(), router.counts()), (3, (0, 1, 0)));
    assert_eq!(router.notes.read().broken_promises.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn where_the_router_is_is_remembered_for_an_hour_also_that_there_is_none() {
    for is_there in [true, false] {
        let router = Arc::new(Played::of(&[Does::Holds(0)], is_there));
        let _process = router.process(1, &["a"]);
        router.until(3_600).await;
        let looked = |router: &Played| router.discoveries.lock().expect("no panic").clone();
        assert_eq!(looked(&router), [0.0]);
        assert_eq!(router.counts(), (0, 0, if is_there { 0 } else { 1_200 }));
        router.until(3_603).await;
        assert_eq!(looked(&router).len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_router_that_is_switched_off_is_looked_for_again() {
    let router = Played::new(&[Does::Fails(Code::Unimplemented), Does::Holds(0)]);
    let _process = router.process(1, &["a"]);
    router.until(9).await;
    assert_eq!(router.calls_with("a"), [0.0, 3.0, 6.0]);
    assert_eq!((router.counts(), router.discoveries.lock().expect("no panic").len()), ((0, 0, 1), 2));
}

#[tokio::test(start_paused = true)]
async fn an_entry_asks_once_at_a_time_and_no_more_than_its_limit() {
    let router = Played::new(&[Does::Gives(1, 10), Does::Gives(2, 10), Does::Holds(100)]);
    router.rails.publish(1, &[], Duration::from_secs(60));
    router.rails.publish(2, &[], Duration::from_secs(60));
    let entries = vec![Entry { runner_id: 1, token: "a".to_owned(), limit: 2, request_concurrency: 1 }];
    let check_interval = Duration::from_secs(3);
    let _process = router.start(Config { concurrent: 4, check_interval, ..Config::new("s_1", entries) });
    router.until(70).await;
    assert_eq!(router.calls_with("a"), [0.0, 10.0], "again as soon as the first job is acknowledged, then two run");
    router.until(80).await;
    assert_eq!(router.calls_with("a"), [0.0, 10.0, 72.0], "at the first tick after one of them has ended");
}

#[tokio::test(start_paused = true)]
async fn a_held_call_keeps_its_worker_from_other_entries() {
    let router = Played::new(&[Does::Holds(50)]);
    let _process = router.process(1, &["a", "b"]);
    router.until(140).await;
    assert_eq!((router.calls_with("a"), router.calls_with("b")), (vec![0.0, 100.0], vec![50.0]));
}

#[tokio::test(start_paused = true)]
async fn the_first_acknowledgement_wins_and_the_other_runner_does_not_start() {
    let router = Played::new(&[Does::Gives(1, 0), Does::Gives(1, 1), Does::Holds(HOUR.as_secs())]);
    router.rails.publish(1, &[], Duration::from_secs(10));
    let processes = [router.process(1, &["a"]), router.process(1, &["b"])];
    router.until(9).await;
    let job = router.rails.records().remove(&1).expect("published");
    assert_eq!((job.state, job.refused), (State::Running, 1));
    for process in processes {
        process.stop().await;
    }
    assert_eq!((router.notes.read().runs.len(), router.rails.ended()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_canceled_job_is_stopped_at_the_next_trace() {
    let router = Played::new(&[Does::Gives(1, 0), Does::Holds(HOUR.as_secs())]);
    router.rails.publish(1, &[], HOUR);
    let _process = router.process(1, &["a"]);
    router.until(2).await;
    router.rails.cancel(1);
    assert_eq!(router.rails.records()[&1].state, State::Canceling);
    router.until(4).await;
    assert_eq!(router.rails.records()[&1].state, State::Canceled);
    let run = router.notes.read().runs[0].clone();
    assert!(run.aborted && run.ended.is_some_and(|ended| (ended - run.began).as_secs() == 3), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_killed_process_tells_nobody() {
    let router = Played::new(&[Does::Gives(1, 0), Does::Holds(1)]);
    router.rails.publish(1, &[], HOUR);
    let entries = vec![Entry { runner_id: 1, token: "a".to_owned(), limit: 0, request_concurrency: 1 }];
    let process = router.start(Config { dies_with_a_job: true, ..Config::new("s_1", entries) });
    router.until(10).await;
    assert!(process.is_dead());
    assert_eq!(router.calls_with("a"), [0.0]);
    assert_eq!((router.rails.records()[&1].state, router.notes.read().received.len()), (State::Pending, 1));
}
