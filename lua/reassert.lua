-- reassert: a Redis that has lost its data hears from a pod again what runs there, and what ended there lately.
--
-- Called by each pod once it sees that the partition is another `instance` than before. Safe to repeat. A job that Rails has
-- published again meanwhile leaves the queue. Its own place there is gone, and perhaps its order: it is never queued again.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             who holds the runners' sessions
-- ARGV[2]  lease_ms        how long the jobs are held without a beat
-- ARGV[3]  ended_ttl_ms    how long an end is remembered
-- ARGV[4…] per job, 5:     job id, record (of `start` or `renew`), status word ('' while it runs), exit code, failure
--                          reason word or ''
--
-- Returns, per job  OK      running, or ended as told
--                   GONE    it has ended otherwise
--                   STALE   another lease holds it, or it was never started
-- Cost O(jobs)
--
-- flags: allow-oom
-- uses: base reply event score pause policy affinity wake project bucket order index group count job assign

local me, lease_ms, ended_ttl_ms = ARGV[1], ARGV[2], ARGV[3]
local due = string.format('%.0f', NOW + lease_ms)
local outcomes = {}

-- The n-th job, and what is remembered of it.
local function job_at(i)
  local id, record, status, exit_code, failure_reason = unpack(ARGV, i, i + 4)
  local lease_id, attempt, tenant, _, scope, bucket, held_by =
    string.match(record, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (.*)$')
  return {
    id = id, lease_id = lease_id, attempt = attempt, scope = scope, tenant = tenant, bucket = bucket, held_by = held_by,
    lease = lease_text(lease_id, attempt, tenant, me, scope), place = bucket .. ' ' .. NO_ENTRY,
    status = status, exit_code = exit_code, failure_reason = failure_reason,
  }
end

-- Whether it is not known here, or waits to be taken for the first time: then it runs on. Else what it is here.
local function is_lost(told)
  local job = load_job(told.id)
  if job then
    if not job.lease then return true, job end
    local runs = job.lease_id == told.lease_id and (job.state == 'running' or job.state == 'canceling')
    return false, job, runs and OK or STALE
  end
  local _, by = ended(told.id)
  if not by then return true end
  return false, nil, told.status ~= '' and by == told.lease_id and OK or GONE
end

local function close_as_told(told)
  close(load_job(told.id), told.status, 'finished', ',"status":"' .. told.status .. '","exit_code":' .. told.exit_code ..
    ',"failure_reason":"' .. told.failure_reason .. '"', ended_ttl_ms, told.lease_id)
end

-- It runs here, under its lease. Its record goes last: what has none that says so is begun anew by the same call.
local function run_on(told, queued)
  if told.status == '' then emit('running', told.id, told.attempt, told.held_by) end
  if queued then leave_queue(queued) end
  call('HSET', job_key(told.id), 'state', 'running', 'lease', told.lease, 'place', told.place, 'holder', told.held_by,
    'tenant', told.tenant, 'max_attempts', '1', 'starts', '1', 'beat', '0', 'since_ms', NOW_TEXT)
end

-- Counted first, all of them: places in lanes go by counts.
local jobs = {}
for i = 4, #ARGV, 5 do
  local told = job_at(i)
  local lost, job, outcome = is_lost(told)
  if lost then
    assigned_before(told.id, told.lease, told.place, due)
    tenants[told.tenant] = nil -- what was read before is old now
  end
  jobs[#jobs + 1] = { told = told, lost = lost, job = job, outcome = outcome or OK }
end
for i, job in ipairs(jobs) do
  if job.lost then run_on(job.told, job.job) end
  if job.told.status ~= '' and job.outcome == OK and load_job(job.told.id) then close_as_told(job.told) end
  outcomes[i] = job.outcome
end
settle(me, {})
return outcomes
