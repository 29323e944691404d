-- index: which buckets stand in which lanes, and in what order.
--
-- lane:<scope>:<fp>           zset  instance: tenants; group and project: '<project>:<priority>'
-- lane:instance:<fp>:<tenant> zset  the tenant's '<project>:<priority>' there
-- tenant:<key>:lanes          set   fingerprints in whose instance lane the tenant has queued jobs
-- lanes                       hash  lane -> ms when it was opened or last seen in use
-- capabilities                hash  fingerprint -> what its jobs need, as JSON
--
-- Scores are lower bounds: a job that starts somewhere else makes them too low, which `take` finds and
-- mends; one that ends would make them too high, so `place_freed` mends those at the end of its call.

local LANES = P .. 'lanes'
local CAPABILITIES = P .. 'capabilities'

local function lane_key(lane)
  return P .. 'lane:' .. lane
end

local noted = {} -- '<tenant> <fp>' of lanes that `note_lane` has noted in this call

-- A tenant has queued jobs in this instance lane. Before they stand there: they are new there only once.
local function note_lane(tenant, fp)
  if noted[tenant .. ' ' .. fp] then return end
  call('SADD', P .. 'tenant:' .. tenant .. ':lanes', fp)
  noted[tenant .. ' ' .. fp] = true
end

-- Puts a tenant where it belongs in an instance lane, by its first bucket there; takes it out when it
-- has none, or has as many running jobs as it may.
local function place_tenant(fp, tenant)
  local lane = lane_key('instance:' .. fp)
  local first, score = first_of(lane .. ':' .. tenant)
  if not first then
    set_place(lane, tenant, nil)
    call('SREM', P .. 'tenant:' .. tenant .. ':lanes', fp)
    noted[tenant .. ' ' .. fp] = nil
  elseif tenant_capped(tenant) then
    set_place(lane, tenant, nil)
  else
    local t = tenant_of(tenant)
    local head = head_in(score)
    set_place(lane, tenant, plain_score(fp, 0, head) or tenant_score(t.running, t.weight, waits_since(head, t.served)))
  end
end

local PODS_MAX = 1000 -- as many as a heartbeat answers; a lane opens too seldom for its cost to matter

-- First use of a lane: all pods learn of it, so that their runners can match it. It is open once all have been told.
local function open_lane(lane, fp)
  if call('HEXISTS', LANES, lane) == 1 then return end
  local capability = call('HGET', CAPABILITIES, fp)
  for _, pod in ipairs(call('ZRANGE', KEYS[2], 0, PODS_MAX - 1)) do
    mail(pod, 'type', 'lane', 'lane', lane, 'capability', capability)
  end
  call('HSET', LANES, lane, NOW_TEXT)
end

-- A cap that was reached is not any more: the lane may have been closed meanwhile, and a pod may wait there.
local function uncapped(fp)
  open_lane('instance:' .. fp, fp)
  wake_one('instance:' .. fp, '')
end

-- Puts a bucket where it belongs in one lane. `head` is the queue time of its first queued job.
local function place_bucket(scope, fp, id, priority, head)
  local lane, member = scope .. ':' .. fp, id .. ':' .. priority
  head = head_of(head)
  local tenant = project(id).tenant
  if scope ~= 'instance' then
    local score = plain_score(nil, priority, head) or counts_in(scope) and bucket_score(priority, running_in(scope, id), head)
      or fifo_score(priority, head)
    set_place(lane_key(lane), member, not paused('tenant:', tenant) and score or nil)
    return
  end
  local score = plain_score(fp, priority, head) or bucket_score(priority, project_running(tenant, id), head)
  local tenant_lane = lane_key(lane) .. ':' .. tenant
  if project_capped(tenant, id) then
    set_place(tenant_lane, member, nil)
  elseif set_place(tenant_lane, member, score) then
    note_lane(tenant, fp)
  end
  place_tenant(fp, tenant)
end

-- A bucket's first queued job is another one now: put it where it belongs in all its lanes, or take it out
-- of them when none is queued (`head` nil).
local function reindex(name, head)
  local fp, id, priority = bucket_parts(name)
  local facts = project(id)
  if head then
    for _, scope in ipairs(facts.open) do place_bucket(scope, fp, id, priority, head) end
    return
  end
  call('ZREM', BUCKETS, bucket_member(fp, id, priority))
  for _, scope in ipairs(facts.open) do
    local key, member = lane_key(scope .. ':' .. fp), id .. ':' .. priority
    if scope == 'instance' then
      set_place(key .. ':' .. facts.tenant, member, nil)
      place_tenant(fp, facts.tenant)
    else
      set_place(key, member, nil)
    end
  end
end

-- A bucket turned from empty to not empty, or got a new scope: index it, opening its lanes where needed. It is in `buckets`
-- last: where an error cuts this off, the same call again finds that it is not.
local function index(name, head)
  local fp, id, priority = bucket_parts(name)
  look_at_scopes(id)
  for _, scope in ipairs(project(id).open) do
    open_lane(scope .. ':' .. fp, fp)
    if scope == 'instance' then note_lane(project(id).tenant, fp) end
  end
  reindex(name, head)
  call('ZADD', BUCKETS, 0, bucket_member(fp, id, priority))
end

-- Wakes one waiting pod per lane of this bucket. `woken` remembers the lanes done in this call. Answers
-- the lanes in which `me` was the best one waiting. `order`: of its new job, should that like a manager.
local function wake_for(fp, id, me, woken, mine, order)
  for _, scope in ipairs(project(id).open) do
    local lane = scope .. ':' .. fp
    if not woken[lane] and not paused('tenant:', project(id).tenant) then
      woken[lane] = true
      if wake_one(lane, me, order) then mine[#mine + 1] = lane end
    end
  end
end
