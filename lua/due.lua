-- due: whose state to look at: jobs whose deadline is past, or would be without a beat soon.
--
-- Called by stage `recover`, every pod, jittered. Reads only: what is due is watched on the pod's own clock before
-- `expire` is called, as Redis' clock may jump.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  ahead_ms        how far beyond now to look
-- ARGV[2]  limit           at most so many
--
-- Returns, per job  {job id, lease id, state, beat, ms past its deadline (negative: still to go)}
-- Cost O(limit + log jobs)
--
-- flags: allow-oom
-- uses: base event bucket order job

local watched = {}
local until_ms = string.format('%.0f', NOW + ARGV[1])
local due = call('ZRANGEBYSCORE', DEADLINES, '-inf', until_ms, 'WITHSCORES', 'LIMIT', 0, ARGV[2])
for i = 1, #due, 2 do
  local job = load_job(due[i])
  if job then
    local beat = call('HGET', job_key(job.id), 'beat') or ''
    watched[#watched + 1] = { job.id, job.lease_id, job.state, beat, NOW - due[i + 1] }
  end
end
return watched
