-- jobs: a page of the jobs that have not ended, for Rails to compare with what it knows.
--
-- Called by `job-router jobs list`, page by page. Reads only. First what is queued, bucket by bucket, then what is held. A job that is
-- taken meanwhile may be told twice; one that goes back to the queue meanwhile may be left out.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  from            '' to begin, then as answered
-- ARGV[2]  page            about so many
--
-- Returns {jobs, from}. Per job {id, state, tenant, bucket, lease or '', holder, since_ms or ''}; from: where to go on, '' when these
--         were the last
-- Cost O(page)
--
-- flags: no-writes
-- uses: base event bucket job

local page = tonumber(ARGV[2])
local jobs = {}

-- Those of these ids that are queued, or those that are not.
local function add(ids, queued)
  for _, id in ipairs(ids) do
    local f = call('HMGET', job_key(id), 'state', 'tenant', 'place', 'lease', 'holder', 'since_ms')
    if f[1] and (f[1] == 'queued') == queued then
      local held_by = not queued and f[5] or ''
      jobs[#jobs + 1] = { id, f[1], f[2], string.match(f[3], '^%S+'), f[4] or '', held_by, f[6] or '' }
    end
  end
end

-- Goes on in the buckets; answers where to go on, or nil when all of them were seen.
local function read_queued(member, entry_id)
  local seen = 0
  for _ = 1, STEPS do
    if not entry_id then
      member = call('ZRANGEBYLEX', BUCKETS, member == '' and '-' or '(' .. member, '+', 'LIMIT', 0, 1)[1]
      if not member then return nil end
      entry_id = '0'
    end
    local entries = call('XRANGE', bucket_key(bucket_of_member(member)), '(' .. entry_id, '+', 'COUNT', page - seen)
    local ids = {}
    for i, entry in ipairs(entries) do ids[i] = entry[2][2] end
    add(ids, true)
    seen = seen + #entries
    if seen >= page then return 'q ' .. member .. ' ' .. entries[#entries][1] end
    entry_id = nil
  end
  return 'q ' .. member
end

local phase, first, second = string.match(ARGV[1] == '' and 'q' or ARGV[1], '^(%a) ?(%S*) ?(%S*)$')
local from
if phase == 'q' then
  from = read_queued(first, second ~= '' and second or nil) or 'h 0'
else
  local answer = call('ZSCAN', DEADLINES, first, 'COUNT', page)
  local ids = {}
  for i = 1, #answer[2], 2 do ids[#ids + 1] = answer[2][i] end
  add(ids, false)
  from = answer[1] ~= '0' and 'h ' .. answer[1] or ''
end
return { jobs, from }
