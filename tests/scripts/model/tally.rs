//! What a run of the model was made of: whether it was a real test.

#[derive(Debug, Default)]
pub struct Tally {
    pub calls: u64,
    pub repeats: u64,
    pub taken: u64,
    /// New jobs that went to the slots which came along.
    pub handed: u64,
    /// Choices among tenants of equal share that went by an outdated head.
    pub excused: u64,
}

// === impl Tally ===

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.repeats += other.repeats;
        self.taken += other.taken;
        self.handed += other.handed;
        self.excused += other.excused;
    }
    /// Panics unless a run of so many steps was a real test.
    pub fn check(&self, steps: u64) {
        let real = self.calls >= steps && self.repeats > steps / 20 && self.taken > steps / 10;
        assert!(real, "it was a real test: {self:?}");
        assert!(self.handed > steps / 200, "jobs were handed over: {self:?}");
        assert!(self.excused * 20 < self.taken, "outdated heads are rare: {self:?}");
    }
}
