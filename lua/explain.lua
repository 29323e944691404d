-- explain: all in this partition that decides when a job runs, in one look.
--
-- Called by `redis::explain` for one job, for the command `explain` and the admin service. Reads only.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  job id
--
-- Returns  a flat list of names and values; what is not known is left out. Without `state` the job is not here; `ended`
--          is its record, if it ended lately. `lanes`: per open scope {scope, tenants ahead or '', tenants, buckets ahead
--          or '', buckets, queued jobs in those, 1 if these are only the first, pods waiting, pause or ''}
-- Cost O(256): at most about 300 calls, whatever is queued
--
-- flags: no-writes
-- uses: base event pause affinity wake project bucket order index job look

local id = ARGV[1]
local told = {}

local function tell(name, value)
  if value then told[#told + 1], told[#told + 2] = name, value end
end

tell('now_ms', NOW_TEXT)
local NAMES = { 'since_ms', 'starts', 'max_attempts', 'failed_deliveries', 'cancel_reason' }
local job = load_job(id)
if not job then
  tell('ended', call('GET', P .. 'ended:' .. id))
  return told
end

local fp, project_id, priority = bucket_parts(job.bucket)
tell('state', job.state)
for i, value in ipairs(call('HMGET', job_key(id), unpack(NAMES))) do tell(NAMES[i], value) end
tell('attempt', job.attempt)
tell('holder', holder_of(job))
tell('pod', job.pod)
tell('deadline_ms', call('ZSCORE', DEADLINES, id))
tell('priority', priority)
tell('capability', call('HGET', CAPABILITIES, fp))
tell('entry', job.entry_id)
local entry = call('XRANGE', bucket_key(job.bucket), job.entry_id, job.entry_id)[1]
tell('queued_at_ms', entry and entry[2][4])

local p = project_facts(project_id)
local tenant = p.tenant
local t = tenant_of(tenant)
tell('project', project_id)
tell('facts', p.facts)
tell('project_cap', p.cap ~= '-' and p.cap)
tell('project_running', project_running(tenant, project_id))
tell('tenant', tenant)
tell('weight', tostring(t.weight))
tell('tenant_cap', t.max_running)
tell('tenant_running', t.running)
if job.state ~= 'queued' then return told end

local ahead, more = ahead_in_bucket(job.bucket, job.entry_id)
tell('ahead', ahead)
tell('ahead_at_least', more and 1 or 0)

local order = call('GETRANGE', P .. 'order:' .. id, 0, ORDER_HEAD)
local liked = order ~= '' and call('GET', affinity_key(order))
if liked then
  local manager, pod = liked_parts(liked)
  if is_alive(pod) then tell('likes', manager) end
end

local of_pause = { 'all', 'tenant:' .. tenant, 'project:' .. project_id }
for _, scope in ipairs(p.open) do of_pause[#of_pause + 1] = 'lane:' .. scope .. ':' .. fp end
local pauses = call('HMGET', P .. 'paused', unpack(of_pause))
tell('paused_all', pauses[1])
tell('paused_tenant', pauses[2])
tell('paused_project', pauses[3])

local left = STEPS -- buckets that may still be counted
local function queued_before(key, rank)
  local jobs, looked = 0, math.min(rank, left)
  left = left - looked
  if looked > 0 then
    for _, member in ipairs(call('ZRANGE', key, 0, looked - 1)) do jobs = jobs + queued_in(fp .. ':' .. member) end
  end
  return jobs, looked < rank and 1 or 0
end

local lanes = {}
for i, scope in ipairs(p.open) do
  local lane = lane_key(scope .. ':' .. fp)
  local of_buckets, tenants_ahead, tenants = lane, '', 0
  if scope == 'instance' then
    of_buckets, tenants_ahead, tenants = lane .. ':' .. tenant, call('ZRANK', lane, tenant) or '', call('ZCARD', lane)
  end
  local rank = call('ZRANK', of_buckets, project_id .. ':' .. priority)
  local jobs, first_only = queued_before(of_buckets, rank or 0)
  lanes[i] = {
    scope, tenants_ahead, tenants, rank or '', call('ZCARD', of_buckets), jobs, first_only,
    call('ZCARD', P .. 'waiting:' .. scope .. ':' .. fp), pauses[3 + i] or '',
  }
end
tell('lanes', lanes)
return told
