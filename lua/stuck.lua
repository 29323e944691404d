-- stuck: tell Rails of queued jobs that no online runner could ever take.
--
-- Called by stage `stuck` once per page of buckets. Safe to repeat: what was told is remembered, by bucket, as all jobs of a
-- bucket are alike. The head of a bucket is told of when the bucket has been found stuck for `stuck_after`, and again
-- when the reason or the head is another.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  stuck_after_ms  how long a job must have waited, and its bucket have been found stuck
-- ARGV[2]  memory_ms       how long it is remembered without being found again
-- ARGV[3…] per bucket, 3:  '<fp>:<project>:<priority>', hash of the reason ('': not stuck), JSON members that say the reason
--
-- Returns  how many events were written
-- Cost O(buckets)
--
-- flags: allow-oom
-- uses: base event bucket job look

local stuck_after_ms, memory_ms = tonumber(ARGV[1]), ARGV[2]
local told = 0

for i = 3, #ARGV, 3 do
  local name, reason, extra = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local key = P .. 'stuck:' .. name
  local head = reason ~= '' and first_queued(name)
  if not head then
    call('DEL', key)
  else
    local id, waited_ms = head[2][2], NOW - string.match(head[1], '^%d+')
    local since, last = string.match(call('GET', key) or '', '^(%S+) (.*)$')
    local news = reason .. ' ' .. id
    if since and last ~= news and waited_ms >= stuck_after_ms and NOW - since >= stuck_after_ms then
      local _, attempt = lease_parts(call('HGET', job_key(id), 'lease') or '')
      emit('stuck', id, attempt, ',"jobs":' .. queued_in(name) .. extra)
      told, last = told + 1, news
    end
    call('SET', key, (since or NOW_TEXT) .. ' ' .. (last or ''), 'PX', memory_ms)
  end
end
return told
