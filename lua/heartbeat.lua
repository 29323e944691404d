-- heartbeat: this pod is alive; who else is? And is this the Redis that we know?
--
-- Called by stage `recover` every `pod_heartbeat`, and whenever a job that runs here is not known. Safe to repeat.
-- An empty Redis gets a name. It is new, or has lost all: runners that no pod knows of may still run what Rails is about to
-- publish again. So nothing is assigned for `hold_ms`, by when they have stopped.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             who calls
-- ARGV[2]  mail_read       id of the last mail it has dealt with; older mail goes away
-- ARGV[3]  mail_ttl_ms     how long mail outlives a pod that nobody buries
-- ARGV[4]  instance        a name for a Redis that has none
-- ARGV[5]  hold_ms         how long such a one is paused; 0: not at all
--
-- Returns {new, pods, instance}. new: 1 when the pod was not known, at its start or after others took it for dead; pods:
--         {pod, last heartbeat} pairs, flat, at most 1,000; instance: the name of this Redis
-- Cost O(pods)
--
-- flags: allow-oom
-- uses: base event pause wake

local me, mail_read, mail_ttl_ms, hold_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[5])

local NOTE = '"Redis is new, or has lost its data: publish all that is pending or running. A runner that was cut off may ' ..
  'still run some of it; if there is none, resume"'

-- An operator's pause that is as long stays as it is.
local function hold(until_ms)
  local known = call('HGET', PAUSED, 'all')
  local ends = known and string.match(known, '"until_ms":(%d+)')
  if known and (not ends or tonumber(ends) >= until_ms) then return end
  local until_text = string.format('%.0f', until_ms)
  local members = ',"until_ms":' .. until_text .. ',"by":"job-router","note":' .. NOTE
  emit_queue('paused', 'all', '"all"', members)
  write_pause('all', NOW_TEXT, until_text, members)
end

local instance = call('GET', INSTANCE)
if not instance then
  if hold_ms > 0 then hold(NOW + hold_ms) end
  instance = ARGV[4]
  emit_empty(instance)
  call('SET', INSTANCE, instance) -- last: until then nothing is assigned, and the same call does it all
end
local new = call('ZADD', KEYS[2], NOW_TEXT, me)
local mailbox = P .. 'mail:' .. me
call('XTRIM', mailbox, 'MINID', '~', mail_read)
call('PEXPIRE', mailbox, mail_ttl_ms)
return { new, call('ZRANGE', KEYS[2], 0, 999, 'WITHSCORES'), instance }
