-- count: which jobs run on instance runners, for fairness and caps.
--
-- running:<tenant>, running:<tenant>:<project>  sets of job ids, never counters: a repeat changes nothing

local function count(tenant, id, job)
  local t, running = tenant_of(tenant), project_running(tenant, id) -- read before they change
  call('SADD', P .. 'running:' .. tenant, job)
  call('SADD', P .. 'running:' .. tenant .. ':' .. id, job)
  t.running = t.running + 1
  t.projects[id] = running + 1
end

-- A project with a cap may have buckets that stand in no instance lane: place each anew.
local function place_project(id)
  if not in_scope(id, 'instance') then return end
  for _, member in ipairs(call('ZRANGEBYLEX', BUCKETS, '[' .. id .. ':', '(' .. id .. ';', 'LIMIT', 0, STEPS)) do
    local name = bucket_of_member(member)
    local fp, _, priority = bucket_parts(name)
    place_bucket('instance', fp, id, priority, bucket_head(name))
  end
end

-- A tenant's buckets of one project in one lane may go sooner now.
local function lower_project(fp, tenant, id)
  local tenant_lane = lane_key('instance:' .. fp) .. ':' .. tenant
  local members = { id .. ':-2', id .. ':-1', id .. ':0', id .. ':1', id .. ':2' }
  for i, score in ipairs(call('ZMSCORE', tenant_lane, unpack(members))) do
    if score then
      local head = head_in(tonumber(score))
      call('ZADD', tenant_lane, bucket_score(i - 3, project_running(tenant, id), head), members[i])
    end
  end
end

local freed = {} -- tenant -> projects whose jobs ended, or went back, in this call

-- These jobs of a project end, or go back.
local function uncount(tenant, id, jobs)
  local removed = call('SREM', P .. 'running:' .. tenant, unpack(jobs))
  call('SREM', P .. 'running:' .. tenant .. ':' .. id, unpack(jobs))
  if removed == 0 then return end
  tenants[tenant] = nil -- what was read before is old now
  freed[tenant] = freed[tenant] or {}
  freed[tenant][id] = true
end

-- The buckets of those projects and their tenants may go sooner now, or come back from a cap. Once per call, at its end.
local function place_freed()
  for tenant, ids in pairs(freed) do
    local caps = tenant_of(tenant).max_running
    for id in pairs(ids) do
      if project(id).max_running then
        caps = true
        place_project(id)
      end
    end
    -- Of more lanes than STEPS a random part, so that none waits for ever.
    for _, fp in ipairs(call('SRANDMEMBER', P .. 'tenant:' .. tenant .. ':lanes', STEPS)) do
      for id in pairs(ids) do lower_project(fp, tenant, id) end
      place_tenant(fp, tenant)
      if caps and not tenant_capped(tenant) then uncapped(fp) end
    end
  end
end
