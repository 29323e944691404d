-- cancel: end a job that has not started; tell a running one's runner to stop it.
--
-- Called by stage `fan_out` for `job.canceled`. Safe to repeat. Rails hears `job.canceled` when no runner can start
-- the job any more: now, or when the running one has stopped or its grace is over.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  job id
-- ARGV[2]  reason          a JSON string
-- ARGV[3]  grace_ms        how long the runner has to stop
-- ARGV[4]  ended_ttl_ms    how long an end is remembered; refuses a late job.pending too
--
-- Returns  OK      canceled, or on its way
--          GONE    it had ended already
-- Cost O(1)
--
-- flags: allow-oom
-- uses: base reply event score pause policy affinity wake project bucket order index group count job

local id, reason, grace_ms, ended_ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local job = load_job(id)

if not job then
  if ended(id) then return GONE end
  emit('canceled', id, 0, ',"reason":' .. reason)
  remember_end(id, 'canceled', '', 0, ended_ttl_ms)
elseif job.state == 'queued' then
  close(job, 'canceled', 'canceled', ',"reason":' .. reason, ended_ttl_ms)
elseif job.state == 'assigned' then
  mail(job.pod, 'type', 'revoke', 'job', id, 'lease', job.lease_id, 'reason', 'canceled')
  close(job, 'canceled', 'canceled', ',"reason":' .. reason, ended_ttl_ms)
elseif job.state == 'running' then
  mail(job.pod, 'type', 'cancel', 'job', id, 'lease', job.lease_id, 'grace_ms', grace_ms, 'reason', reason)
  call('ZADD', DEADLINES, NOW + grace_ms, id)
  call('HSET', job_key(id), 'state', 'canceling', 'cancel_reason', reason, 'since_ms', NOW_TEXT)
end
settle()
return OK
