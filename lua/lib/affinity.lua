-- affinity: which manager of a runner had the last job with a key. The next one likes to go there.
--
-- affinity:<key>  string  '<runner id> <system id> <pod>', kept `affinity_memory`; the key as it stands in the job's order

local ORDER_HEAD = 4096 -- longer than the first line of any order

-- The key under which it is kept who ran jobs like that of this order.
local function affinity_key(order)
  return P .. 'affinity:' .. string.match(order, '"affinity":"(.-)","traceparent"')
end

-- The manager, '<runner id> <system id>', and the pod that it was connected to.
local function liked_parts(liked)
  return string.match(liked, '^(%S+ %S+) (%S+)$')
end

-- A slot whose ARGV begin at `slot` gets the job of this order.
local function remember_affinity(order, slot, me, memory_ms)
  call('SET', affinity_key(order), ARGV[slot + 1] .. ' ' .. ARGV[slot + 2] .. ' ' .. me, 'PX', memory_ms)
end
