//! A day that nobody had: drawn at random, the same for the same seed and build.
//!
//! - **When**: pipelines come all day, most at 14:00 and fewest at 2:00, in a cosine with nine times as many at its top as
//!   at its bottom. All jobs of a pipeline are queued at once; there are 4 on average (geometric).
//! - **Whose**: tenants by Zipf's law with exponent 1, so the busiest of 1,000 has 13 % of the jobs and most have a
//!   few; the projects of a tenant, up to 20, likewise.
//! - **How long**: log-normal, σ = 1.2, so the mean is twice the median and the longest hundredth 16 times; from 1 s
//!   to 1 h.
//! - **The flood**: one tenant more, whose jobs come within ten minutes, evenly over its projects.
//!
//! All of it is what makes queues hard, not what was measured somewhere: for that, take a recording.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Geometric, LogNormal, Zipf};

use super::{Day, DayBuilder};
use crate::job::{Priority, ProjectId, Tenant};

const HOUR_MS: u64 = 3_600_000;
const DAY_HOURS: f64 = 24.0;
const PEAK_HOUR: f64 = 14.0;
/// The rate of pipelines lies between 1 − SWING and 1 + SWING times its mean.
const SWING: f64 = 0.8;
const PIPELINE_JOBS_MEAN: f64 = 4.0;
const TENANT_EXPONENT: f64 = 1.0;
const PROJECT_EXPONENT: f64 = 1.0;
const PROJECTS_MAX: u32 = 20;
const DURATION_SIGMA: f64 = 1.2;
const DURATION_MIN_MS: f64 = 1_000.0;
const DURATION_MAX_MS: f64 = 3_600_000.0;
const FLOOD_MS: u64 = 600_000;
/// Project ids of a tenant begin at its number times this.
const PROJECT_IDS: u64 = 100_000;

/// What a day looks like.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The same seed gives the same day.
    pub seed: u64,
    /// Jobs, those of the flood apart.
    pub jobs: usize,
    /// Tenants, the one that floods apart: `tenant-1`, the busiest, and so on. At least one.
    pub tenants: u32,
    /// Half of the jobs last no longer, from 1 s to 1 h.
    pub duration_ms: u64,
    /// A tenant that floods, if any.
    pub flood: Option<Flood>,
}

/// One tenant's jobs, nearly all at once.
#[derive(Debug, Clone, Copy)]
pub struct Flood {
    /// How many.
    pub jobs: usize,
    /// Over so many projects, at least one.
    pub projects: u32,
    /// From this hour of the day on, for ten minutes.
    pub hour: u64,
}

// === impl Flood ===

impl Flood {
    /// The tenant that floods.
    pub fn tenant() -> Tenant {
        Tenant::new("flood").expect("a name")
    }
}

// === impl Shape ===

impl Shape {
    /// Draws the day. It begins at midnight.
    pub fn draw(&self) -> Day {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let median_ms = self.duration_ms as f64;
        let durations = LogNormal::new(median_ms.ln(), DURATION_SIGMA).expect("a finite median");
        let duration = |rng: &mut StdRng| durations.sample(rng).clamp(DURATION_MIN_MS, DURATION_MAX_MS) as u64;
        let tenants = Zipf::new(f64::from(self.tenants), TENANT_EXPONENT).expect("at least one tenant");
        let projects = Zipf::new(f64::from(PROJECTS_MAX), PROJECT_EXPONENT).expect("at least one project");
        let more_jobs = Geometric::new(1.0 / PIPELINE_JOBS_MEAN).expect("a probability");

        let mut day = DayBuilder::default();
        let mut left = self.jobs as u64;
        while left > 0 {
            let at_ms = arrival_ms(&mut rng);
            let number = tenants.sample(&mut rng) as u64;
            let tenant = Tenant::new(&format!("tenant-{number}")).expect("a short name");
            let project = ProjectId(number * PROJECT_IDS + projects.sample(&mut rng) as u64);
            let pipeline = left.min(1 + more_jobs.sample(&mut rng));
            for _ in 0..pipeline {
                let added = day.add(&tenant, project, Priority::default(), at_ms, duration(&mut rng));
                added.expect("a project's id holds its tenant's number");
            }
            left -= pipeline;
        }
        if let Some(flood) = self.flood {
            let first = (u64::from(self.tenants) + 1) * PROJECT_IDS;
            for number in 0..flood.jobs {
                let project = ProjectId(first + number as u64 % u64::from(flood.projects));
                let at_ms = flood.hour * HOUR_MS + rng.random_range(0..FLOOD_MS);
                let added = day.add(&Flood::tenant(), project, Priority::default(), at_ms, duration(&mut rng));
                added.expect("no other tenant has these ids");
            }
        }
        day.build(Some(0))
    }
}

/// A moment of the day, more likely at its peak.
fn arrival_ms(rng: &mut StdRng) -> u64 {
    loop {
        let hour = rng.random_range(0.0..DAY_HOURS);
        let rate = 1.0 + SWING * (std::f64::consts::TAU * (hour - PEAK_HOUR) / DAY_HOURS).cos();
        if rng.random_range(0.0..1.0 + SWING) < rate {
            return (hour * HOUR_MS as f64) as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(seed: u64) -> Shape {
        let flood = Some(Flood { jobs: 1_000, projects: 20, hour: 13 });
        Shape { seed, jobs: 20_000, tenants: 200, duration_ms: 90_000, flood }
    }

    #[test]
    fn the_same_seed_gives_the_same_day_and_another_seed_another() {
        assert_eq!(shape(1).draw(), shape(1).draw());
        assert_ne!(shape(1).draw(), shape(2).draw());
    }

    #[test]
    fn a_day_has_the_shape_that_is_documented() {
        let day = shape(3).draw();
        assert_eq!(day.jobs().len(), 21_000);
        let flood = day.find_tenant(&Flood::tenant()).expect("it is there");
        let mut count = vec![0; day.tenants().len()];
        (0..day.jobs().len()).for_each(|job| count[day.tenant_of(job)] += 1);
        assert_eq!(count[flood], 1_000);
        assert_eq!(day.projects().iter().filter(|project| project.tenant == flood).count(), 20);
        let busiest = count[day.find_tenant(&Tenant::new("tenant-1").unwrap()).expect("it is there")];
        assert!((2_500..5_000).contains(&busiest), "17 % of 20,000: {busiest}");

        let in_hour = |hour: u64| {
            let hour = hour * HOUR_MS..(hour + 1) * HOUR_MS;
            let jobs = day.jobs().iter().enumerate().filter(|(at, _)| day.tenant_of(*at) != flood);
            jobs.filter(|(_, job)| hour.contains(&job.queued_at_ms)).count()
        };
        assert!(in_hour(14) > 5 * in_hour(2), "{} jobs at its peak, {} at night", in_hour(14), in_hour(2));
        let mut durations: Vec<u64> = day.jobs().iter().map(|job| job.duration_ms).collect();
        durations.sort_unstable();
        assert!((85_000..95_000).contains(&durations[10_500]), "{} ms", durations[10_500]);
        assert!(durations[0] >= 1_000 && durations[20_999] <= 3_600_000);
    }
}
