-- wake: hand work to a pod that waits for it.
--
-- A pod that found nothing in a lane stands in waiting:<lane>, best first. Who adds a job takes it out
-- and wakes it; a woken pod takes, or passes the wake on. So no wake is lost while its pod lives, and
-- `recover` passes on those of a dead pod.

local SILENT_AFTER_MS = 5000 -- a pod this silent may be dead: others are woken too

-- Mail for one pod that is known: it may be late, but reads its mail when it is back; if it is buried, its wakes are passed
-- on. Answers whether it has been heard of lately.
local function mail(pod, ...)
  local seen = call('ZSCORE', KEYS[2], pod)
  if not seen then return false end
  call('XADD', P .. 'mail:' .. pod, 'MAXLEN', '~', 10000, '*', ...)
  return NOW - seen <= SILENT_AFTER_MS
end

-- Takes the best waiting pod of a lane and wakes it. `me` is not mailed: it is answered true instead.
local function wake_one(lane, me)
  local waiting = P .. 'waiting:' .. lane
  for _ = 1, STEPS do
    local best = call('ZPOPMIN', waiting)
    if not best[1] then return false end
    if best[1] == me then return true end
    if mail(best[1], 'type', 'wake', 'lane', lane) then return false end
  end
  return false
end
