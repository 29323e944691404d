-- sweep: look which lanes have work and which pauses are over, forget what is long unused or of closed scopes, trim the events.
--
-- Called by stage `recover` once a second, jittered. Safe to repeat. A pod that sees the same head twice, has a free
-- slot for it and thinks that it waits there has lost a wake: it takes, and counts.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  cursor          of the lanes; 0, then as answered
-- ARGV[2]  idle_ms         a lane unused for so long is closed
-- ARGV[3]  events_max      the event stream is trimmed to about so many entries
-- ARGV[4]  scope_ttl_ms    a scope no pod has spoken for since is closed
--
-- Returns {next cursor, lanes, heads, pauses}: lanes with work that are not paused, and what is at their head; with cursor 0 the
--         pauses whose time is over, {target, end} pairs, flat
-- Cost O(64), and for each instance lane of 64 whose scope was closed 64 tenants
--
-- flags: allow-oom
-- uses: base pause project index

local cursor, idle_ms, events_max, scope_ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local lanes, heads = {}, {}
local page = call('HSCAN', LANES, cursor, 'COUNT', STEPS)
call('ZREMRANGEBYSCORE', SCOPES, 1, string.format('%.0f', NOW - scope_ttl_ms))

-- A bucket leaves the lanes of the scopes that are open to it, and no other: what stood in those of a scope as it was closed stays.
-- Should it open again, all that is queued is indexed for it anew.
local function clear_if_closed(lane)
  local scope, fp = string.match(lane, '^(.*):([^:]+)$')
  if call('ZSCORE', SCOPES, scope) then return false end
  local key = lane_key(lane)
  if scope ~= 'instance' then return call('UNLINK', key) end
  for _, tenant in ipairs(call('ZRANGE', key, 0, STEPS - 1)) do
    call('UNLINK', key .. ':' .. tenant)
    call('SREM', P .. 'tenant:' .. tenant .. ':lanes', fp)
    call('ZREM', key, tenant)
  end
  return true
end

for i = 1, #page[2], 2 do
  local lane, used_at_ms = page[2][i], tonumber(page[2][i + 1])
  local head = call('ZRANGE', lane_key(lane), 0, 0, 'WITHSCORES')
  if head[1] and clear_if_closed(lane) then head = call('ZRANGE', lane_key(lane), 0, 0, 'WITHSCORES') end
  if head[1] then
    if NOW - used_at_ms > idle_ms / 4 then call('HSET', LANES, lane, NOW_TEXT) end
    if not paused('lane:', lane) then lanes[#lanes + 1], heads[#heads + 1] = lane, head[1] .. ' ' .. head[2] end
  elseif NOW - used_at_ms > tonumber(idle_ms) then
    call('HDEL', LANES, lane)
    call('DEL', P .. 'waiting:' .. lane)
  end
end

local over = cursor == '0' and call('ZRANGEBYSCORE', PAUSE_ENDS, '-inf', NOW_TEXT, 'WITHSCORES', 'LIMIT', 0, STEPS) or {}
call('XTRIM', P .. 'events', 'MAXLEN', '~', events_max)
return { page[1], lanes, heads, over }
