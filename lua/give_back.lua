-- give_back: return assigned jobs that never started to their old places in their buckets.
--
-- Called by stage `give_back` when a runner declines, does not accept in time, or goes away; and on drain.
-- Safe to repeat: a job that is queued since the first call is OK again, and what an error cut off is completed.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             who calls; woken through the answer, not by mail
-- ARGV[2]  limit           after so many failed deliveries the job is failed as `undeliverable`
-- ARGV[3]  ended_ttl_ms    how long an end is remembered
-- ARGV[4…] per job, 4:     job id, lease id, reason word, whether it is a failed delivery (0 or 1)
--
-- Returns {outcomes, lanes}. Per job  OK       queued again, or failed for good
--                                     GONE     it ended
--                                     STALE    another lease holds it now
--                                     REFUSED  it has started
--         lanes: those in which the calling pod waited and now has work.
-- Cost O(jobs)
--
-- flags: allow-oom
-- uses: base reply event score pause policy affinity wake project bucket order index group count job

local me, limit, ended_ttl_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local outcomes, mine = {}, {}

for i = 4, #ARGV, 4 do
  local id, lease_id, reason, failed = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local job = load_job(id)
  local outcome
  if not job then
    outcome = GONE
  elseif job.lease_id ~= lease_id then
    outcome = STALE
  elseif job.state == 'queued' then
    if was_cut_off(job) then go_back(job) end
    outcome = OK
  elseif job.state ~= 'assigned' then
    outcome = REFUSED
  else
    outcome = OK
    local failures = (call('HGET', job_key(id), 'failed_deliveries') or 0) + failed
    if failures > limit then
      close(job, 'failed', 'failed', ',"failure_reason":"undeliverable"', ended_ttl_ms)
    else
      requeue(job, reason, 'failed_deliveries', failures)
    end
  end
  outcomes[#outcomes + 1] = outcome
end
settle(me, mine)
return { outcomes, mine }
