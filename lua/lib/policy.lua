-- policy: how it is chosen who is next, where that is not the default.
--
-- policy  hash  group: 'fair' where jobs for group runners go by running jobs too; instance: 'fifo' where instance lanes are
--               plain queues; lane:<lane>: 'fifo' or 'fair' for one of them, whatever `instance` says; ageing_ms: where
--               priorities hold across tenants and projects, and what a step of it is worth; unindexed: 1 until all buckets follow
--               a change
--
-- It is the same for all pods, as it is here. After a change all buckets are indexed anew: until then, which is soon, they
-- stand where they stood.

local POLICY = P .. 'policy'

local known_policy

local function policy()
  if not known_policy then
    known_policy = {}
    local fields = something_by_hand() and call('HGETALL', POLICY) or {}
    for i = 1, #fields, 2 do known_policy[fields[i]] = fields[i + 1] end
  end
  return known_policy
end

-- Whether an instance lane is a plain queue: by queue time and nothing else, or by that and priority.
local function is_plain(fp)
  local known = policy()
  return known.ageing_ms ~= nil or (known['lane:instance:' .. fp] or known.instance) == 'fifo'
end

-- Whether instance lanes differ in that.
local function are_lanes_mixed()
  if policy().ageing_ms then return false end
  for field in pairs(policy()) do
    if string.find(field, '^lane:') then return true end
  end
  return false
end

-- Whether the jobs that a project runs on a group's runners count in the group's lanes.
local function counts_in(scope)
  return policy().group == 'fair' and not policy().ageing_ms and string.find(scope, '^group:') ~= nil
end

-- Queue time as it counts in a plain queue.
local function plain_head(priority, head)
  local ageing_ms = policy().ageing_ms
  return ageing_ms and aged_head(priority, head, ageing_ms) or head
end

-- Score of a tenant in an instance lane; `first` is that of its first bucket there.
local function score_of_tenant(fp, running, weight, first)
  if is_plain(fp) then return head_in(first) end
  return tenant_score(running, weight, head_in(first))
end

-- Score of a bucket where nothing but its priority and head counts.
local function score_by_head(priority, head)
  return policy().ageing_ms and plain_head(priority, head) or fifo_score(priority, head)
end
