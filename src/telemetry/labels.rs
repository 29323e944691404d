//! The values that metric labels may have: enums, never text from outside (invariant 9).

/// A metric label with a fixed set of values.
pub trait Label: Copy + 'static {
    /// The label's name.
    const NAME: &'static str;
    /// All its values.
    const ALL: &'static [Self];

    /// The value as it stands in the metric.
    fn as_str(self) -> &'static str;

    /// Its place in [`ALL`](Self::ALL).
    fn index(self) -> usize;
}

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident: $type:ident { $($variant:ident = $text:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $type {
            $(#[doc = concat!("`", $text, "`")] $variant,)+
        }

        impl Label for $type {
            const NAME: &'static str = stringify!($name);
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    )+};
}

labels! {
    /// How a job ended.
    outcome: Ended {
        Success = "success",
        Failed = "failed",
        Canceled = "canceled",
        RunnerLost = "runner_lost",
    }

    /// Why a job was given back.
    reason: GaveBack {
        Declined = "declined",
        AcceptTimeout = "accept_timeout",
        SessionClosed = "session_closed",
        Drain = "drain",
        PodDead = "pod_dead",
    }

    /// What became of a job whose lease ran out.
    outcome: Expired {
        Requeued = "requeued",
        Failed = "failed",
        Canceled = "canceled",
    }

    /// Which limit a caller was over.
    limit: Limit {
        Connections = "connections",
        ConnectionsPerAddress = "connections_per_address",
        StreamsPerConnection = "streams_per_connection",
        Sessions = "sessions",
        SessionsPerToken = "sessions_per_token",
        SlotsPerSession = "slots_per_session",
        HelloTimeout = "hello_timeout",
        MessageBytes = "message_bytes",
        AuthFailuresOfAddress = "auth_failures_of_address",
        AuthFailuresOfToken = "auth_failures_of_token",
    }

    /// Whether certificates could be used that had changed.
    result: Reload {
        Done = "done",
        Failed = "failed",
    }

    /// Why an inbox entry was refused, by class.
    reason: Rejected {
        NotJson = "not_json",
        UnknownVersion = "unknown_version",
        UnknownType = "unknown_type",
        BadField = "bad_field",
        NotApplied = "not_applied",
    }

    /// The type of an inbox message.
    type: InboxType {
        JobPending = "job.pending",
        JobCanceled = "job.canceled",
        JobRunning = "job.running",
        JobFinished = "job.finished",
        RunnerUpserted = "runner.upserted",
        RunnerDeleted = "runner.deleted",
        TenantUpserted = "tenant.upserted",
        ProjectUpserted = "project.upserted",
    }

    /// Why a session ended.
    reason: SessionClosed {
        Goodbye = "goodbye",
        Lost = "lost",
        Drain = "drain",
        Slow = "slow",
        Protocol = "protocol",
        Replaced = "replaced",
        Idle = "idle",
    }

    /// A call to Redis: a script by its name, or any other command.
    call: RedisCall {
        FanOut = "fan_out",
        Take = "take",
        Start = "start",
        Renew = "renew",
        GiveBack = "give_back",
        Finish = "finish",
        Cancel = "cancel",
        Expire = "expire",
        OtherScript = "other_script",
        Wait = "wait",
        Command = "command",
    }

    /// What went wrong in a call to Redis.
    kind: RedisError {
        Timeout = "timeout",
        Connection = "connection",
        Script = "script",
        OutOfMemory = "out_of_memory",
        Auth = "auth",
        Replication = "replication",
        Other = "other",
    }

    /// What a pod did with a wake-up.
    kind: Wake {
        Received = "received",
        PassedOn = "passed_on",
    }

    /// What became of a free slot that came along with a new job.
    outcome: CameAlong {
        HandedOver = "handed_over",
        Unused = "unused",
    }

    /// What a take brought.
    outcome: Took {
        Jobs = "jobs",
        Empty = "empty",
    }
}

impl RedisCall {
    /// A script by its name.
    pub fn of_script(name: &str) -> Self {
        Self::ALL.iter().copied().find(|call| call.as_str() == name).unwrap_or(Self::OtherScript)
    }
}
