//! A take, and whether it took what the rule says.

use job_router::fairness::{next_of_tenant, share_rank};
use job_router::flow::State;
use job_router::redis::{Offer, TakenJob};
use job_router::runner::{Lane, Scope};

use super::Run;
use super::dump::Dump;
use super::next::Choice;
use crate::model::LONG;
use crate::support::{name, text};

impl Run {
    pub async fn take(&mut self, pod: &str, lanes: &[Lane], offers: &[Offer], again: bool) {
        // Until a project's change is indexed, its buckets stand where they stood: not what the rule says.
        self.index(pod).await;
        let instance = !offers.is_empty() && lanes.iter().any(|lane| lane.scope == Scope::Instance);
        let before = if instance { Dump::read_lanes(&self.world).await } else { Dump::default() };
        let taken = self.world.partition.take(&name(pod), LONG, 0, lanes, offers).await.expect("takes");
        let (jobs, wakes) = (taken.jobs, taken.again);
        if let Some(woken) = self.woken.get_mut(pod) {
            woken.retain(|lane| !lanes.contains(lane));
        }
        if again && !self.taken.is_empty() {
            let same = |job: &TakenJob| (job.lease, job.lane, job.attempt, job.payload.clone());
            assert!(jobs.iter().map(same).eq(self.taken.iter().map(same)), "the same answer again");
            assert_eq!(wakes.is_empty(), jobs.len() == offers.len(), "who has slots left asks again: {wakes:?}");
            self.hear(pod, wakes);
            return;
        }
        let served = jobs.iter().filter(|job| job.lane.scope == Scope::Instance).count();
        let mut turn = self.first_turn(served).await;
        assert!(taken.slots.iter().copied().eq(0..jobs.len()), "the first slots first: {:?}", taken.slots);
        for job in &jobs {
            let expected = self.model.next_of_lanes(lanes);
            let expected = expected.unwrap_or_else(|| panic!("{job:?} was not to be had"));
            let id = job.lease.job_id.0;
            assert!(self.leases.insert(job.lease.lease_id), "{job:?}: a lease that was used before");
            if (id, job.lane) != (expected.job, expected.lane) {
                self.excuse(&before, &expected, job);
            }
            assert_eq!(job.attempt, self.model.taken(job.lease, job.lane, pod, &mut turn));
        }
        if jobs.len() < offers.len() && wakes.is_empty() {
            assert!(
                self.model.next_of_lanes(lanes).is_none(),
                "{pod} left work: {:?}",
                self.model.next_of_lanes(lanes)
            );
        }
        self.tally.taken += jobs.len() as u64;
        self.taken = jobs;
        self.hear(pod, wakes);
    }

    /// The first turn of the script that just gave so many jobs to instance runners.
    pub async fn first_turn(&self, served: usize) -> u64 {
        if served == 0 {
            return 0;
        }
        let last = self.world.command("GET", &[&self.world.partition.key("turn")]).await;
        text(&last).parse::<u64>().expect("a turn") - (served as u64 - 1)
    }

    /// Another job was taken than expected: fine only between tenants of equal share, when the one passed over stood
    /// with the head of a bucket whose project has started jobs elsewhere since.
    fn excuse(&mut self, before: &Dump, expected: &Choice, job: &TakenJob) {
        let id = job.lease.job_id.0;
        let taken = &self.model.jobs[&id];
        let wrong = || format!("took {id} of {} {:?}, not {expected:?}", job.lane, taken.bucket);
        let Some((tenant, rank)) = &expected.tenant else { panic!("{}", wrong()) };
        assert_eq!(taken.state, State::Queued, "{}", wrong());
        let key = self.model.projects[&taken.bucket.1].tenant.clone();
        let facts = self.model.tenant_in_lane(&self.model.heads(), job.lane, &key);
        assert_eq!(share_rank(facts.running, facts.weight), *rank, "{}", wrong());
        let next = next_of_tenant(&facts).map(|next| (job.lane.fingerprint, next.project.0, next.priority.rank()));
        assert!(next == Some(taken.bucket) || self.model.is_plain(job.lane), "{}", wrong());
        assert_eq!(self.model.heads()[&taken.bucket].0, id, "{}", wrong());
        // A plain queue is exact but for what a project has left behind.
        let plain = self.model.is_plain(expected.lane);
        let of_lane = before.keys.iter().filter(|(key, _)| key.starts_with(&format!("lane:{}:", expected.lane)));
        let of_lane = of_lane.filter(|(key, _)| plain || key.ends_with(&format!(":{tenant}")));
        let outdated = of_lane.flat_map(|(_, members)| members).any(|(member, score)| {
            let project = member.split(':').next().expect("a project").parse().expect("an id");
            let running = self.model.running(tenant, Some(project)).len() as u64;
            let score = score.parse::<f64>().expect("a score") as u64;
            self.model.projects[&project].moved || !plain && (score >> 40) & 1023 < running
        });
        assert!(outdated, "{}", wrong());
        self.tally.excused += 1;
    }
}
