-- project: who may run a project's jobs, and who pays.
--
-- project:<id>  hash  tenant, namespaces (ids joined by ','), instance_runners, group_runners (0 or 1),
--                     version (inbox entry id of the newest message), namespaces_version (of the newest that told
--                     them), max_running, cap_version, open (its scopes that some runner has, joined by ' '),
--                     unindexed (1 until its buckets follow a change)
-- tenant:<key>  hash  weight, max_running, version

local SCOPES = P .. 'scopes'
local projects = {}
local tenants = {}

-- The scopes of these facts that some runner has, as a string and a list.
local function open_scopes(id, namespaces, instance_runners, group_runners)
  local wanted = { 'project:' .. id }
  if instance_runners == '1' then wanted[#wanted + 1] = 'instance' end
  if group_runners == '1' then
    for namespace in string.gmatch(namespaces, '%d+') do wanted[#wanted + 1] = 'group:' .. namespace end
  end
  local seen = call('ZMSCORE', SCOPES, unpack(wanted))
  local open = {}
  for i, scope in ipairs(wanted) do
    if seen[i] then open[#open + 1] = scope end
  end
  return table.concat(open, ' '), open
end

local function split(text)
  local words = {}
  for word in string.gmatch(text, '%S+') do words[#words + 1] = word end
  return words
end

-- A project as it is now; read once per call.
local function project(id)
  local known = projects[id]
  if known then return known end
  local f = call('HMGET', P .. 'project:' .. id,
    'tenant', 'namespaces', 'instance_runners', 'group_runners', 'version', 'max_running', 'open', 'unindexed',
    'namespaces_version')
  known = {
    tenant = f[1], namespaces = f[2], instance_runners = f[3], group_runners = f[4], version = f[5],
    max_running = tonumber(f[6] or ''), open_text = f[7], open = split(f[7] or ''), unindexed = f[8],
    namespaces_version = f[9], -- those of the newest job
  }
  projects[id] = known
  return known
end

local function in_scope(id, scope)
  for _, open in ipairs(project(id).open) do
    if open == scope then return true end
  end
  return false
end

-- Scopes open and close while a project has nothing queued, when `index` does not meet it: look again which are
-- open, once per call.
local function look_at_scopes(id)
  local facts = project(id)
  if facts.looked then return end
  local open, list = open_scopes(id, facts.namespaces, facts.instance_runners, facts.group_runners)
  if open ~= facts.open_text then call('HSET', P .. 'project:' .. id, 'open', open) end
  facts.open_text, facts.open, facts.looked = open, list, true
end

-- A tenant as it is now; read once per call. `running` counts its jobs on instance runners.
local function tenant_of(key)
  local known = tenants[key]
  if known then return known end
  local f = call('HMGET', P .. 'tenant:' .. key, 'weight', 'max_running')
  known = {
    weight = tonumber(f[1] or '') or 1, max_running = tonumber(f[2] or ''),
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

local function tenant_capped(tenant)
  local t = tenant_of(tenant)
  return t.max_running and t.running >= t.max_running
end

local function project_capped(tenant, id)
  local cap = project(id).max_running
  return cap and project_running(tenant, id) >= cap
end
