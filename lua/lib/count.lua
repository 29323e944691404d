-- count: which jobs run on instance runners, for fairness and caps.
--
-- running:<tenant>, running:<tenant>:<project>  sets of job ids, never counters: a repeat changes nothing
-- turn                                          string  the last turn that a tenant had: when a job of it went to an instance
--                                               runner, in quarters of a ms. No two are the same, so that names never decide
--                                               who is next, unless more than 4,000 in a second make them run ahead.

local counted = {} -- tenant -> project -> jobs that start in this call
local served = {} -- tenant -> its last turn, if in this call
local last_turn -- if there was one in this call

local TURNS_AHEAD = 64 -- how far turns may run ahead of the clock: 16 ms

local function next_turn()
  if last_turn then
    last_turn = last_turn + 1
  else
    local now = math.floor((TIME[1] * 1000000 + TIME[2]) * TURNS_PER_MS / 1000)
    local before = tonumber(call('GET', P .. 'turn') or '0')
    last_turn = math.max(now, before < now + TURNS_AHEAD and before + 1 or before)
  end
  return last_turn
end

-- A job of this project starts; `write_counts` writes it down.
local function count(tenant, id, job)
  local t, running = tenant_of(tenant), project_running(tenant, id) -- read before they change
  counted[tenant] = counted[tenant] or {}
  counted[tenant][id] = counted[tenant][id] or {}
  table.insert(counted[tenant][id], job)
  t.running = t.running + 1
  t.projects[id] = running + 1
  t.served = math.max(next_turn(), t.served + 1) -- never back: scores are lower bounds
  served[tenant] = t.served
end

local function write_counts()
  if last_turn then call('SET', P .. 'turn', string.format('%.0f', last_turn)) end
  for tenant, ids in pairs(counted) do
    local all = {}
    for id, jobs in pairs(ids) do
      call('SADD', P .. 'running:' .. tenant .. ':' .. id, unpack(jobs))
      for _, job in ipairs(jobs) do all[#all + 1] = job end
    end
    call('SADD', P .. 'running:' .. tenant, unpack(all))
    call('HSET', P .. 'tenant:' .. tenant, 'served', string.format('%.0f', served[tenant]))
  end
end

-- A project with a cap may have buckets that stand in no instance lane: place each anew.
local function place_project(id)
  if not in_scope(id, 'instance') then return end
  for _, member in ipairs(call('ZRANGEBYLEX', BUCKETS, '[' .. id .. ':', '(' .. id .. ';', 'LIMIT', 0, STEPS)) do
    local name = bucket_of_member(member)
    local fp, _, priority = bucket_parts(name)
    note_lane(project(id).tenant, fp)
    place_bucket('instance', fp, id, priority, bucket_head(name))
  end
end

local OF_PRIORITY = { ':-2', ':-1', ':0', ':1', ':2' }

-- A tenant's buckets of these projects in one lane may go sooner now: by as many running jobs as each has lost. What was a
-- lower bound stays one, and nothing has to be counted.
local function lower_projects(fp, tenant, lost)
  local tenant_lane = lane_key('instance:' .. fp) .. ':' .. tenant
  local members, by = {}, {}
  for id, count in pairs(lost) do
    for _, suffix in ipairs(OF_PRIORITY) do
      members[#members + 1] = id .. suffix
      by[#members] = count
    end
  end
  local lowered = {}
  for i, score in ipairs(call('ZMSCORE', tenant_lane, unpack(members))) do
    if score then
      lowered[#lowered + 1] = lowered_score(tonumber(score), by[i])
      lowered[#lowered + 1] = members[i]
    end
  end
  if lowered[1] then call('ZADD', tenant_lane, unpack(lowered)) end
end

local freed = {} -- tenant -> project -> how many of its jobs ended, or went back, in this call

-- These jobs of a tenant, by project, end or go back.
local function uncount(tenant, of_projects)
  local all = {}
  freed[tenant] = freed[tenant] or {}
  for id, jobs in pairs(of_projects) do
    call('SREM', P .. 'running:' .. tenant .. ':' .. id, unpack(jobs))
    for _, job in ipairs(jobs) do all[#all + 1] = job end
    freed[tenant][id] = (freed[tenant][id] or 0) + #jobs
  end
  call('SREM', P .. 'running:' .. tenant, unpack(all))
  tenants[tenant] = nil -- what was read before is old now
end

-- Whether a project has a cap, without reading all of it.
local any_cap -- whether some project has one; looked up once per call
local function has_cap(id)
  if any_cap == nil then any_cap = call('EXISTS', CAPPED) == 1 end
  return any_cap and call('SISMEMBER', CAPPED, id) == 1
end

-- Lanes of a tenant: of more than STEPS a random part, so that none waits for ever.
local function some_lanes(tenant)
  return call('SRANDMEMBER', P .. 'tenant:' .. tenant .. ':lanes', STEPS)
end

-- The buckets of those projects and their tenants may go sooner now, or come back from a cap. Once per call, at its end.
-- Lowered first: what `place_project` then places by an exact count must not be lowered after it.
local function place_freed()
  for tenant, lost in pairs(freed) do
    local lanes, known = some_lanes(tenant), {}
    for _, fp in ipairs(lanes) do
      known[fp] = true
      hold_order(lane_key('instance:' .. fp))
      lower_projects(fp, tenant, lost)
    end
    local caps, capped = tenant_of(tenant).max_running, false
    for id in pairs(lost) do
      if has_cap(id) then
        capped = true
        place_project(id)
      end
    end
    if capped then -- which may have come back to more lanes
      for _, fp in ipairs(some_lanes(tenant)) do
        if not known[fp] then lanes[#lanes + 1] = fp end
      end
    end
    for _, fp in ipairs(lanes) do
      place_tenant(fp, tenant)
      if (caps or capped) and not tenant_capped(tenant) then uncapped(fp) end
    end
  end
  write_orders()
end
