-- take: move the fairest eligible jobs from their buckets to free slots of this pod's runners.
--
-- Called by stage `take` for one runner class. Safe to repeat with the same lease ids: the jobs taken by the
-- first call are answered again.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             who takes
-- ARGV[2]  accept_ms       how long the runner has to accept
-- ARGV[3]  rank            the pod's place among those that wait; lowest is woken first
-- ARGV[4]  n               how many lanes
-- ARGV[5…] lanes           '<scope>:<fp>' of lanes this class matches, all of one kind of scope
-- then     per free slot, 3: lease id, runner id, system id; none: pass a wake on
--
-- Returns {jobs, lanes}. Per job {lease id, job id, lane, attempt, order}. Slots left over: the pod now waits in every
--         lane asked. Lanes: those in which the pod itself was the best one waiting when all slots were full and work
--         was left. Tenants of equal share go by the head of the bucket that stands first; that may be outdated
--         where its project has started jobs from another lane since.
-- Cost O(slots · log tenants + lanes)
--
-- flags: allow-oom
-- uses: base reply event score wake version project bucket index count job

local me, accept_ms, rank, n_lanes = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local first_slot = 5 + n_lanes
local held = P .. 'pod:' .. me .. ':jobs'
local slots = {}
for i = first_slot, #ARGV, 3 do
  slots[#slots + 1] = { lease_id = ARGV[i], runner_id = ARGV[i + 1], system_id = ARGV[i + 2] }
end

local function answer(lease_id, id, lane, attempt)
  return { lease_id, id, lane, attempt }
end

-- The answer, with the orders of all jobs read in one go.
local function with_orders(jobs, lanes)
  local keys = {}
  for i, job in ipairs(jobs) do keys[i] = P .. 'order:' .. job[2] end
  if keys[1] then
    for i, order in ipairs(call('MGET', unpack(keys))) do jobs[i][5] = order end
  end
  return { jobs, lanes }
end

-- The reply of an earlier call with these leases was lost: give it again.
local function repeated()
  local leases, jobs = {}, {}
  for i, slot in ipairs(slots) do leases[i] = slot.lease_id end
  for i, id in ipairs(call('HMGET', held, unpack(leases))) do
    if id then
      local job = load_job(id)
      if job and job.state == 'assigned' and job.lease_id == leases[i] then
        local fp = bucket_parts(job.bucket)
        jobs[#jobs + 1] = answer(leases[i], id, job.scope .. ':' .. fp, job.attempt)
      end
    end
  end
  return jobs[1] and jobs
end

-- Per lane: its first members in order, and whether these are all. As many as may be taken, and one.
local heads = {}
local ahead = math.min(#slots, STEPS) + 1

local function look(lane)
  local flat = call('ZRANGE', lane_key(lane), 0, ahead - 1, 'WITHSCORES')
  local list = { whole = #flat < 2 * ahead }
  for i = 1, #flat, 2 do list[#list + 1] = { member = flat[i], score = tonumber(flat[i + 1]) } end
  heads[lane] = list
end

local function before(a, b)
  return a.score < b.score or a.score == b.score and a.member < b.member
end

-- The head tenant of an instance lane has another score now, or is out: puts it in its new place in the list, as long as the
-- list tells where that is.
local function look_again(lane, fp)
  local list = heads[lane]
  local tenant = table.remove(list, 1).member
  local score = placed[fp .. ' ' .. tenant]
  if score == nil then return look(lane) end -- another tenant was placed: the project has moved
  local moved = { member = tenant, score = score }
  if score and (list.whole or list[1] and before(moved, list[#list])) then
    local at = #list + 1
    while at > 1 and before(moved, list[at - 1]) do at = at - 1 end
    table.insert(list, at, moved)
  end
  if not list[1] and not list.whole then look(lane) end
end

-- The bucket to take from in an instance lane, or nil when the index had to be mended first.
local function next_of_tenants(lane, fp)
  local tenant, score = heads[lane][1].member, heads[lane][1].score
  local t = tenant_of(tenant)
  if tenant_capped(tenant) or tenant_score(t.running, t.weight, head_in(score)) ~= score then
    return place_tenant(fp, tenant)
  end
  local tenant_lane = lane_key(lane) .. ':' .. tenant
  local first = firsts[fp .. ' ' .. tenant] or call('ZRANGE', tenant_lane, 0, 0, 'WITHSCORES')
  if not first[1] then return place_tenant(fp, tenant) end
  local id, priority = string.match(first[1], '^(%d+):(-?%d)$')
  local expected = bucket_score(tonumber(priority), project_running(tenant, id), head_in(tonumber(first[2])))
  if project(id).tenant ~= tenant or not in_scope(id, 'instance') or project_capped(tenant, id) then
    call('ZREM', tenant_lane, first[1])
    return place_tenant(fp, tenant)
  elseif expected ~= tonumber(first[2]) then
    call('ZADD', tenant_lane, expected, first[1])
    return place_tenant(fp, tenant)
  end
  return fp .. ':' .. id .. ':' .. priority
end

-- The bucket to take from in a group or project lane, or nil when the index had to be mended first.
local function next_of_buckets(lane, fp, scope)
  local member = heads[lane][1].member
  local id, priority = string.match(member, '^(%d+):(-?%d)$')
  if not in_scope(id, scope) then
    call('ZREM', lane_key(lane), member)
    return nil
  end
  return fp .. ':' .. id .. ':' .. priority
end

-- Takes one job from a lane for a slot; nil when the lane's head was not what it seemed.
local function take_from(lane, scope, fp, slot)
  local name
  if scope == 'instance' then name = next_of_tenants(lane, fp) else name = next_of_buckets(lane, fp, scope) end
  if not name then return nil end
  local entry_id, id, next_head = bucket_pop(name, me)
  if not entry_id then return reindex(name, nil) end
  local f = call('HMGET', job_key(id), 'state', 'attempt', 'tenant')
  if f[1] ~= 'queued' then -- never seen; a job that ended takes its entry along
    bucket_drop(name, entry_id)
    return reindex(name, next_head)
  end
  local attempt = (f[2] or 0) + 1
  local held_by = holder(slot.lease_id, slot.runner_id, slot.system_id, me)
  call('HSET', job_key(id), 'state', 'assigned', 'lease_id', slot.lease_id, 'attempt', attempt,
    'pod', me, 'scope', scope, 'holder', held_by, 'since_ms', NOW_TEXT)
  call('HSET', held, slot.lease_id, id)
  call('ZADD', DEADLINES, NOW + accept_ms, id)
  if scope == 'instance' then
    local _, project_id = bucket_parts(name)
    local tenant = project(project_id).tenant -- who pays may have changed since it was queued
    if f[3] ~= tenant then call('HSET', job_key(id), 'tenant', tenant) end
    count(tenant, project_id, id)
  end
  emit('assigned', id, attempt, held_by)
  reindex(name, next_head)
  return answer(slot.lease_id, id, lane, attempt)
end

local jobs = slots[1] and repeated()
if jobs then return with_orders(jobs, {}) end
jobs = {}

for i = first_slot - n_lanes, first_slot - 1 do look(ARGV[i]) end

-- Each step takes a job or mends the index once; the index is never far out.
for _ = 1, #slots + STEPS do
  if #jobs == #slots then break end
  local best, first
  for lane, list in pairs(heads) do
    local head = list[1]
    if head and (not best or head.score < first.score or head.score == first.score and lane < best) then
      best, first = lane, head
    end
  end
  if not best then break end
  local scope, fp = string.match(best, '^(.*):([^:]+)$')
  placed[fp .. ' ' .. first.member] = nil
  jobs[#jobs + 1] = take_from(best, scope, fp, slots[#jobs + 1])
  for lane in pairs(heads) do
    if lane == best and scope == 'instance' then
      look_again(lane, fp)
    elseif string.sub(lane, -#fp) == fp then
      look(lane)
    end
  end
end

local mine = {}
for lane, list in pairs(heads) do
  if #jobs < #slots and not list[1] then
    call('ZADD', P .. 'waiting:' .. lane, rank, me)
  elseif list[1] and (#jobs < #slots or wake_one(lane, me)) then
    mine[#mine + 1] = lane
  end
end
return with_orders(jobs, mine)
