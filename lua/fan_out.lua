-- fan_out: put pending jobs into their buckets, index the buckets, wake who waits for them.
--
-- Called by stage `fan_out` once per batch of the inbox and partition. Safe to repeat: a job that is here, or
-- ended within the last `ended_ttl`, is KNOWN and only wakes again.
-- Refused when Redis is out of memory: a full Redis must be able to drain, not to fill.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             who calls; woken through the answer, not by mail
-- ARGV[2…] per job, 10:    id, inbox entry id, project id, facts ('<tenant key> <instance_runners> <group_runners>
--                          <namespaces joined by ','>'; 0 or 1), fingerprint, capability as JSON, priority, queued_at_ms,
--                          max_attempts, order (a line of JSON for the pod that hands it out, then the payload)
--
-- Returns {outcomes, projects, lanes}: per job OK or KNOWN; projects whose buckets must be indexed anew
--         (`index`), as its scopes changed; lanes in which the calling pod waited and now has work.
-- Cost O(jobs · scopes of a project that some runner has)
--
-- uses: base reply event score wake version project bucket order index job

local me = ARGV[1]
local FIELDS = 10
local outcomes, changed, mine, woken = {}, {}, {}, {}

-- Which jobs are not here yet. Few batches have any that are: one look tells for most.
local function new_jobs()
  local keys, first_of_id, twice = {}, {}, false
  for first = 2, #ARGV, FIELDS do
    local id = ARGV[first]
    keys[#keys + 1], keys[#keys + 2] = job_key(id), P .. 'ended:' .. id
    twice = twice or first_of_id[id]
    first_of_id[id] = first_of_id[id] or first
  end
  local all = not twice and call('EXISTS', unpack(keys)) == 0
  local new = {}
  for first = 2, #ARGV, FIELDS do
    local id = ARGV[first]
    new[first] = all or first_of_id[id] == first and call('EXISTS', job_key(id), P .. 'ended:' .. id) == 0
  end
  return new
end

-- The buckets of this batch that exist and stand in their lanes.
local function indexed_buckets()
  local indexed, names, members = {}, {}, {}
  for first = 2, #ARGV, FIELDS do
    local fp, project_id, priority = ARGV[first + 4], ARGV[first + 2], ARGV[first + 6]
    local name = fp .. ':' .. project_id .. ':' .. priority
    if indexed[name] == nil then
      indexed[name] = false
      names[#names + 1], members[#members + 1] = name, bucket_member(fp, project_id, priority)
    end
  end
  for i, score in ipairs(call('ZMSCORE', BUCKETS, unpack(members))) do indexed[names[i]] = score and true end
  return indexed
end

-- The newest message's facts win for all the project's buckets. Namespaces come with jobs only: a job that is older
-- than the newest `project.upserted` may still be the newest to tell them.
local function learn_project(id, facts, version)
  local known = project_facts(id)
  if not newer(version, known.job_version) then return end
  if known.upsert_version and not newer(version, known.upsert_version) then
    local tenant, instance_runners, group_runners = facts_parts(known.facts)
    local _, _, _, namespaces = facts_parts(facts)
    facts = tenant .. ' ' .. instance_runners .. ' ' .. group_runners .. ' ' .. namespaces
  end
  known.job_version = version
  if known.facts == facts then
    call('HSET', P .. 'project:' .. id, 'job_version', version)
    return
  end
  if known.facts then
    known.unindexed = '1'
    call('HSET', P .. 'project:' .. id, 'unindexed', '1')
  end
  known.facts = facts
  route_project(id) -- first in the hash, as it is read most
  call('HSET', P .. 'project:' .. id, 'facts', facts, 'job_version', version)
end

local new = new_jobs()
local indexed = indexed_buckets()

-- A job enters its bucket, and the bucket its lanes unless it stands there.
local function enqueue(id, name, project_id, fp, capability, queued_at_ms, max_attempts)
  local key = bucket_key(name)
  if not indexed[name] and call('EXISTS', key) == 0 then
    call('XGROUP', 'CREATE', key, GROUP, '0', 'MKSTREAM')
    call('HSETNX', CAPABILITIES, fp, capability)
  end
  local entry_id = call('XADD', key, '*', 'id', id, 'at', queued_at_ms)
  call('HSET', job_key(id), 'state', 'queued', 'place', name .. ' ' .. entry_id, 'tenant', project(project_id).tenant)
  if max_attempts ~= '1' then call('HSET', job_key(id), 'max_attempts', max_attempts) end
  if not indexed[name] then
    index(name, tonumber(queued_at_ms))
    indexed[name] = true
  end
  emit('queued', id, '0', '')
end

-- Orders first: a job that is here has one.
local orders_of_new = {}
for first, is_new in pairs(new) do
  if is_new then
    orders_of_new[#orders_of_new + 1] = P .. 'order:' .. ARGV[first]
    orders_of_new[#orders_of_new + 1] = ARGV[first + 9]
  end
end
if orders_of_new[1] then call('MSET', unpack(orders_of_new)) end

for first = 2, #ARGV, FIELDS do
  local id, entry_id, project_id, facts, fp, capability, priority, queued_at_ms, max_attempts =
    unpack(ARGV, first, first + 8)
  learn_project(project_id, facts, entry_id)
  if new[first] then
    outcomes[#outcomes + 1] = OK
    enqueue(id, fp .. ':' .. project_id .. ':' .. priority, project_id, fp, capability, queued_at_ms, max_attempts)
    wake_for(fp, project_id, me, woken, mine)
  else
    outcomes[#outcomes + 1] = KNOWN
    if call('HGET', job_key(id), 'state') == 'queued' then wake_for(fp, project_id, me, woken, mine) end
  end
end

for id, facts in pairs(projects) do
  if facts.unindexed then changed[#changed + 1] = id end
end
return { outcomes, changed, mine }
