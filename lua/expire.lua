-- expire: a runner has not been heard of for a whole lease: queue its job again, or fail it.
--
-- Called by stage `recover` with what a pod itself has seen unchanged for a whole lease on its own clock; the
-- script checks that it is still so. Safe to repeat. What an error cut off on its way back, or at its end, still has its deadline,
-- so it comes here too, and is completed.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             who calls; woken through the answer, not by mail
-- ARGV[2]  ended_ttl_ms    how long an end is remembered
-- ARGV[3…] per job, 3:     job id, lease id, beat as seen
--
-- Returns {outcomes, lanes}. Per job  'requeued', 'failed' or 'canceled'   what became of it
--                                     GONE     it had ended
--                                     STALE    another lease holds it, or its beat has moved
--         lanes: those in which the calling pod waited and now has work.
-- Cost O(jobs)
--
-- flags: allow-oom
-- uses: base reply event score pause policy affinity wake project bucket order index group count job

local me, ended_ttl_ms = ARGV[1], ARGV[2]
local outcomes, mine = {}, {}

local function expire(id, lease_id, beat)
  local job = load_job(id)
  if not job then return GONE end
  if job.lease_id == lease_id and was_cut_off(job) then
    go_back(job)
    return 'requeued'
  elseif job.lease_id == lease_id and ended(id) then
    close_record(job)
    return GONE
  end
  local f = call('HMGET', job_key(id), 'beat', 'starts', 'max_attempts', 'cancel_reason', 'silent_ms')
  if job.lease_id ~= lease_id or job.state == 'queued' or (f[1] or '') ~= beat then return STALE end
  mail(job.pod, 'type', 'revoke', 'job', id, 'lease', lease_id, 'reason', 'expired')
  if job.state == 'canceling' then
    close(job, 'canceled', 'canceled', ',"reason":' .. (f[4] or '""'), ended_ttl_ms)
    return 'canceled'
  end
  if job.state == 'assigned' or tonumber(f[2] or 0) < tonumber(f[3] or 1) then
    if f[5] then call('HDEL', job_key(id), 'silent_ms') end -- the next runner may be one that beats
    requeue(job, job.state == 'assigned' and 'accept_timeout' or 'runner_lost')
    return 'requeued'
  end
  close(job, 'failed', 'failed', ',"failure_reason":"runner_lost"', ended_ttl_ms)
  return 'failed'
end

for i = 3, #ARGV, 3 do
  outcomes[#outcomes + 1] = expire(unpack(ARGV, i, i + 2))
end
settle(me, mine)
return { outcomes, mine }
