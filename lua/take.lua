-- take: move the fairest eligible jobs from their buckets to free slots of this pod's runners.
--
-- Called by stage `take` for one runner class. Safe to repeat with the same lease ids: the jobs taken by the
-- first call are answered again.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             who takes
-- ARGV[2]  accept_ms       how long the runner has to accept
-- ARGV[3]  rank            of its class; a lane in which a pod of a lower rank waits is left to that one
-- ARGV[4]  n               how many lanes
-- ARGV[5…] lanes           '<scope>:<fp>' of lanes this class matches, all of one kind of scope
-- then     per free slot, 3: lease id, runner id, system id; none: pass a wake on
--
-- Returns {jobs, lanes}. Per job {lease id, job id, lane, attempt, order}. Slots left over: the pod now waits in every
--         lane asked; none left: in none of them. Lanes: those to ask again, as work is left that the index hid.
--         Tenants of equal share go by the head of the bucket that stands first; that may be outdated where its
--         project has started jobs from another lane since. In a paused lane the pod just waits.
-- Cost O(slots · log tenants + lanes)
--
-- flags: allow-oom
-- uses: base event score pause policy wake project bucket order index group count job assign

local me, accept_ms, rank, n_lanes = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local first_slot = 5 + n_lanes
local n_slots = (#ARGV - first_slot + 1) / 3
local took = P .. 'took:' .. (ARGV[first_slot] or '')

local TOOK_MS = 60000 -- how long a repeated call is known as such; by then what it took has gone back

-- How far ahead to read: a lane's tenants or buckets, as many as may be taken, and one; a tenant's buckets.
local AHEAD = math.min(n_slots, STEPS) + 1
local TENANT_AHEAD = math.min(AHEAD, 8)

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
  local ids = call('GET', took)
  if not ids then return nil end
  local jobs = {}
  for i, id in ipairs(split(ids)) do
    local job = load_job(id)
    if job and job.state == 'assigned' and job.lease_id == ARGV[first_slot + 3 * (i - 1)] then
      local fp = bucket_parts(job.bucket)
      jobs[#jobs + 1] = { job.lease_id, id, job.scope .. ':' .. fp, job.attempt }
    end
  end
  return jobs
end

-- Tenants that started jobs from other lanes stand too low in an instance lane: which is known without reading their buckets.
-- Answers whether the first one did.
local function put_right(lane, fp)
  if plain_score(fp, 0, 0) then return false end
  local list = order_of(lane_key(lane), AHEAD)
  for step = 1, STEPS do
    local head = list[1]
    if not head then return step > 1 end
    local t = tenant_of(head.member)
    local since = math.max(since_in(head.score), since_turn(t.served))
    local at_least = tenant_score(t.running, t.weight, since)
    if at_least <= head.score then return step > 1 end
    sink(list, at_least)
  end
  return true
end

-- The bucket to take from in an instance lane, or nil when the index had to be mended first.
local function next_of_tenants(lane, fp)
  if put_right(lane, fp) then return nil end -- another lane may be first now
  local tenant, score = first_of(lane_key(lane))
  local t = tenant_of(tenant)
  local tenant_lane = lane_key(lane) .. ':' .. tenant
  local first = order_of(tenant_lane, TENANT_AHEAD)[1]
  if not first or tenant_capped(tenant) then return place_tenant(fp, tenant) end
  local head = head_in(first.score)
  if (plain_score(fp, 0, head) or tenant_score(t.running, t.weight, waits_since(head, t.served))) ~= score then
    return place_tenant(fp, tenant)
  end
  local id, priority = string.match(first.member, '^(%d+):(-?%d)$')
  local expected = plain_score(fp, 0, head) or bucket_score(tonumber(priority), project_running(tenant, id), head)
  if project(id).tenant ~= tenant or not in_scope(id, 'instance') or project_capped(tenant, id) then
    place(tenant_lane, first.member, nil)
    return place_tenant(fp, tenant)
  elseif expected ~= first.score then
    place(tenant_lane, first.member, expected)
    return place_tenant(fp, tenant)
  end
  return fp .. ':' .. id .. ':' .. priority, id
end

-- The bucket to take from in a group or project lane, or nil when the index had to be mended first.
local function next_of_buckets(lane, fp, scope)
  local member, score = first_of(lane_key(lane))
  local id, priority = string.match(member, '^(%d+):(-?%d)$')
  if not in_scope(id, scope) or paused('tenant:', project(id).tenant) then return place(lane_key(lane), member, nil) and nil end
  local expected = counts_in(scope) and bucket_score(tonumber(priority), running_in(scope, id), head_in(score))
  if expected and expected ~= score then return place(lane_key(lane), member, expected) and nil end
  return fp .. ':' .. id .. ':' .. priority, id
end

local due = string.format('%.0f', NOW + accept_ms)
local ids = {} -- of what this call takes

-- Takes one job from a lane for a slot; nil when the lane's head was not what it seemed.
local function take_from(lane, scope, fp, slot)
  local name, project_id
  if scope == 'instance' then
    name, project_id = next_of_tenants(lane, fp)
  else
    name, project_id = next_of_buckets(lane, fp, scope)
  end
  if not name then return nil end
  local entry_id, id, next_head, given_back = bucket_pop(name, me)
  if not entry_id then return reindex(name, nil) end
  local attempt = '1'
  if given_back then
    local f = call('HMGET', job_key(id), 'state', 'lease')
    if f[1] ~= 'queued' then -- never seen; a job that ended takes its entry along
      bucket_forget(name, { entry_id })
      return reindex(name, next_head)
    end
    local _, last = lease_parts(f[2])
    attempt = tostring(last + 1)
  end
  assign(id, attempt, scope, project_id, slot, me, due)
  ids[#ids + 1] = id
  reindex(name, next_head)
  return { ARGV[slot], id, lane, attempt }
end

local jobs = n_slots > 0 and repeated()
if jobs then return with_orders(jobs, {}) end
jobs = {}

local heads, scope_of, fp_of = {}, {}, {}
for i = 5, first_slot - 1 do
  local lane = ARGV[i]
  local list = order_of(lane_key(lane), AHEAD)
  scope_of[lane], fp_of[lane] = string.match(lane, '^(.*):([^:]+)$')
  if list[1] and (paused('lane:', lane) or n_slots > 0 and is_anothers(lane, me, rank)) then
    list = {}
  elseif n_slots > 0 and n_lanes > 1 and scope_of[lane] == 'instance' then
    put_right(lane, fp_of[lane])
  end
  heads[lane] = list
end

-- By what the head of a lane goes before that of another where plain queues and fair lanes are mixed: by its tenant's share. Of a
-- head that should not be there that would be no lower bound, so it is mended first.
local function by_share(lane, list)
  local fp = fp_of[lane]
  if scope_of[lane] ~= 'instance' or not plain_score(fp, 0, 0) then return list[1].score end
  for _ = 1, STEPS do
    if next_of_tenants(lane, fp) then break end
    if not list[1] then return nil end
  end
  local t = tenant_of(list[1].member)
  return tenant_score(t.running, t.weight, waits_since(head_in(list[1].score), t.served))
end

-- Of lanes whose heads have equal scores: whether the first goes before the second. A tenant's since is the same in all lanes in
-- which it stands, so there its buckets decide.
local function goes_before(lane, other)
  local member, others = heads[lane][1].member, heads[other][1].member
  if scope_of[lane] ~= 'instance' then return lane < other end
  if member ~= others then return member < others end
  local first = order_of(lane_key(lane) .. ':' .. member, TENANT_AHEAD)[1]
  local second = order_of(lane_key(other) .. ':' .. member, TENANT_AHEAD)[1]
  if first and second and first.score ~= second.score then return first.score < second.score end
  return lane < other
end

local mixed -- whether they are; looked up once there is a head

-- Each step takes a job or mends the index once; the index is never far out.
for _ = 1, n_slots + STEPS do
  if #jobs == n_slots then break end
  local best, first
  for lane, list in pairs(heads) do
    local score = list[1] and list[1].score
    if score then
      if mixed == nil then mixed = are_lanes_mixed() end
      if mixed then score = by_share(lane, list) end
    end
    if score and (not best or score < first or score == first and goes_before(lane, best)) then
      best, first = lane, score
    end
  end
  if not best then break end
  jobs[#jobs + 1] = take_from(best, scope_of[best], fp_of[best], first_slot + 3 * #jobs)
end

write_orders()
write_assigned(me)
if ids[1] then call('SET', took, table.concat(ids, ' '), 'PX', TOOK_MS) end

local mine = {}
for lane, list in pairs(heads) do
  if #jobs == n_slots then
    call('ZREM', P .. 'waiting:' .. lane, me)
    if list[1] then wake_one(lane, me) end
  elseif list[1] then
    mine[#mine + 1] = lane
  else
    call('ZADD', P .. 'waiting:' .. lane, rank, me)
  end
end
return with_orders(jobs, mine)
