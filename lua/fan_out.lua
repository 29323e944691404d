-- fan_out: put pending jobs into their buckets and wake who waits for them, or hand them to a free slot at once.
--
-- Called by stage `fan_out` once per batch of the inbox and partition. Safe to repeat: a job that is here, or
-- ended within the last `ended_ttl`, is KNOWN. It wakes again, or is answered as handed over again, and what an error
-- cut off is completed.
-- Refused when Redis is out of memory: a full Redis must be able to drain, not to fill.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             who calls; woken through the answer, not by mail
-- ARGV[2]  accept_ms       how long a runner has to accept a job that is handed over
-- ARGV[3]  affinity_ms     how long it is remembered which runner ran jobs with a key; 0: not at all
-- ARGV[4]  affinity_wait_ms how long a job waits for the manager that had its key last, from when it was queued
-- ARGV[5]  n               how many slots come along
-- ARGV[6…] per slot, 7:    id of the job that it is for, scope, rank, offer id, runner id, system id, accept_ms or '' (as all). The
--                          pod has matched them
-- then     per job, 10:    id, inbox entry id, project id, facts ('<tenant key> <instance_runners> <group_runners>
--                          <namespaces joined by ','>'; 0 or 1), fingerprint, capability as JSON, priority, queued_at_ms,
--                          max_attempts, order (a line of JSON for the pod that hands it out, then the payload)
--
-- Returns {outcomes, projects, lanes, jobs}: per job OK or KNOWN; projects whose buckets must be indexed anew
--         (`index`), as its scopes changed; lanes in which the calling pod waited and now has work; the jobs
--         that were handed over, {job id, lease id}: nobody stood before these, so they passed through the queue at once.
-- Cost O(jobs · scopes of a project that some runner has)
--
-- uses: base reply event score pause policy affinity wake version project bucket order index group count job assign

local me, accept_ms, affinity_ms, wait_ms, n_slots = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local FIELDS = 10
local FIRST = 6 + 7 * n_slots
local outcomes, changed, mine, handed, woken = {}, {}, {}, {}, {}

-- Which jobs are not here yet. Few batches have any that are: one look tells for most.
local function new_jobs()
  local keys, first_of_id, twice = {}, {}, false
  for first = FIRST, #ARGV, FIELDS do
    local id = ARGV[first]
    keys[#keys + 1], keys[#keys + 2] = job_key(id), P .. 'ended:' .. id
    twice = twice or first_of_id[id]
    first_of_id[id] = first_of_id[id] or first
  end
  local all = not twice and call('EXISTS', unpack(keys)) == 0
  local new = {}
  for first = FIRST, #ARGV, FIELDS do
    local id = ARGV[first]
    new[first] = all or first_of_id[id] == first and call('EXISTS', job_key(id), P .. 'ended:' .. id) == 0
  end
  return new
end

-- The buckets of this batch that exist and stand in their lanes.
local function indexed_buckets()
  local indexed, names, members = {}, {}, {}
  for first = FIRST, #ARGV, FIELDS do
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

-- The entry of a job in its bucket.
local function add_entry(id, name, fp, capability, queued_at_ms)
  local key = bucket_key(name)
  if not indexed[name] and call('EXISTS', key) == 0 then
    call('HSETNX', CAPABILITIES, fp, capability) -- first: of a bucket that exists it is known
    call('XGROUP', 'CREATE', key, GROUP, '0', 'MKSTREAM')
  end
  return call('XADD', key, '*', 'id', id, 'at', queued_at_ms)
end

-- The first fields of its record; max_attempts unless 1.
local function first_fields(name, entry_id, project_id, max_attempts)
  if max_attempts == '1' then return 'place', name .. ' ' .. entry_id, 'tenant', project(project_id).tenant end
  return 'place', name .. ' ' .. entry_id, 'tenant', project(project_id).tenant, 'max_attempts', max_attempts
end

-- No entry without its job: it would be taken all the same. So where the one cannot be written, the other goes again.
local function or_forget(name, entry_id, failure)
  if not failure then return end
  bucket_forget(name, { entry_id })
  bucket_close(name)
  error(failure)
end

-- A job enters its bucket, and the bucket its lanes unless it stands there.
local function enqueue(id, name, project_id, fp, capability, queued_at_ms, max_attempts, order)
  emit('queued', id, '0', '') -- what fails here has left nothing in the bucket
  local entry_id = add_entry(id, name, fp, capability, queued_at_ms)
  local fields = { first_fields(name, entry_id, project_id, max_attempts) }
  local written = redis.pcall('HSET', job_key(id), 'state', 'queued', unpack(fields))
  or_forget(name, entry_id, type(written) == 'table' and written)
  if not indexed[name] then
    index(name, tonumber(queued_at_ms))
    indexed[name] = true
  end
  wake_for(fp, project_id, me, woken, mine, affinity_ms ~= '0' and order)
end

local slot_of = {} -- job -> where its slot begins: offer id, runner id, system id, accept_ms; the scope and the rank are before them
for at = FIRST - 4, 9, -7 do slot_of[ARGV[at - 3]] = at end

-- Whether a new job may go to its slot at once: nobody stands before it, no better slot waits, and nothing holds it up.
local function is_next(scope, rank, name, project_id, fp)
  local lane = scope .. ':' .. fp
  if indexed[name] or not in_scope(project_id, scope) or call('EXISTS', lane_key(lane)) == 1 then return false end
  local tenant = project(project_id).tenant
  if paused('lane:', lane) or paused('tenant:', tenant) or is_anothers(lane, me, rank) then return false end
  return scope ~= 'instance' or not tenant_capped(tenant) and not project_capped(tenant, project_id)
end

-- Whether a new job likes a manager of another pod that waits in the lane with no worse a rank: it may be free. Or another one, for
-- which it waits.
local function likes_another(slot, lane, rank, order, queued_at_ms)
  local liked = affinity_ms ~= '0' and call('GET', affinity_key(order))
  if not liked then return false end
  local manager, pod, its_rank = liked_parts(liked)
  if manager == ARGV[slot + 1] .. ' ' .. ARGV[slot + 2] then return false end
  if wait_ms > 0 and its_rank <= rank and waits_for(pod, tonumber(queued_at_ms), wait_ms) then return true end
  return pod ~= me and is_as_good(P .. 'waiting:' .. lane, pod, rank)
end

-- A job passes through its bucket to its slot; the bucket, with nothing queued, stands in no lane.
local function hand_over(slot, id, name, project_id, fp, capability, queued_at_ms, max_attempts, order)
  emit('queued', id, '0', '') -- what fails here has left nothing in the bucket
  local entry_id = add_entry(id, name, fp, capability, queued_at_ms)
  local done, result = pcall(function()
    call('XREADGROUP', 'GROUP', GROUP, me, 'COUNT', 1, 'STREAMS', bucket_key(name), '>')
    if affinity_ms ~= '0' then remember_affinity(order, slot, ARGV[slot - 1], me, affinity_ms) end
    return assign(id, '1', ARGV[slot - 2], project_id, slot, me, accept_ms, first_fields(name, entry_id, project_id, max_attempts))
  end)
  or_forget(name, entry_id, not done and result)
  count_taken(id, ARGV[slot - 2], project_id)
  handed[#handed + 1] = { id, result }
end

-- A job that is here: an earlier call may have handed it over, or not have woken anybody; and what an error cut off there
-- is completed.
local function again(slot, id, project_id, fp, order)
  local f = call('HMGET', job_key(id), 'state', 'lease', 'place')
  if f[1] == 'queued' then
    local name = string.match(f[3], '^%S+')
    if not indexed[name] and not call('ZSCORE', BUCKETS, bucket_member(bucket_parts(name))) then
      index(name, bucket_head(name))
      indexed[name] = true
    end
    wake_for(fp, project_id, me, woken, mine, affinity_ms ~= '0' and order)
  elseif slot and f[1] == 'assigned' and lease_parts(f[2]) == lease_of(slot, id, '1') then
    assigned_before(id, f[2], f[3], due_of(slot, accept_ms))
    handed[#handed + 1] = { id, lease_of(slot, id, '1') }
  end
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

for first = FIRST, #ARGV, FIELDS do
  local id, entry_id, project_id, facts, fp, capability, priority, queued_at_ms, max_attempts, order =
    unpack(ARGV, first, first + 9)
  learn_project(project_id, facts, entry_id)
  local name, slot = fp .. ':' .. project_id .. ':' .. priority, slot_of[id]
  if not new[first] then
    outcomes[#outcomes + 1] = KNOWN
    again(slot, id, project_id, fp, order)
  else
    outcomes[#outcomes + 1] = OK
    local scope, rank = slot and ARGV[slot - 2], slot and tonumber(ARGV[slot - 1])
    local lane = slot and scope .. ':' .. fp
    if slot and is_next(scope, rank, name, project_id, fp) and not likes_another(slot, lane, rank, order, queued_at_ms) then
      hand_over(slot, id, name, project_id, fp, capability, queued_at_ms, max_attempts, order)
    else
      enqueue(id, name, project_id, fp, capability, queued_at_ms, max_attempts, order)
    end
  end
end

write_assigned(me)
for id, facts in pairs(projects) do
  if facts.unindexed then changed[#changed + 1] = id end
end
return { outcomes, changed, mine, handed }
