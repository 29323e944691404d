//! How equal shares are: Jain's index.
//!
//! Source: R. Jain, D. Chiu, W. Hawe, "A Quantitative Measure of Fairness and Discrimination for Resource Allocation in
//! Shared Computer Systems", DEC-TR-301, 1984: (Σx)² / (n · Σx²).

use super::{Day, Take};

#[derive(Debug, Clone, Copy)]
enum Move {
    Wait,
    WaitNoMore,
    Take,
    End,
}

/// The tenants that wait at some moment, and what they have meanwhile.
#[derive(Debug, Default)]
struct Shares {
    waiting: usize,
    sum: f64,
    squares: f64,
}

/// A tenant whose jobs all go within this time has what it wants.
const SOON_MS: u64 = 60_000;

/// Jain's index of slots in use ÷ weight, over the tenants that have had a job waiting for a minute: those who would like
/// more. 1 when all of them have as many; 1/n when one of n has everything. The mean over the time in which two or more
/// tenants wait so; none when there is no such time. Tenants with a cap are left out: they may not have more.
///
/// Slots are whole: with more tenants waiting than there are slots, the fairest policy is below 1. And no policy takes a
/// running job away: who has just come gets up to its share only as others' jobs end.
pub fn jains_index(day: &Day, takes: &[Take]) -> Option<f64> {
    let mut moves: Vec<(u64, Move, usize)> = Vec::with_capacity(3 * takes.len());
    for take in takes {
        let (job, tenant) = (&day.jobs()[take.job], day.tenant_of(take.job));
        if take.at_ms > job.queued_at_ms + SOON_MS {
            moves.push((job.queued_at_ms + SOON_MS, Move::Wait, tenant));
            moves.push((take.at_ms, Move::WaitNoMore, tenant));
        }
        moves.push((take.at_ms, Move::Take, tenant));
        moves.push((take.at_ms + job.duration_ms, Move::End, tenant));
    }
    moves.retain(|(_, _, tenant)| day.tenants()[*tenant].max_running.is_none());
    // Within one ms any order will do: nothing of it lasts.
    moves.sort_unstable_by_key(|(at_ms, ..)| *at_ms);

    let mut of_tenant = vec![(0_i64, 0_i64); day.tenants().len()]; // jobs waiting, jobs running
    let mut shares = Shares::default();
    let (mut last_ms, mut total_ms, mut total) = (0, 0.0, 0.0);
    for (at_ms, what, tenant) in moves {
        if at_ms > last_ms && shares.waiting >= 2 {
            let ms = (at_ms - last_ms) as f64;
            (total_ms, total) = (total_ms + ms, total + ms * shares.index());
        }
        last_ms = at_ms;
        let (waiting, running) = &mut of_tenant[tenant];
        let weight = f64::from(day.tenants()[tenant].weight.get());
        if *waiting > 0 {
            shares.remove(*running as f64 / weight);
        }
        match what {
            Move::Wait => *waiting += 1,
            Move::WaitNoMore => *waiting -= 1,
            Move::Take => *running += 1,
            Move::End => *running -= 1,
        }
        if *waiting > 0 {
            shares.add(*running as f64 / weight);
        }
    }
    (total_ms > 0.0).then(|| total / total_ms)
}

// === impl Shares ===

impl Shares {
    fn add(&mut self, share: f64) {
        self.waiting += 1;
        self.sum += share;
        self.squares += share * share;
    }

    fn remove(&mut self, share: f64) {
        self.waiting -= 1;
        self.sum -= share;
        self.squares -= share * share;
    }

    fn index(&self) -> f64 {
        // What is left of rounding when all have nothing.
        if self.squares < 1e-6 { 1.0 } else { self.sum * self.sum / (self.waiting as f64 * self.squares) }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::job::{Priority, ProjectId, Tenant};
    use crate::simulation::DayBuilder;

    /// Jobs of two tenants, all queued at 0, each with the second at which it is taken; all run till 200 s.
    fn shares(takes: &[(u64, u64)], weight: u32) -> Option<f64> {
        let mut day = DayBuilder::default();
        for (tenant, at) in takes {
            let tenant = Tenant::of_namespace(*tenant);
            day.add(
                &tenant,
                ProjectId(tenant.name()[3..].parse().unwrap()),
                Priority::default(),
                0,
                200_000 - 1_000 * at,
            )
            .unwrap();
        }
        let mut day = day.build(None);
        day.set_weight(&Tenant::of_namespace(1), NonZeroU32::new(weight).unwrap());
        let takes = takes.iter().enumerate().map(|(job, (_, at))| Take { job, at_ms: 1_000 * at });
        jains_index(&day, &takes.collect::<Vec<_>>())
    }

    #[test]
    fn it_is_one_for_equal_shares_and_one_half_when_one_of_two_has_all() {
        let index = |takes: &[(u64, u64)], weight| shares(takes, weight).expect("both wait");
        assert!((index(&[(1, 0), (2, 0), (1, 120), (2, 120)], 1) - 1.0).abs() < 1e-9);
        assert!((index(&[(1, 0), (1, 0), (1, 120), (2, 120)], 1) - 0.5).abs() < 1e-9);
        // Two to one: 0.9; by weight as it should be.
        let uneven = [(1, 0), (1, 0), (2, 0), (1, 120), (2, 120)];
        assert!((index(&uneven, 1) - 0.9).abs() < 1e-9);
        assert!((index(&uneven, 2) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn there_is_none_where_never_two_tenants_wait() {
        assert_eq!(shares(&[(1, 0), (2, 0), (2, 120)], 1), None);
        assert_eq!(shares(&[(1, 0), (2, 0), (1, 60), (2, 120)], 1), None, "a minute is soon");
    }
}
