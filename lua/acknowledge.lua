-- acknowledge: Rails says that a runner runs a job, of those that report to it and not to us.
--
-- Called by stage `fan_out` for `job.running`. Rails lets one runner have a job, the first that says so. Mostly that is the one that
-- it was handed to. Where the router had given the job back meanwhile, or Rails had handed it out itself, the job leaves the
-- queue, or the other runner. Safe to repeat, and what an error cut off is completed.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             who calls
-- ARGV[2]  margin_ms       how much longer than it may run a job may be silent: such a runner does not beat. Rails tells its end too;
--                          should it never do so, the job is over by then
-- ARGV[3]  job id
-- ARGV[4]  offer id        of this call; of it a lease is made where the job was handed to no runner, or to another
-- ARGV[5]  runner id       '': Rails does not say; then it is the one that it was handed to
-- ARGV[6]  system id       ''
--
-- Returns  OK       it runs there
--          GONE     it ended, or was never here
--          STALE    it is queued, and Rails does not say who runs it
--          REFUSED  it is being canceled
-- Cost O(lanes in which its project stands)
--
-- flags: allow-oom
-- uses: base reply event score pause policy wake project bucket order index group job assign

local me, margin_ms, id, runner_id, system_id = ARGV[1], ARGV[2], ARGV[3], ARGV[5], ARGV[6]
local OFFER = 4 -- where the slot that it is handed to begins

local job = load_job(id)
if not job then return GONE end
if job.state == 'running' then return OK end
if job.state == 'canceling' then return REFUSED end

-- Whether it was handed to that runner.
local function is_handed_there()
  if job.state ~= 'assigned' then return false end
  return runner_id == '' or string.find(job.holder, ',"runner_id":' .. runner_id .. ',"system_id":"' .. system_id .. '"', 1, true)
end

-- How long it may be silent: as long as it may run, and some more.
local silent_ms = 1000 * string.match(call('GETRANGE', P .. 'order:' .. id, 0, 31), '^{"timeout_s":(%d+)') + margin_ms
local due = string.format('%.0f', NOW + silent_ms)

-- Last of all: what does not run is begun anew by the same call.
local function goes_on(...)
  local starts = (call('HGET', job_key(id), 'starts') or 0) + 1
  call('ZADD', DEADLINES, due, id)
  call('HSET', job_key(id), 'state', 'running', 'beat', '0', 'starts', starts, 'since_ms', NOW_TEXT, 'silent_ms',
    string.format('%.0f', silent_ms), ...)
end

if is_handed_there() then
  mail(job.pod, 'type', 'started', 'job', id, 'lease', job.lease_id)
  emit('running', id, job.attempt, job.holder)
  goes_on()
  return OK
end
if runner_id == '' then return STALE end

local _, project_id = bucket_parts(job.bucket)
local attempt = tostring(job.attempt + 1)
local tenant, scope, place = project(project_id).tenant, job.scope, job.bucket .. ' ' .. job.entry_id
if job.state == 'assigned' then -- it counts where it was taken
  tenant = job.tenant
  mail(job.pod, 'type', 'revoke', 'job', id, 'lease', job.lease_id, 'reason', 'runs_elsewhere')
  emit('requeued', id, job.attempt, job.holder .. ',"reason":"runs_elsewhere"')
  call('SREM', P .. 'pod:' .. job.pod .. ':jobs', id)
else
  scope = scope or in_scope(project_id, 'instance') and 'instance' or 'project:' .. project_id
  leave_queue(job)
  place = job.bucket .. ' ' .. NO_ENTRY
end

local held_by = holder(lease_of(OFFER, id, attempt), runner_id, system_id, me)
local lease = lease_text(lease_of(OFFER, id, attempt), attempt, tenant, me, scope)
assigned_before(id, lease, place, due)
emit('assigned', id, attempt, held_by)
emit('running', id, attempt, held_by)
-- Without a place it cannot be queued again.
goes_on('lease', lease, 'holder', held_by, 'place', place, 'tenant', tenant, unpack(job.state == 'queued' and { 'max_attempts', '1' } or {}))
return OK
