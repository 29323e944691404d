-- group: which jobs run on a group's runners, for its lanes where they are fair.
--
-- running:<scope>:<project>  set  ids of the project's jobs on runners of that group, whatever the policy: it may change

-- A job of this project starts on a group's runner.
local function count_in(scope, id, job)
  if not string.find(scope, '^group:') then return end
  local running = counts_in(scope) and running_in(scope, id)
  if call('SADD', P .. 'running:' .. scope .. ':' .. id, job) == 1 and running then
    running_by[scope .. ':' .. id] = running + 1
  end
end

local freed_in = {} -- '<scope>:<project>' -> how many of its jobs ended, or went back, in this call

-- A project's buckets in a group's lanes may go sooner now, by as many running jobs as it has lost.
local function lower_in_groups()
  for key, lost in pairs(freed_in) do
    local scope, id = string.match(key, '^(.*):(%d+)$')
    local members = counts_in(scope) and call('ZRANGEBYLEX', BUCKETS, '[' .. id .. ':', '(' .. id .. ';', 'LIMIT', 0, STEPS) or {}
    for _, name in ipairs(members) do
      local fp, _, priority = bucket_parts(bucket_of_member(name))
      local lane, member = lane_key(scope .. ':' .. fp), id .. ':' .. priority
      local score = call('ZSCORE', lane, member)
      if score then set_place(lane, member, lowered_score(tonumber(score), lost)) end
    end
  end
end
