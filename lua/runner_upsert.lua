-- runner_upsert: a runner's record, or its deletion, into the registry.
--
-- Called by stage `fan_out` for `runner.upserted` and `runner.deleted`. Safe to repeat and to call out of order: the
-- newest inbox entry wins.
--
-- KEYS[1]  {jr:runners}:id:<id>           hash    version, token_sha256, record (JSON; '' when deleted)
-- KEYS[2]  {jr:runners}:token:<sha256>    string  runner id (the new token's; of a deletion: KEYS[1] again)
-- KEYS[3]  {jr:runners}:changes           stream  runner ids whose record changed, for pods to follow
-- KEYS[4]  {jr:runners}:ids               set     ids of runners that are not deleted
-- ARGV[1]  runner id
-- ARGV[2]  version         inbox entry id
-- ARGV[3]  token_sha256    hex, or '' when deleted
-- ARGV[4]  record          JSON, or '' when deleted
-- ARGV[5]  token prefix    '{jr:runners}:token:', to drop the former token's key
--
-- Returns  OK     it is the newest now, or was already
--          STALE  a newer one is known; nothing changed
-- Cost O(1)
--
-- uses: base reply version

local FORGET_MS = 7 * 24 * 3600 * 1000 -- a deletion outlives any late upsert

local id, version, token, record, token_prefix = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local known = redis.call('HMGET', KEYS[1], 'version', 'token_sha256')
if known[1] == version then
  if record == '' then redis.call('PEXPIRE', KEYS[1], FORGET_MS) end
  return OK
end
if not newer(version, known[1]) then return STALE end
-- A former token goes, unless another runner has it by now.
if known[2] and known[2] ~= '' and known[2] ~= token and redis.call('GET', token_prefix .. known[2]) == id then
  redis.call('DEL', token_prefix .. known[2])
end
if record == '' then
  redis.call('SREM', KEYS[4], id)
else
  redis.call('PERSIST', KEYS[1])
  redis.call('SADD', KEYS[4], id)
  redis.call('SET', KEYS[2], id)
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 10000, '*', 'id', id)
-- Last: until its version is written, the same call is newer.
redis.call('HSET', KEYS[1], 'version', version, 'token_sha256', token, 'record', record)
if record == '' then redis.call('PEXPIRE', KEYS[1], FORGET_MS) end
return OK
