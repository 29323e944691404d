-- assign: give queued jobs to free slots of a pod's runners.

local new_ids, new_deadlines = {}, {} -- what this call assigns, for `write_assigned`

-- A job is taken in a lane of this scope, and counts there from now on.
local function count_taken(id, scope, project_id)
  if scope == 'instance' then
    count(project(project_id).tenant, project_id, id)
  else
    count_in(scope, project_id, id)
  end
end

-- The lease of a slot on a job, in the partition that the offer names. A call may come again when nobody knows of the first one
-- any more, and the slot then has another job, or the same one later: that is never the same lease.
local function lease_of(slot, id, attempt)
  local offer = ARGV[slot]
  return string.sub(offer, 1, 4) .. string.sub(redis.sha1hex(offer .. ' ' .. id .. ' ' .. attempt), 1, 28)
end

-- Until when the runner of a slot has to accept: its own time, or else that of the call.
local function due_of(slot, accept_ms)
  return string.format('%.0f', NOW + (tonumber(ARGV[slot + 3]) or accept_ms))
end

-- It goes to a slot, whose ARGV begin at `slot`: offer id, runner id, system id, how long its runner has to accept ('': as all).
-- More fields of its record may follow. Answers the lease id.
local function assign(id, attempt, scope, project_id, slot, me, accept_ms, ...)
  local lease_id = lease_of(slot, id, attempt)
  local tenant = project(project_id).tenant -- who pays may have changed since it was queued
  local held_by = holder(lease_id, ARGV[slot + 1], ARGV[slot + 2], me)
  emit('assigned', id, attempt, held_by)
  call('HSET', job_key(id), 'state', 'assigned', 'lease', lease_text(lease_id, attempt, tenant, me, scope),
    'holder', held_by, 'since_ms', NOW_TEXT, ...)
  new_ids[#new_ids + 1] = id
  new_deadlines[#new_deadlines + 1], new_deadlines[#new_deadlines + 2] = due_of(slot, accept_ms), id
  return lease_id
end

-- The end of every script that assigns.
local function write_assigned(me)
  write_counts()
  if not new_ids[1] then return end
  call('ZADD', DEADLINES, unpack(new_deadlines))
  call('SADD', P .. 'pod:' .. me .. ':jobs', unpack(new_ids))
end

-- A job that an earlier call assigned, and perhaps did not come as far as `write_assigned`.
local function assigned_before(id, lease, place, due)
  local _, _, tenant, pod, scope = lease_parts(lease)
  call('ZADD', DEADLINES, 'NX', due, id)
  call('SADD', P .. 'pod:' .. pod .. ':jobs', id)
  local _, project_id = bucket_parts(string.match(place, '^%S+'))
  if scope ~= 'instance' then return count_in(scope, project_id, id) end
  call('SADD', P .. 'running:' .. tenant .. ':' .. project_id, id)
  call('SADD', P .. 'running:' .. tenant, id)
end
