-- fan_out: put pending jobs into their buckets, index the buckets, wake who waits for them.
--
-- Called by stage `fan_out` once per batch of the inbox and partition. Safe to repeat: a job that is here, or
-- ended within the last `ended_ttl`, is KNOWN and only wakes again.
-- Refused when Redis is out of memory: a full Redis must be able to drain, not to fill.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             who calls; woken through the answer, not by mail
-- ARGV[2…] per job, 13:    id, inbox entry id, tenant key, project id, namespaces joined by ',', instance_runners
--                          (0 or 1), group_runners (0 or 1), fingerprint, capability as JSON, priority, queued_at_ms,
--                          max_attempts, order (a line of JSON for the pod that hands it out, then the payload)
--
-- Returns {outcomes, projects, lanes}: per job OK or KNOWN; projects whose buckets must be indexed anew
--         (`index`), as its scopes changed; lanes in which the calling pod waited and now has work.
-- Cost O(jobs · scopes of a project that some runner has)
--
-- uses: base reply event score wake version project bucket index count job

local me = ARGV[1]
local outcomes, changed, mine, woken = {}, {}, {}, {}
local indexed = {} -- buckets of this batch that exist and stand in their lanes

-- The newest message's facts win for all the project's buckets. Namespaces come with jobs only: a job that is older
-- than the newest `project.upserted` may still be the newest to tell them.
local function learn_project(id, tenant, namespaces, instance_runners, group_runners, version)
  local known = project(id)
  if not newer(version, known.namespaces_version) then return end
  local newest = version
  if not newer(version, known.version) then
    newest = known.version
    tenant, instance_runners, group_runners = known.tenant, known.instance_runners, known.group_runners
  end
  local same = known.tenant == tenant and known.namespaces == namespaces
    and known.instance_runners == instance_runners and known.group_runners == group_runners
  if same then
    call('HSET', P .. 'project:' .. id, 'version', newest, 'namespaces_version', version)
  else
    local open, list = open_scopes(id, namespaces, instance_runners, group_runners)
    call('HSET', P .. 'project:' .. id, 'tenant', tenant, 'namespaces', namespaces, 'instance_runners', instance_runners,
      'group_runners', group_runners, 'version', newest, 'namespaces_version', version, 'open', open)
    if known.tenant then
      known.unindexed = '1'
      call('HSET', P .. 'project:' .. id, 'unindexed', '1')
    end
    known.tenant, known.namespaces, known.open = tenant, namespaces, list
    known.instance_runners, known.group_runners = instance_runners, group_runners
    known.open_text, known.looked = open, true
  end
  known.version, known.namespaces_version = newest, version
end

-- A job enters its bucket, and the bucket its lanes unless it stands there.
local function enqueue(id, name, tenant, fp, capability, queued_at_ms, max_attempts, order)
  local key = bucket_key(name)
  if not indexed[name] and call('EXISTS', key) == 0 then
    call('XGROUP', 'CREATE', key, GROUP, '0', 'MKSTREAM')
    call('HSETNX', CAPABILITIES, fp, capability)
  end
  local entry_id = call('XADD', key, '*', 'id', id, 'at', queued_at_ms)
  call('SET', P .. 'order:' .. id, order)
  call('HSET', job_key(id), 'state', 'queued', 'place', name .. ' ' .. entry_id, 'tenant', tenant)
  if max_attempts ~= '1' then call('HSET', job_key(id), 'max_attempts', max_attempts) end
  if not indexed[name] then
    local _, project_id, priority = bucket_parts(name)
    if not call('ZSCORE', BUCKETS, bucket_member(fp, project_id, priority)) then index(name, tonumber(queued_at_ms)) end
    indexed[name] = true
  end
  emit('queued', id, 0, '')
end

for first = 2, #ARGV, 13 do
  local id, entry_id, tenant, project_id, namespaces, instance_runners, group_runners, fp, capability, priority,
    queued_at_ms, max_attempts, order = unpack(ARGV, first, first + 12)
  local name = fp .. ':' .. project_id .. ':' .. priority
  learn_project(project_id, tenant, namespaces, instance_runners, group_runners, entry_id)
  if call('EXISTS', job_key(id), P .. 'ended:' .. id) > 0 then
    outcomes[#outcomes + 1] = KNOWN
    if call('HGET', job_key(id), 'state') == 'queued' then wake_for(name, me, woken, mine) end
  else
    outcomes[#outcomes + 1] = OK
    enqueue(id, name, tenant, fp, capability, queued_at_ms, max_attempts, order)
    wake_for(name, me, woken, mine)
  end
end

for id, facts in pairs(projects) do
  if facts.unindexed then changed[#changed + 1] = id end
end
return { outcomes, changed, mine }
