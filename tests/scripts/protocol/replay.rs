//! The model's Redis against the real one: the same calls, the same answers, the same record, the same events.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use job_router::job::{JobId, LeaseId, OfferId};
use job_router::redis::scripts::Outcome as Word;
use job_router::redis::{Expired, Offer, Renewed, Report, Return};

use super::record::{Answer, Call, Done, Lease, Outcome, Record};
use super::rules::{Bounds, Rules};
use crate::support::{World, instance_lane, job, name, offers};

/// Long, so that nothing ends by time.
const LONG: Duration = Duration::from_secs(3600);
const POD: &str = "pod";

/// A lease that the job never had.
const STRANGER: Lease = Lease { id: 0, attempt: 1 };

/// A real Redis, in which one job after the other lives.
pub struct Replay {
    world: World,
    bounds: Bounds,
    job_id: u64,
    /// The real ids of the model's.
    offers: HashMap<u8, OfferId>,
    leases: HashMap<u8, LeaseId>,
    last_event: String,
}

// === impl Replay ===

impl Replay {
    /// With nothing in it.
    pub async fn new(bounds: Bounds) -> Self {
        let world = World::with_scopes(&[job_router::runner::Scope::Instance]).await;
        Self { world, bounds, job_id: 0, offers: HashMap::new(), leases: HashMap::new(), last_event: "0-0".to_owned() }
    }

    /// Ends the present job, if it has not, and goes on with another.
    pub async fn next_job(&mut self) {
        if self.job_id > 0 {
            self.call(Call::FinishByRails).await;
            self.events().await;
        }
        self.job_id += 1;
        self.offers.clear();
        self.leases.clear();
    }

    /// Calls the script; answers what it answered, in the words of the model.
    pub async fn call(&mut self, call: Call) -> Answer {
        let (partition, pod, job_id) = (self.world.partition.clone(), name(POD), JobId(self.job_id));
        match call {
            Call::Publish => {
                let mut pending = job(self.job_id);
                pending.max_attempts = self.bounds.max_attempts.into();
                word(self.world.queue(pending).await.outcomes[0])
            }
            Call::Take(id) => {
                let id_of_offer = *self.offers.entry(id).or_insert_with(|| OfferId::random(0));
                let offer = Offer { id: id_of_offer, ..offers(1).remove(0) };
                let taken = partition.take(&pod, LONG, 0, &[instance_lane()], &[offer]).await.expect("takes").jobs;
                taken.first().map_or(Answer::Nothing, |taken| {
                    assert_eq!(taken.lease.job_id, job_id);
                    let lease_id = *self.leases.entry(id).or_insert(taken.lease.lease_id);
                    assert_eq!(taken.lease.lease_id, lease_id, "an offer that is repeated is the same lease");
                    Answer::Taken(Lease { id, attempt: taken.attempt as u8 })
                })
            }
            Call::Start(lease) => {
                let jobs = [self.real(lease)];
                word(partition.start(LONG, &jobs).await.expect("starts")[0].outcome())
            }
            Call::Renew(lease) => match &partition.renew(&pod, LONG, &[self.real(lease)]).await.expect("renews")[0] {
                Renewed::Running => Answer::Ok,
                Renewed::Canceling { .. } => Answer::Canceling,
                Renewed::NotYours => Answer::Stale,
            },
            Call::GiveBack(lease) => {
                let back = Return { lease: self.real(lease), reason: "declined", failed_delivery: true };
                let limit = self.bounds.give_back_limit.into();
                word(partition.give_back(&pod, limit, LONG, &[back]).await.expect("gives back").0[0])
            }
            Call::Expire(lease, beat) => {
                let seen = (self.real(lease), beat.map(|beat| beat.to_string()).unwrap_or_default());
                match partition.expire(&pod, LONG, &[seen]).await.expect("expires").0[0] {
                    Expired::Requeued => Answer::Requeued,
                    Expired::Failed => Answer::Failed,
                    Expired::Canceled => Answer::Canceled,
                    Expired::Not => Answer::Stale,
                }
            }
            Call::Finish(lease) => self.finish(Some(lease), "success").await,
            Call::FinishByRails => self.finish(None, "failed").await,
            Call::Cancel => word(partition.cancel(job_id, "no need", LONG, LONG).await.expect("cancels")),
            Call::PodGone => {
                let given_back = partition.bury(&pod, None).await.expect("buries").expect("no heartbeat is looked at");
                self.world.heartbeat(POD).await;
                if given_back == 1 { Answer::Ok } else { Answer::Nothing }
            }
        }
    }

    async fn finish(&mut self, lease: Option<Lease>, status: &'static str) -> Answer {
        let report = Report {
            job_id: JobId(self.job_id),
            lease_id: lease.map(|lease| self.lease_id(lease.id)),
            status,
            exit_code: 0,
            failure_reason: String::new(),
        };
        word(self.world.partition.finish(LONG, &[report]).await.expect("finishes")[0])
    }

    fn lease_id(&mut self, id: u8) -> LeaseId {
        *self.leases.entry(id).or_insert_with(|| LeaseId::random(0))
    }

    fn real(&mut self, lease: Lease) -> job_router::job::Lease {
        job_router::job::Lease { job_id: JobId(self.job_id), lease_id: self.lease_id(lease.id) }
    }

    /// The last words of the events since the last look.
    pub async fn events(&mut self) -> Vec<String> {
        let from = format!("({}", self.last_event);
        let reply = self.world.command("XRANGE", &[&self.world.partition.key("events"), &from, "+"]).await;
        let entries = reply.into_entries().expect("entries");
        if let Some(last) = entries.last() {
            self.last_event = last.id.clone();
        }
        let word = |kind: &[u8]| String::from_utf8_lossy(kind).trim_start_matches("job.").to_owned();
        entries.iter().map(|entry| word(entry.field("type").expect("a type"))).collect()
    }

    /// What Redis has of the job, as text; and the same of the model.
    pub async fn real_record(&self) -> BTreeMap<&'static str, String> {
        let fields = self.world.fields(self.job_id).await;
        let ended = self.world.command("GET", &[&self.world.partition.key(&format!("ended:{}", self.job_id))]).await;
        let mut seen = BTreeMap::new();
        let mut see = |name, value: Option<&str>| {
            if let Some(value) = value {
                seen.insert(name, value.to_owned());
            }
        };
        for name in ["state", "beat", "starts", "failed_deliveries"] {
            see(name, fields.get(name).map(String::as_str));
        }
        let mut lease = fields.get("lease").map(|lease| lease.split(' '));
        see("lease", lease.as_mut().and_then(Iterator::next));
        see("attempt", lease.as_mut().and_then(Iterator::next));
        let ended = ended.as_str().ok().map(str::to_owned);
        let mut ended = ended.as_deref().map(|ended| ended.split(' '));
        see("outcome", ended.as_mut().and_then(Iterator::next));
        see("by", ended.as_mut().and_then(Iterator::next));
        seen
    }

    pub fn model_record(&self, record: &Record) -> BTreeMap<&'static str, String> {
        let id = |lease: Lease| self.leases.get(&lease.id).map(LeaseId::to_string).expect("it was taken");
        let mut seen = BTreeMap::new();
        let mut see = |name, value: Option<String>| {
            if let Some(value) = value {
                seen.insert(name, value);
            }
        };
        see("state", record.state.and_then(|state| state.word()).map(str::to_owned));
        see("beat", record.beat.map(|beat| beat.to_string()));
        see("starts", Some(record.starts).filter(|starts| *starts > 0).map(|starts| starts.to_string()));
        see("failed_deliveries", Some(record.failures).filter(|n| *n > 0).map(|n| n.to_string()));
        see("lease", record.lease.map(id));
        see("attempt", record.lease.map(|lease| lease.attempt.to_string()));
        let outcome = |outcome| match outcome {
            Outcome::Success => "success",
            Outcome::Canceled => "canceled",
            Outcome::Lost | Outcome::Undeliverable | Outcome::Told => "failed",
        };
        see("outcome", record.end.map(|end| outcome(end.outcome).to_owned()));
        see("by", record.end.map(|end| end.by.map_or("-".to_owned(), id)));
        seen
    }

    /// Calls one after the other, and passes over what comes of it.
    pub async fn go(&mut self, way: &[Call]) {
        for call in way {
            self.call(*call).await;
        }
        self.events().await;
    }

    /// The same call in both; everything must be the same after it.
    pub async fn step(&mut self, record: &mut Record, call: Call) {
        let before = *record;
        let Done { answer, told, .. } = record.call(&Rules::all(), &self.bounds, call);
        let told: Vec<String> = told.map(str::to_owned).into_iter().collect();
        let context = format!("{call:?} after {before:?}");
        assert_eq!(self.call(call).await, as_answered(call, answer), "{context}: answered");
        assert_eq!(self.events().await, told, "{context}: told");
        assert_eq!(self.real_record().await, self.model_record(record), "{context}: the record");
    }
}

/// Renewals and expiries that did nothing are one answer to their callers.
fn as_answered(call: Call, answer: Answer) -> Answer {
    match (call, answer) {
        (Call::Renew(_) | Call::Expire(..), Answer::Gone) => Answer::Stale,
        _ => answer,
    }
}

fn word(word: Word) -> Answer {
    match word {
        Word::Ok => Answer::Ok,
        Word::Gone => Answer::Gone,
        Word::Stale => Answer::Stale,
        Word::Refused => Answer::Refused,
        Word::Known => Answer::Known,
    }
}

/// Every state of the record within the bounds, and a shortest way there.
pub fn states(bounds: &Bounds) -> Vec<(Vec<Call>, Record)> {
    let mut known = vec![(Vec::new(), Record::default())];
    let mut at = 0;
    while at < known.len() {
        let (way, record) = known[at].clone();
        for call in calls(bounds, &way) {
            let mut next = record;
            next.call(&Rules::all(), bounds, call);
            let within = next.beat.is_none_or(|beat| beat <= bounds.beats);
            if within && !known.iter().any(|(_, record)| *record == next) {
                let mut way = way.clone();
                way.push(call);
                known.push((way, next));
            }
        }
        at += 1;
    }
    known
}

/// The calls there are after these: of every lease that the job had, and of one that it never had.
pub fn calls(bounds: &Bounds, way: &[Call]) -> Vec<Call> {
    let mut record = Record::default();
    let mut leases = Vec::new();
    for call in way {
        if let Answer::Taken(lease) = record.call(&Rules::all(), bounds, *call).answer
            && !leases.contains(&lease)
        {
            leases.push(lease);
        }
    }
    let mut calls = vec![Call::Publish, Call::FinishByRails, Call::Cancel, Call::PodGone];
    let offered = leases.len() as u8;
    leases.push(STRANGER);
    calls.extend((1..=bounds.leases.min(offered + 1)).map(Call::Take));
    for lease in leases {
        calls.extend([Call::Start(lease), Call::Renew(lease), Call::GiveBack(lease), Call::Finish(lease)]);
        let beats = std::iter::once(None).chain((0..=bounds.beats).map(Some));
        calls.extend(beats.map(|beat| Call::Expire(lease, beat)));
    }
    calls
}
