-- take: move the fairest eligible jobs from their buckets to free slots of this pod's runners.
--
-- Called by stage `take` for one runner class. Safe to repeat with the same offers: the jobs taken by the
-- first call are answered again, and what an error cut off is completed: it has left the jobs where they stood, or noted which job
-- goes to which slot.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             who takes
-- ARGV[2]  accept_ms       how long a runner has to accept
-- ARGV[3]  affinity_ms     how long it is remembered which runner ran jobs with a key; 0: not at all
-- ARGV[4]  affinity_wait_ms how long a job waits for the manager that had its key last, from when it was queued
-- ARGV[5]  rank            of its class; a lane in which a pod of a lower rank waits is left to that one
-- ARGV[6]  n               how many lanes
-- ARGV[7…] lanes           '<scope>:<fp>' of lanes this class matches, all of one kind of scope
-- then     per free slot, 4: offer id, runner id, system id, accept_ms or '' (as all); none: pass a wake on
--
-- Returns {jobs, lanes, held}. Per job {number of its slot, lease id, job id, lane, attempt, order}: of the slots' managers it has
--         the one that ran its key last, if that one has a slot here, else the first slot that is left. Slots left over: the pod now
--         waits in every lane asked; none left: in none of them. Lanes: those to ask again, as work is left that the index hid.
--         Tenants of equal share go by the head of the bucket that stands first; that may be outdated where its
--         project has started jobs from another lane since. In a paused lane the pod just waits.
-- Cost O(slots · log tenants + lanes)
--
-- flags: allow-oom
-- uses: base event score pause policy affinity wake project bucket order index group count job assign look

local me, accept_ms, affinity_ms, wait_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local rank, n_lanes = tonumber(ARGV[5]), tonumber(ARGV[6])
local first_slot = 7 + n_lanes
local n_slots = (#ARGV - first_slot + 1) / 4
local took = P .. 'took:' .. (ARGV[first_slot] or '')

local TOOK_MS = 60000 -- how long a repeated call is known as such; by then what it took has gone back

local heads, scope_of, fp_of = {}, {}, {} -- by lane: those who stand there, and its parts

local HELD_MAX = 16 -- jobs passed over; the next goes to any manager, so that a call moves something and costs little

-- How far ahead to read: a lane's tenants or buckets, as many as may be taken or passed over, and one; a tenant's buckets.
local AHEAD = math.min(n_slots, STEPS) + (wait_ms > 0 and n_slots > 0 and HELD_MAX or 0) + 1
local TENANT_AHEAD = math.min(AHEAD, 8)

-- Where a slot's ARGV begin.
local function slot_at(nth)
  return first_slot + 4 * (nth - 1)
end

-- The orders of these jobs, in one go.
local function orders_of(ids)
  local keys = {}
  for i, id in ipairs(ids) do keys[i] = P .. 'order:' .. id end
  return keys[1] and call('MGET', unpack(keys)) or {}
end

-- A job that an earlier call took from a lane for a slot, and perhaps did not come as far as to assign it. Answers its attempt, if
-- it still is the slot's.
local function assigned_again(job, slot, scope, order)
  local _, project_id = bucket_parts(job.bucket)
  local is_slots = job.lease_id == lease_of(slot, job.id, job.attempt)
  if job.state == 'assigned' and is_slots then
    assigned_before(job.id, job.lease, job.bucket, due_of(slot, accept_ms))
    return job.attempt
  elseif job.state == 'queued' and not is_slots and entry_holder(job.bucket, job.entry_id) == me then
    local attempt = tostring(job.attempt + 1)
    if affinity_ms ~= '0' then remember_affinity(order, slot, rank, me, affinity_ms) end
    assign(job.id, attempt, scope, project_id, slot, me, accept_ms)
    count_taken(job.id, scope, project_id)
    return attempt
  end
end

-- The reply of an earlier call with these offers was lost: give it again.
local function repeated()
  local notes = call('GET', took)
  if not notes then return nil end
  local jobs = {}
  for nth, note in ipairs(split(notes)) do
    local id, scope, fp = string.match(note, '^(%d+)@(.*):([^:]+)$')
    local job = id and load_job(id)
    local order = job and call('GET', P .. 'order:' .. id)
    local attempt = job and assigned_again(job, slot_at(nth), scope, order)
    if attempt then jobs[#jobs + 1] = { nth, lease_of(slot_at(nth), id, attempt), id, scope .. ':' .. fp, attempt, order } end
  end
  write_assigned(me)
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
    set_place(tenant_lane, first.member, nil)
    return place_tenant(fp, tenant)
  elseif expected ~= first.score then
    set_place(tenant_lane, first.member, expected)
    return place_tenant(fp, tenant)
  end
  return fp .. ':' .. id .. ':' .. priority, id
end

-- The bucket to take from in a group or project lane, or nil when the index had to be mended first.
local function next_of_buckets(lane, fp, scope)
  local member, score = first_of(lane_key(lane))
  local id, priority = string.match(member, '^(%d+):(-?%d)$')
  if not in_scope(id, scope) or paused('tenant:', project(id).tenant) then return set_place(lane_key(lane), member, nil) and nil end
  local expected = counts_in(scope) and bucket_score(tonumber(priority), running_in(scope, id), head_in(score))
  if expected and expected ~= score then return set_place(lane_key(lane), member, expected) and nil end
  return fp .. ':' .. id .. ':' .. priority, id
end

-- The free slots' managers, '<runner id> <system id>', each with the numbers of its slots, the last first.
local function slots_by_manager()
  local slots_of = {}
  for nth = n_slots, 1, -1 do
    local manager = ARGV[slot_at(nth) + 1] .. ' ' .. ARGV[slot_at(nth) + 2]
    slots_of[manager] = slots_of[manager] or {}
    table.insert(slots_of[manager], nth)
  end
  return slots_of
end

local TELL_EVERY_MS = 1000 -- how often a manager's pod is told of it: two that hold each other's jobs would tell each other at once

local held = {}
local unclaimed -- the managers' slots that no job which likes them was taken for

-- Whether the first job of a bucket waits for the manager that it likes, and has been passed over in this call: what stands
-- behind it in its lane goes first, as long as it waits. In an instance lane that is all of its tenant.
local function hold_back(lane, name)
  local entry = first_queued(name)
  local order = entry and call('GETRANGE', P .. 'order:' .. entry[2][2], 0, ORDER_HEAD)
  local liked = order and order ~= '' and call('GET', affinity_key(order))
  if not liked then return false end
  local manager, pod, its_rank = liked_parts(liked)
  unclaimed = unclaimed or slots_by_manager()
  if table.remove(unclaimed[manager] or {}) or #held == HELD_MAX then return false end
  local queued_at = math.min(tonumber(entry[2][4]), tonumber(string.match(entry[1], '^%d+'))) -- Rails may have dated it ahead
  if its_rank > rank or not waits_for(pod, queued_at, wait_ms) then return false end
  if call('HEXISTS', job_key(entry[2][2]), 'lease') == 1 then return false end -- it was declined, or worse
  table.remove(heads[lane], 1) -- here only: it stays where it stands
  local runner_id, system_id = string.match(manager, '^(%S+) (%S+)$')
  held[#held + 1] = { lane, queued_at + wait_ms - NOW, runner_id, system_id }
  if pod ~= me and call('ZSCORE', P .. 'waiting:' .. lane, pod)
    and call('SET', P .. 'told:' .. lane .. ' ' .. manager, me, 'NX', 'PX', TELL_EVERY_MS) then
    mail(pod, 'type', 'wake', 'lane', lane, 'likes', manager) -- its manager may be free
  end
  return true
end

-- Takes one job from a lane; nil when the lane's head was not what it seemed, or waits.
local function take_from(lane, scope, fp)
  local name, project_id
  if scope == 'instance' then
    name, project_id = next_of_tenants(lane, fp)
  else
    name, project_id = next_of_buckets(lane, fp, scope)
  end
  if not name or wait_ms > 0 and hold_back(lane, name) then return nil end
  local entry_id, id, next_head, given_back = bucket_pop(name, me)
  if not entry_id then return reindex(name, nil) end
  local attempt = '1'
  if given_back then
    local f = call('HMGET', job_key(id), 'state', 'lease')
    if f[1] ~= 'queued' then -- never seen; a job that ended takes its entry along
      bucket_forget(name, { entry_id })
      return reindex(name, next_head)
    end
    local _, last = lease_parts(f[2] or '') -- none, where an error cut off the call that took it first
    attempt = tostring(last + 1)
  end
  count_taken(id, scope, project_id)
  reindex(name, next_head)
  return { id = id, lane = lane, scope = scope, project_id = project_id, attempt = attempt }
end

-- Which job has which slot: first those that like a manager of these, then the others, in order.
local function by_slot(taken, orders)
  local of_slot, has_slot = {}, {}
  if affinity_ms ~= '0' and n_slots > 1 and taken[1] then
    local slots_of, keys = slots_by_manager(), {}
    for i, order in ipairs(orders) do keys[i] = affinity_key(order) end
    for i, liked in ipairs(call('MGET', unpack(keys))) do
      local nth = liked and table.remove(slots_of[liked_parts(liked)] or {})
      if nth then of_slot[nth], has_slot[i] = i, true end
    end
  end
  local nth = 1
  for i in ipairs(taken) do
    if not has_slot[i] then
      while of_slot[nth] do nth = nth + 1 end
      of_slot[nth] = i
    end
  end
  return of_slot
end

-- Which job goes to which slot, with its order. From now on the same call knows what this one took.
local function note_all(taken)
  if not taken[1] then return {} end
  local ids, of_nth, notes = {}, {}, {}
  for i, job in ipairs(taken) do ids[i] = job.id end
  local orders = orders_of(ids)
  local of_slot = by_slot(taken, orders)
  for nth = 1, n_slots do
    local job = taken[of_slot[nth]]
    if job then job.order = orders[of_slot[nth]] end
    of_nth[nth], notes[nth] = job, job and job.id .. '@' .. job.lane or '-'
  end
  call('SET', took, table.concat(notes, ' '), 'PX', TOOK_MS)
  return of_nth
end

-- Gives the jobs to their slots. Answers them.
local function assign_all(of_nth)
  local jobs = {}
  for nth = 1, n_slots do
    local job = of_nth[nth]
    if job then
      if affinity_ms ~= '0' then remember_affinity(job.order, slot_at(nth), rank, me, affinity_ms) end
      local lease_id = assign(job.id, job.attempt, job.scope, job.project_id, slot_at(nth), me, accept_ms)
      jobs[#jobs + 1] = { nth, lease_id, job.id, job.lane, job.attempt, job.order }
    end
  end
  return jobs
end

local jobs = n_slots > 0 and repeated()
if jobs then -- whether it passed the wake on, put the pod in line, or passed jobs over, is not known any more
  local full = #jobs == n_slots
  for i = 7, full and first_slot - 1 or 0 do
    if call('EXISTS', lane_key(ARGV[i])) == 1 then wake_one(ARGV[i], me) end
  end
  return { jobs, (wait_ms > 0 or not full) and { unpack(ARGV, 7, first_slot - 1) } or {}, {} }
end
local taken = {}

for i = 7, first_slot - 1 do
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

-- The lane whose head goes first.
local function best_lane()
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
  return best
end

-- Each step takes a job or mends the index once; the index is never far out.
local function take_all()
  for _ = 1, n_slots + STEPS do
    local best = #taken < n_slots and best_lane()
    if not best then break end
    taken[#taken + 1] = take_from(best, scope_of[best], fp_of[best])
  end
  write_orders()
  return note_all(taken)
end

-- What was taken goes back, and is indexed by what Redis has.
local function put_back()
  orders, order_keys, tenants, projects, running_by, counted, served, last_turn = {}, {}, {}, {}, {}, {}, {}, nil
  for _, entry in ipairs(popped) do
    local name, entry_id, id = unpack(entry)
    local _, project_id = bucket_parts(name)
    bucket_return(name, entry_id)
    for _, scope in pairs(scope_of) do
      if scope ~= 'instance' then call('SREM', P .. 'running:' .. scope .. ':' .. project_id, id) end
    end
  end
  for _, entry in ipairs(popped) do
    local head = bucket_head(entry[1])
    if head then index(entry[1], head) end
    local _, project_id = bucket_parts(entry[1])
    place_project(project_id) -- others of its buckets may have left their lanes, as it came to its cap
  end
end

-- An entry that was taken and is nobody's would never be found.
local whole, of_nth = pcall(take_all)
if not whole then
  if popped[1] then pcall(put_back) end
  error(of_nth)
end
jobs = assign_all(of_nth)
write_assigned(me)

local mine, holds = {}, {}
for _, job in ipairs(held) do holds[job[1]] = true end
for lane, list in pairs(heads) do
  if #taken == n_slots then
    call('ZREM', P .. 'waiting:' .. lane, me)
    if list[1] or holds[lane] then wake_one(lane, me) end
  elseif list[1] then
    mine[#mine + 1] = lane
  else
    call('ZADD', P .. 'waiting:' .. lane, rank, me)
  end
end
return { jobs, mine, held }
