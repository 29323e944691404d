-- start: record that a runner accepted its job; only after this may it run.
--
-- Called by stage `start` once per batch of accepted jobs. Safe to repeat: a job already started under this
-- lease is OK again.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  lease_ms        how long the lease lasts without a beat
-- ARGV[2…] per job, 2:     job id, lease id
--
-- Returns, per job  {OK, record}  running; the record is for `reassert`
--                   GONE      it ended, canceled perhaps: do not start
--                   STALE     given back, or another lease holds it: do not start
--                   REFUSED   it is being canceled: do not start
-- Cost O(jobs)
--
-- flags: allow-oom
-- uses: base reply event job

local due = string.format('%.0f', NOW + ARGV[1])
local outcomes = {}
local deadlines = {}
local starts_of = {} -- by job that starts now: which start of it this is

for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local f = call('HMGET', job_key(id), 'state', 'lease', 'holder', 'starts', 'place')
  local state = f[1]
  local lease_id, attempt = lease_parts(f[2] or '')
  local outcome
  if not state then
    outcome = GONE
  elseif lease_id ~= ARGV[i + 1] or state == 'queued' then
    outcome = STALE
  elseif state == 'canceling' then
    outcome = REFUSED
  else
    outcome = { OK, record_text(f[2], f[5], f[3]) }
    if state == 'assigned' and not starts_of[id] then
      starts_of[id] = f[4] and tostring(f[4] + 1) or '1'
      deadlines[#deadlines + 1], deadlines[#deadlines + 2] = due, id
      emit('running', id, attempt, f[3])
    end
  end
  outcomes[#outcomes + 1] = outcome
end
if deadlines[1] then call('ZADD', DEADLINES, unpack(deadlines)) end
-- Last: what is assigned is begun anew by the same call.
for id, starts in pairs(starts_of) do
  call('HSET', job_key(id), 'state', 'running', 'beat', '0', 'starts', starts, 'since_ms', NOW_TEXT)
end
return outcomes
