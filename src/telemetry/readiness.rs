//! Whether this pod should get new runners.

use std::sync::atomic::{AtomicBool, Ordering};

/// What readiness rests on. Not ready at first: each part says so when it is.
///
/// Flags and no lock: the writers are the parts themselves, and a reader that is a moment late harms nobody.
#[derive(Debug, Default)]
pub struct Readiness {
    redis_up: AtomicBool,
    scripts_loaded: AtomicBool,
    draining: AtomicBool,
}

// === impl Readiness ===

impl Readiness {
    /// Redis answers, or no longer does.
    pub fn set_redis_up(&self, up: bool) {
        self.redis_up.store(up, Ordering::Relaxed);
    }

    /// Redis has our scripts, or may have lost them.
    pub fn set_scripts_loaded(&self, loaded: bool) {
        self.scripts_loaded.store(loaded, Ordering::Relaxed);
    }

    /// This pod is leaving; there is no way back.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether new runners are welcome.
    pub fn is_ready(&self) -> bool {
        self.checks().iter().all(|(_, good)| *good)
    }

    /// Each check by name, and whether it is good.
    pub fn checks(&self) -> [(&'static str, bool); 3] {
        [
            ("redis_up", self.redis_up.load(Ordering::Relaxed)),
            ("scripts_loaded", self.scripts_loaded.load(Ordering::Relaxed)),
            ("not_draining", !self.draining.load(Ordering::Relaxed)),
        ]
    }
}
