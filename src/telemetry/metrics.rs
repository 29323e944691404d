//! Every metric there is. To add one: a line here, its label values in [`labels`](super::labels), and
//! `docs/metrics.md` written anew (its test says how).
//!
//! A name is `job_router_<thing>[_<unit>][_total]`, in seconds or bytes. A handle costs 15 ns, as it is registered
//! once; a macro with a label would cost 118 ns at each use.

use metrics::{Counter, Gauge, Histogram};

use super::labels::{
    CameAlong, Ended, Expired, GaveBack, InboxType, Limit, RedisCall, RedisError, Rejected, Reload, SessionClosed,
    Took, Wake,
};
use super::registry::{By, Declared, Handle};

/// The upper bounds of a histogram's buckets, and why these.
#[derive(Debug, PartialEq)]
pub struct Buckets {
    /// Ascending, in the metric's unit.
    pub bounds: &'static [f64],
    /// Why.
    pub reason: &'static str,
}

/// Between two moves that should be milliseconds apart.
const HOP: Buckets = Buckets {
    bounds: &[0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0],
    reason: "a bound at 1 ms and at 5 ms, the p50 and p99 budget; 5 s is the default accept_timeout; stamps in Redis \
             are whole milliseconds, so nothing finer",
};

/// How long jobs wait for a runner.
const WAIT: Buckets = Buckets {
    bounds: &[0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0],
    reason: "from a free runner at once to a day in the queue, a step each that a person would tell apart",
};

/// One call to Redis.
const CALL: Buckets = Buckets {
    bounds: &[0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0, 3.0],
    reason: "a script is budgeted at 60 µs of Redis, and 2 ms at p99.9; 3 s is the default redis_command_timeout",
};

/// How late a timer fires.
const LAG: Buckets = Buckets {
    bounds: &[0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0],
    reason: "timers have a grain of 1 ms; above 5 ms the push budget is gone; above 1 s heartbeats are missed",
};

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $name:ident: $type:ty $(, $buckets:expr)?;)*) => {
        /// The handles of all metrics of a registry.
        #[derive(Debug)]
        pub struct Metrics {
            $($(#[doc = $help])+ pub $name: $type,)*
        }

        /// What is declared, in the order of this file.
        pub static DECLARED: &[Declared] = &[$(
            Declared {
                name: concat!("job_router_", stringify!($name)),
                help: concat!($($help),+),
                kind: <$type as Handle>::KIND,
                label: <$type as Handle>::LABEL,
                buckets: metrics!(@buckets $($buckets)?),
            },
        )*];

        impl Metrics {
            /// Registers all with the recorder that is current here, so that each is there with a 0 from the start:
            /// a counter that appears with its first event hides that event from `rate()`.
            pub(super) fn register() -> Self {
                Self { $($name: Handle::register(concat!("job_router_", stringify!($name))),)* }
            }
        }
    };
    (@buckets $buckets:expr) => { Some(&$buckets) };
    (@buckets) => { None };
}

metrics! {
    /// From the stamp of a job's inbox entry to its first `Assign` sent, with the wait for a slot if none was free.
    publish_to_push_seconds: Histogram, HOP;
    /// From `Assign` sent to the runner's answer that it accepts.
    assign_to_accept_seconds: Histogram, HOP;
    /// From when Rails queued a job to its `Assign` sent.
    queue_wait_seconds: Histogram, WAIT;
    /// Jobs put into a bucket; each job once, not when it is given back.
    jobs_queued_total: Counter;
    /// Jobs taken and pushed to a runner; one for each attempt.
    jobs_assigned_total: Counter;
    /// Jobs that a runner was told to start.
    jobs_started_total: Counter;
    /// Jobs whose end this pod recorded: reported by their runners, or as their leases ran out. By how they ended.
    jobs_ended_total: By<Ended, Counter>;
    /// Jobs assigned or running at this pod.
    jobs_held: Gauge;
    /// Jobs given back to their old place in the queue, by why.
    give_backs_total: By<GaveBack, Counter>;
    /// Jobs whose lease ran out, by what became of them.
    expiries_total: By<Expired, Counter>;
    /// Partitions in which so many leases run out at once that it looks like a fault of ours: they are held up, or were for
    /// `mass_expiry_hold`. Somebody should look.
    mass_expiry: Gauge;
    /// Times that another server was found to be the primary, or the same one after a restart: no lease runs out for one lease.
    redis_primary_changes_total: Counter;
    /// Times that a partition was found to have lost its data. Rails must publish all that has not ended.
    redis_data_losses_total: Counter;
    /// Events `job.stuck` that this pod wrote: heads of buckets that no online runner could ever take a job of.
    jobs_stuck_total: Counter;
    /// Jobs that only the sweep found a runner for. Must stay 0: each is a lost wake-up.
    sweep_rescues_total: Counter;
    /// Wake-ups for a free slot: that this pod received, and those it passed on as it could not use them.
    wakes_total: By<Wake, Counter>;
    /// Free slots that were sent along with new jobs, by whether the job was handed over to them at once, or they stayed
    /// unused as it was queued behind others.
    slots_sent_along_total: By<CameAlong, Counter>;
    /// Takes, by whether they brought jobs. Many empty ones are wake-ups for nothing.
    takes_total: By<Took, Counter>;
    /// Messages read from the inbox, by type; without those refused, whose type may be unknown.
    inbox_messages_total: By<InboxType, Counter>;
    /// Inbox entries that this pod has read and not yet applied; tenants take turns.
    inbox_backlog: Gauge;
    /// Inbox entries refused, each with a `message.rejected` event, by class of reason.
    messages_rejected_total: By<Rejected, Counter>;
    /// Sessions of runners open at this pod.
    sessions: Gauge;
    /// Sessions opened.
    sessions_opened_total: Counter;
    /// Sessions closed, by why.
    sessions_closed_total: By<SessionClosed, Counter>;
    /// Slots that runners of this pod offer and no job fills.
    slots_free: Gauge;
    /// Logins of runners refused.
    auth_failures_total: Counter;
    /// Connections, streams, messages and log-ins of runners that were refused, as they were over a limit.
    refused_total: By<Limit, Counter>;
    /// Connections on which TLS was not agreed on: no TLS at all, no common version, or a certificate that is not trusted.
    tls_handshakes_failed_total: Counter;
    /// Times that certificate files had changed, by whether they could be used; if not, the last good ones stay.
    tls_reloads_total: By<Reload, Counter>;
    /// Calls to Redis, from sent to answered, by script. Blocking reads are not timed.
    redis_call_seconds: By<RedisCall, Histogram>, CALL;
    /// Calls to Redis that failed, by what went wrong. Most are made again until they are done.
    redis_errors_total: By<RedisError, Counter>;
    /// Connections to Redis made again.
    redis_reconnects_total: Counter;
    /// Times that Redis was found hung and its connections were cut.
    watchdog_trips_total: Counter;
    /// How late a timer fires: how long a task that is ready waits for a thread.
    event_loop_lag_seconds: Histogram, LAG;
}
