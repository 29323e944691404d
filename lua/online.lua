-- online: managers of runners are connected to a pod. Rails is told of those that are new, and of each again once in `again_ms`.
--
-- Called by stage `presence` for managers that came, and about once a minute for all that are there. Safe to repeat.
-- Times are cut into pieces of `again_ms`, for each manager at another point; it is told of when the piece is another than when it
-- was last here. So many pods may say the same, and Rails hears it once.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             where they are connected
-- ARGV[2]  again_ms        how long what was told holds
-- ARGV[3…] per manager, 3: runner id, system id, what it says of itself (a JSON object)
--
-- Returns  how many events were written
-- Cost O(managers × log all)
--
-- uses: base event

local me, again_ms = ARGV[1], tonumber(ARGV[2])
local told = 0

for i = 3, #ARGV, 3 do
  local runner_id, system_id, info = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local manager = runner_id .. ':' .. system_id
  local from = tonumber(string.sub(redis.sha1hex(manager), 1, 8), 16) % again_ms
  local seen = call('ZSCORE', ONLINE, manager)
  if not seen or math.floor((NOW + from) / again_ms) ~= math.floor((seen + from) / again_ms) then
    emit_runner('online', runner_id, system_id, me, ',"info":' .. info)
    told = told + 1
  end
  call('ZADD', ONLINE, NOW_TEXT, manager)
end
return told
