//! What must hold in every state.
//!
//! P1 to P4 are those of the ladder: rungs 0 to 8. The others came later.

use stateright::Property;

use super::model::Protocol;
use super::runner::Runner;
use super::world::World;

/// At most one runner runs the job at an instant.
pub const ONE_RUNNER: &str = "P1 one runner at a time";
/// A finish is accepted only from the lease that holds the job.
pub const HOLDER_ONLY: &str = "P2 only the holder's finish counts";
/// After an acknowledged cancel no success is recorded.
pub const CANCEL_WINS: &str = "P3 an acknowledged cancel is final";
/// Rails acts on at most one end.
pub const ONE_END: &str = "P4 Rails acts on one end";
/// A job that has ended stays so, and is told once.
pub const END_IS_FINAL: &str = "P5 an end is final and told once";
/// The job begins to run at most `max_attempts` times.
pub const ATTEMPTS_KEPT: &str = "P6 no more runs than attempts";
/// An end that its runner was told is recorded stays recorded: nobody reports it again.
pub const FINISH_KEPT: &str = "P7 an acknowledged finish is kept";
/// After the acknowledged cancel of a job that does not run, no runner starts it.
pub const CANCELED_IS_NOT_STARTED: &str = "P8 no start after an acknowledged cancel";
/// Nor after Rails has read `job.canceled` of one that runs.
pub const TOLD_IS_NOT_STARTED: &str = "P9 no start after job.canceled";

/// All of them.
pub fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always(ONE_RUNNER, |_, world: &World| !world.runners.iter().all(Runner::runs)),
        Property::always(HOLDER_ONLY, |_, world: &World| !world.broken.holder),
        Property::always(CANCEL_WINS, |_, world: &World| !world.broken.cancel),
        Property::always(ONE_END, |_, world: &World| !world.broken.rails),
        Property::always(END_IS_FINAL, |_, world: &World| !world.broken.end),
        Property::always(ATTEMPTS_KEPT, |_, world: &World| !world.broken.attempts),
        Property::always(FINISH_KEPT, |_, world: &World| !world.finish_acknowledged || world.redis.end.is_some()),
        Property::always(CANCELED_IS_NOT_STARTED, |_, world: &World| !world.broken.canceled_start),
        Property::always(TOLD_IS_NOT_STARTED, |_, world: &World| !world.broken.told_start),
    ]
}
