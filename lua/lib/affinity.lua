-- affinity: which manager of a runner had the last job with a key. The next one likes to go there.
--
-- affinity:<key>  string  '<runner id> <system id> <pod> <rank>', kept `affinity_memory`; the key as it stands in the job's order

local ORDER_HEAD = 4096 -- longer than the first line of any order

-- The key under which it is kept who ran jobs like that of this order.
local function affinity_key(order)
  return P .. 'affinity:' .. string.match(order, '"affinity":"(.-)","traceparent"')
end

-- The manager, '<runner id> <system id>', the pod that it was connected to, and its rank.
local function liked_parts(liked)
  local manager, pod, rank = string.match(liked, '^(%S+ %S+) (%S+) ?(%S*)$') -- an older pod writes no rank
  return manager, pod, tonumber(rank) or 0
end

-- A slot of this rank, whose ARGV begin at `slot`, gets the job of this order.
local function remember_affinity(order, slot, rank, me, memory_ms)
  local liked = ARGV[slot + 1] .. ' ' .. ARGV[slot + 2] .. ' ' .. me .. ' ' .. rank
  call('SET', affinity_key(order), liked, 'PX', memory_ms)
end
