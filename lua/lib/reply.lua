-- reply: what scripts answer, by name. Mirrored by `redis::scripts::Outcome`; tests/tidy.rs compares them.

local OK = 'OK' -- done, now or by an earlier call with the same arguments
local GONE = 'GONE' -- no such job: it ended, or was never here
local STALE = 'STALE' -- another lease holds it now; nothing changed
local REFUSED = 'REFUSED' -- the move is not legal in the job's state; nothing changed
local KNOWN = 'KNOWN' -- the job is here already; nothing changed
