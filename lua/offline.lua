-- offline: managers of runners that no pod has said to be connected for a while: Rails is told that they are gone.
--
-- Called by stage `presence` about once a minute, page by page. Safe to repeat.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             who calls
-- ARGV[2]  silent_ms       for how long
-- ARGV[3]  page            at most so many
--
-- Returns  how many events were written
-- Cost O(page × log all)
--
-- flags: allow-oom
-- uses: base event

local me, silent_ms, page = ARGV[1], ARGV[2], ARGV[3]
local gone = call('ZRANGEBYSCORE', ONLINE, '-inf', string.format('%.0f', NOW - silent_ms), 'LIMIT', 0, page)
for _, manager in ipairs(gone) do
  local runner_id, system_id = string.match(manager, '^(%d+):(.*)$')
  emit_runner('offline', runner_id, system_id, me, '')
  call('ZREM', ONLINE, manager)
end
return #gone
