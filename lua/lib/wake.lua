-- wake: hand work to a pod that waits for it.
--
-- waiting:<lane>  zset  pods with a free slot; score: its rank, lowest first, and a little more for each wake since it came
--
-- A pod that has slots left over when it has looked at a lane stands in it until a take fills its slots, or it passes a wake
-- on. Who adds a job wakes the best one, which takes, or passes the wake on. So no wake is lost while its pod lives, and
-- `recover` passes on those of a dead pod.

local SILENT_AFTER_MS = 5000 -- a pod this silent may be dead: others are woken too

local WOKEN = 1 / 1048576 -- who was woken goes behind its equals: the next wake is another's

-- Mail for one pod: it may be late, but reads its mail when it is back; if it is buried, its wakes are passed on. Answers
-- whether it has been heard of lately; nil: it is not known.
local function mail(pod, ...)
  local seen = call('ZSCORE', KEYS[2], pod)
  if not seen then return nil end
  call('XADD', P .. 'mail:' .. pod, 'MAXLEN', '~', 10000, '*', ...)
  return NOW - seen <= SILENT_AFTER_MS
end

local function is_alive(pod)
  local seen = call('ZSCORE', KEYS[2], pod)
  return seen and NOW - seen <= SILENT_AFTER_MS
end

-- Whether a job that was queued then still waits for a manager of this pod. Rails may have dated it ahead.
local function waits_for(pod, queued_at_ms, wait_ms)
  return math.min(queued_at_ms, NOW) + wait_ms > NOW and is_alive(pod)
end

-- Whether a pod waits there, with a rank that is not worse than this score's.
local function is_as_good(waiting, pod, score)
  local own = call('ZSCORE', waiting, pod)
  return own and math.floor(own) <= math.floor(score)
end

-- Wakes the best pod that waits in a lane. `me` is not mailed: it is answered true instead. With an `order`, of equals the pod
-- of the manager that its job likes, which is named in the letter.
local function wake_one(lane, me, order)
  if paused('lane:', lane) then return false end -- whoever ends the pause wakes
  local waiting = P .. 'waiting:' .. lane
  local liked, manager, liked_pod -- looked up once
  for _ = 1, STEPS do
    local first = call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
    local best, likes = first[1], nil
    if not best then return false end
    if order and liked == nil then
      liked = call('GET', affinity_key(order))
      if liked then manager, liked_pod = liked_parts(liked) end
    end
    if liked_pod and is_as_good(waiting, liked_pod, tonumber(first[2])) then
      best, likes = liked_pod, manager
    end
    if best == me then return true end
    local lately
    if likes then
      lately = mail(best, 'type', 'wake', 'lane', lane, 'likes', likes)
    else
      lately = mail(best, 'type', 'wake', 'lane', lane)
    end
    if lately then
      call('ZINCRBY', waiting, WOKEN, best)
      return false
    end
    call('ZREM', waiting, best) -- if it is back, it reads its mail, or the lanes anew
  end
  return false
end

-- Whether a pod of a better rank waits in a lane: what is there is for that one, which has been woken, until it is full.
local function is_anothers(lane, me, rank)
  local best = call('ZRANGE', P .. 'waiting:' .. lane, 0, 0, 'WITHSCORES')
  if not best[1] or best[1] == me or math.floor(best[2]) >= rank then return false end
  return is_alive(best[1])
end
