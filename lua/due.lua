-- due: whose state to look at: jobs whose deadline is past, or would be without a beat soon.
--
-- Called by stage `recover`, every pod, jittered, page by page. Reads only: what is due is watched on the pod's own clock
-- before `expire` is called, as Redis' clock may jump.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  ahead_ms        how far beyond now to look
-- ARGV[2]  from            the deadline to go on from; '-inf', then as answered
-- ARGV[3]  skip            how many of exactly that deadline were seen; 0, then as answered
-- ARGV[4]  page            at most so many
--
-- Returns {jobs, from, skip, live, primary}. Per job {job id, lease id, state, beat, ms past its deadline (negative: still to go)};
--         from: where to go on, '' when these were the last; live: how many leases there are in all; primary: names the
--         server and its history
-- Cost O(page + log jobs)
--
-- flags: allow-oom
-- uses: base event job

local from, skip, page = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local live = call('ZCARD', DEADLINES)
-- The run id is another one after each start; the replication id after each promotion.
local info = call('INFO', 'server', 'replication')
local primary = info:match('run_id:(%x+)') .. ' ' .. info:match('master_replid:(%x+)')
local watched = {}
local until_ms = string.format('%.0f', NOW + ARGV[1])
local due = call('ZRANGEBYSCORE', DEADLINES, from, until_ms, 'WITHSCORES', 'LIMIT', skip, page)
for i = 1, #due, 2 do
  local job = load_job(due[i])
  if job then
    local beat = call('HGET', job_key(job.id), 'beat') or ''
    watched[#watched + 1] = { job.id, job.lease_id, job.state, beat, NOW - due[i + 1] }
  end
end

if #due < 2 * page then return { watched, '', 0, live, primary } end
-- By deadline and not by rank: one that is renewed between two pages moves no other.
local last, same = due[#due], 0
for i = #due, 2, -2 do
  if due[i] ~= last then break end
  same = same + 1
end
if last == from then same = same + skip end
return { watched, last, same, live, primary }
