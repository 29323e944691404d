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

-- Score of a bucket in a plain queue: its queue time, with priority where that holds for all; nil where the lane is none. `fp` is
-- of an instance lane, which may be one by itself. Of a tenant the same with priority 0.
local function plain_score(fp, priority, head)
  if not something_by_hand() then return nil end
  local known = policy()
  if known.ageing_ms then return aged_head(priority, head, known.ageing_ms) end
  if fp and (known['lane:instance:' .. fp] or known.instance) == 'fifo' then return head end
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
