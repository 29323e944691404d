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

-- It goes to a slot, whose ARGV begin at `slot`: lease id, runner id, system id. More fields of its record may follow.
local function assign(id, attempt, scope, project_id, slot, me, due, ...)
  local lease_id = ARGV[slot]
  local tenant = project(project_id).tenant -- who pays may have changed since it was queued
  local held_by = holder(lease_id, ARGV[slot + 1], ARGV[slot + 2], me)
  emit('assigned', id, attempt, held_by)
  call('HSET', job_key(id), 'state', 'assigned', 'lease', lease_text(lease_id, attempt, tenant, me, scope),
    'holder', held_by, 'since_ms', NOW_TEXT, ...)
  new_ids[#new_ids + 1] = id
  new_deadlines[#new_deadlines + 1], new_deadlines[#new_deadlines + 2] = due, id
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
