-- project: who may run a project's jobs, and who pays.
--
-- project:<id>  hash  route ('<tenant> <max_running or -> <its scopes that some runner has, joined by ' '>': what every
--                     move reads), facts ('<tenant> <instance_runners> <group_runners> <namespaces joined by ','>', as
--                     Rails told them), job_version and upsert_version (inbox entry ids of the newest job.pending, and of
--                     the newest project.upserted that changed its facts), cap_version, unindexed (1 until its buckets
--                     follow a change)
-- capped        set   projects with a max_running
-- tenant:<key>  hash  weight, max_running, version; served (its last turn, as `count` has it)

local SCOPES = P .. 'scopes'
local CAPPED = P .. 'capped'
local projects = {}
local tenants = {}

local function split(text)
  local words = {}
  for word in string.gmatch(text, '%S+') do words[#words + 1] = word end
  return words
end

local function project_of(id, route)
  local known = { open = {}, cap = '-' }
  if route then
    local open
    known.tenant, known.cap, open = string.match(route, '^(%S+) (%S+) ?(.*)$')
    known.open, known.route = split(open), route
  end
  projects[id] = known
  return known
end

-- A project as it is now; read once per call.
local function project(id)
  return projects[id] or project_of(id, call('HGET', P .. 'project:' .. id, 'route'))
end

-- The same with what Rails told; read once per call.
local function project_facts(id)
  local known = projects[id]
  if known and known.told then return known end
  local f = call('HMGET', P .. 'project:' .. id, 'route', 'facts', 'job_version', 'upsert_version', 'unindexed')
  known = known or project_of(id, f[1])
  known.facts, known.job_version, known.upsert_version, known.unindexed = f[2], f[3], f[4], f[5]
  known.told = true
  return known
end

-- tenant, instance_runners, group_runners, namespaces
local function facts_parts(facts)
  return string.match(facts, '^(%S+) (%S+) (%S+) ?(.*)$')
end

-- Looks which of a project's scopes some runner has, and writes its route where that or its facts have changed. A paused one
-- has none.
local function route_project(id)
  local known = projects[id]
  local tenant, instance_runners, group_runners, namespaces = facts_parts(known.facts)
  local wanted = { 'project:' .. id }
  if instance_runners == '1' then wanted[#wanted + 1] = 'instance' end
  if group_runners == '1' then
    for namespace in string.gmatch(namespaces, '%d+') do wanted[#wanted + 1] = 'group:' .. namespace end
  end
  local open = {}
  if paused('project:', id) then wanted = {} end
  for i, seen in ipairs(wanted[1] and call('ZMSCORE', SCOPES, unpack(wanted)) or {}) do
    if seen then open[#open + 1] = wanted[i] end
  end
  local route = tenant .. ' ' .. known.cap .. ' ' .. table.concat(open, ' ')
  if route ~= known.route then call('HSET', P .. 'project:' .. id, 'route', route) end
  known.tenant, known.open, known.route, known.looked = tenant, open, route, true
end

-- Scopes open and close while a project has nothing queued, when `index` does not meet it: look again which are
-- open, once per call.
local function look_at_scopes(id)
  if not project_facts(id).looked then route_project(id) end
end

local function in_scope(id, scope)
  for _, open in ipairs(project(id).open) do
    if open == scope then return true end
  end
  return false
end

-- A tenant as it is now; read once per call. `running` counts its jobs on instance runners.
local function tenant_of(key)
  local known = tenants[key]
  if known then return known end
  local f = call('HMGET', P .. 'tenant:' .. key, 'weight', 'max_running', 'served')
  known = {
    weight = tonumber(f[1] or '') or 1, max_running = tonumber(f[2] or ''), served = tonumber(f[3] or '0'),
    running = call('SCARD', P .. 'running:' .. key), projects = {},
  }
  tenants[key] = known
  return known
end

-- How many jobs of this project run on instance runners; read once per call.
local function project_running(tenant, id)
  local counts = tenant_of(tenant).projects
  local count = counts[id]
  if not count then
    count = call('SCARD', P .. 'running:' .. tenant .. ':' .. id)
    counts[id] = count
  end
  return count
end

local running_by = {} -- '<scope>:<project>' -> how many of its jobs run there; read once per call

-- How many jobs of this project run on the runners of a group.
local function running_in(scope, id)
  local key = scope .. ':' .. id
  if not running_by[key] then running_by[key] = call('SCARD', P .. 'running:' .. key) end
  return running_by[key]
end

-- Whether nothing of a tenant may start on instance runners now.
local function tenant_capped(tenant)
  if paused('tenant:', tenant) then return true end
  local t = tenant_of(tenant)
  return t.max_running and t.running >= t.max_running
end

local function project_capped(tenant, id)
  local cap = project(id).cap
  return cap ~= '-' and project_running(tenant, id) >= tonumber(cap)
end
