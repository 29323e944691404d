-- renew: keep jobs that a runner holds alive for another lease, on this pod from now on.
--
-- Called by stage `running` once per batch of beats, and when a runner resumes its jobs on a new session.
-- Safe to repeat; a late call cannot revive a job that another lease has since taken.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             who holds the runner's session now
-- ARGV[2]  lease_ms        how much longer to hold
-- ARGV[3]  tell            1: a new session; tell the record of each job
-- ARGV[4…] per job, 2:     job id, lease id
--
-- Returns, per job  {OK, state, ms left of a cancel's grace or 0, reason or '', record}   state: running or canceling; the record
--                             is for `reassert`; '' unless asked for
--                   {GONE}     it ended
--                   {STALE}    it is queued, another lease holds it, or it was never started
-- Cost O(jobs)
--
-- flags: allow-oom
-- uses: base reply event job

local me, lease_ms, tell = ARGV[1], ARGV[2], ARGV[3] == '1'
local outcomes = {}

local function renew(job)
  local key = job_key(job.id)
  local record = tell and record_text(job.lease, job.bucket, job.holder) or ''
  call('HINCRBY', key, 'beat', 1)
  if job.pod ~= me then
    call('SADD', P .. 'pod:' .. me .. ':jobs', job.id)
    call('SREM', P .. 'pod:' .. job.pod .. ':jobs', job.id)
    call('HSET', key, 'lease', lease_text(job.lease_id, job.attempt, job.tenant, me, job.scope))
  end
  if job.state == 'running' then
    call('ZADD', DEADLINES, NOW + lease_ms, job.id)
    return { OK, 'running', 0, '', record }
  end
  local left = call('ZSCORE', DEADLINES, job.id) - NOW
  return { OK, 'canceling', math.max(0, left), call('HGET', key, 'cancel_reason') or '""', record }
end

for i = 4, #ARGV, 2 do
  local job = load_job(ARGV[i])
  local outcome
  if not job then
    outcome = { GONE }
  elseif job.lease_id ~= ARGV[i + 1] or job.state == 'queued' or job.state == 'assigned' then
    outcome = { STALE }
  else
    outcome = renew(job)
  end
  outcomes[#outcomes + 1] = outcome
end
return outcomes
