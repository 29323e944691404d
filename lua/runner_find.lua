-- runner_find: whose token is this?
--
-- Called by stage `admit` when a runner connects. Reads only.
--
-- KEYS[1]  {jr:runners}:token:<sha256>  string  runner id
-- ARGV[1]  id prefix       '{jr:runners}:id:'
--
-- Returns  the runner's record as JSON, or nil
-- Cost O(1)
--
-- flags: no-writes
-- uses: base

local id = redis.call('GET', KEYS[1])
return id and redis.call('HGET', ARGV[1] .. id, 'record')
