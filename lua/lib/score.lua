-- score: who is next, as one number per zset member. The lowest goes first. Mirrored by `fairness`.
--
-- A double holds 53 bits exactly: 3+10 bits of rank above a queue time, 40 bits of ms; or 11 bits of rank above 42 bits of
-- quarters of a ms.

local EPOCH_MS = 1735689600000 -- 2025-01-01; 40 bits of ms last until 2059
local HEAD_SPAN = 2 ^ 40
local TURNS_PER_MS = 4
local SINCE_SPAN = HEAD_SPAN * TURNS_PER_MS
local PRIORITY_SPAN = 2 ^ 50

-- Queue time as 40 bits.
local function head_of(queued_at_ms)
  local head = queued_at_ms - EPOCH_MS
  if head < 0 then return 0 end
  if head >= HEAD_SPAN then return HEAD_SPAN - 1 end
  return head
end

-- (running + 1/2) / weight as 11 bits: a small float, 6 bits of mantissa, so equal up to one part in 64. The half rounds
-- each tenant's share of few slots to the nearest whole job, up as often as down.
local function share_rank(running, weight)
  local mantissa, exponent = math.frexp(1 + 64 * (running + 0.5) / weight)
  local rank = (exponent - 1) * 64 + math.floor((mantissa - 0.5) * 128)
  if rank > 2047 then return 2047 end
  return rank
end

-- A turn of a tenant, in quarters of a ms, as 42 bits.
local function since_turn(served)
  local since = served - EPOCH_MS * TURNS_PER_MS
  if since < 0 then return 0 end
  if since >= SINCE_SPAN then return SINCE_SPAN - 1 end
  return since
end

-- Since when a tenant waits, as 42 bits: since its first job was queued, or since its last turn where that is later.
local function waits_since(head, served)
  return math.max(head * TURNS_PER_MS, since_turn(served))
end

-- Tenant in an instance lane: smallest share first, then who waits longest.
local function tenant_score(running, weight, since)
  return share_rank(running, weight) * SINCE_SPAN + since
end

-- Bucket of a tenant in an instance lane, or in a group's fair one: priority, then the project's running jobs, then oldest head.
local function bucket_score(priority, running, head)
  if running > 1023 then running = 1023 end
  return (2 - priority) * PRIORITY_SPAN + running * HEAD_SPAN + head
end

-- The same when so many of its project's running jobs are gone; a count that was cut off at 1023 may be more.
local function lowered_score(score, lost)
  local running = math.floor(score / HEAD_SPAN) % 1024
  return score - math.min(lost, running) * HEAD_SPAN
end

-- Bucket in a group or project lane, unless it is fair: priority, then oldest head.
local function fifo_score(priority, head)
  return (2 - priority) * PRIORITY_SPAN + head
end

-- Queue time as it counts where a step of priority is worth so much waiting.
local function aged_head(priority, head, ageing_ms)
  return math.max(0, math.min(head - priority * ageing_ms, HEAD_SPAN - 1))
end

-- Since when a tenant waits, by its score.
local function since_in(score)
  return score % SINCE_SPAN
end

-- Since when a bucket waits, by its score, and a tenant in a plain queue.
local function head_in(score)
  return score % HEAD_SPAN
end
