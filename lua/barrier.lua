-- barrier: a write that means nothing, for a WAIT behind it.
--
-- Called by `Redis::call_durably` between a script and the WAIT for it: a WAIT answers for what its connection wrote before, and
-- the script may have found everything written by an earlier try on another connection. Safe to repeat.
--
-- KEYS[1]  {jr:<p>}:barrier or {jr:runners}:barrier  string  goes an hour after the last call
--
-- Returns  1
-- Cost O(1)
--
-- flags: allow-oom
-- uses: base

local KEPT_S = 3600

call('SET', KEYS[1], '1', 'EX', KEPT_S)
return 1
