-- due: whose state to look at: jobs whose deadline is past, or would be without a beat soon; and those whose deadline is further
-- ahead than any is set, as it was set before Redis' clock was moved back.
--
-- Called by stage `recover`, every pod, jittered, page by page. Reads only: what is due is watched on the pod's own clock
-- before `expire` is called, as Redis' clock may jump.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  ahead_ms        how far beyond now to look
-- ARGV[2]  longest_ms      no deadline is set further ahead, but for a job that may be silent for longer
-- ARGV[3]  from            the deadline to go on from; '-inf', then as answered
-- ARGV[4]  skip            how many of exactly that deadline were seen; 0, then as answered
-- ARGV[5]  page            at most so many
--
-- Returns {jobs, from, skip, live, primary}. Per job {job id, lease id, state, beat, ms past its deadline (negative: still to go), ms
--         for which one that runs and does not beat may be silent, or ''};
--         from: where to go on, '' when these were the last; live: how many leases there are in all; primary: names the
--         server and its history
-- Cost O(page + log jobs)
--
-- flags: allow-oom
-- uses: base event job

local longest_ms, from, skip, page = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local live = call('ZCARD', DEADLINES)
-- The run id is another one after each start; the replication id after each promotion.
local info = call('INFO', 'server', 'replication')
local primary = info:match('run_id:(%x+)') .. ' ' .. info:match('master_replid:(%x+)')
local watched = {}
local near, far = NOW + ARGV[1], NOW + longest_ms
local start = from == '-inf' and -math.huge or tonumber(from)

local function read(first, last, after, at_most)
  return call('ZRANGEBYSCORE', DEADLINES, first, last, 'WITHSCORES', 'LIMIT', after, at_most)
end

local due = start <= near and read(from, string.format('%.0f', near), skip, page) or {}
if #due < 2 * page then
  local rest = page - #due / 2
  local astray = start > far and read(from, '+inf', skip, rest) or read(string.format('(%.0f', far), '+inf', 0, rest)
  for _, value in ipairs(astray) do due[#due + 1] = value end
end
for i = 1, #due, 2 do
  local job = load_job(due[i])
  if job then
    local f = call('HMGET', job_key(job.id), 'beat', 'silent_ms')
    local ahead = due[i + 1] - NOW
    -- Only while it runs: what is being canceled has its grace, and no longer.
    local silent_ms = job.state == 'running' and f[2] or ''
    if silent_ms == '' or ahead <= tonumber(ARGV[1]) or ahead > tonumber(silent_ms) then
      watched[#watched + 1] = { job.id, job.lease_id, job.state, f[1] or '', -ahead, silent_ms }
    end
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
