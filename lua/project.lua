-- project: a project's switches and cap, from `project.upserted`.
--
-- Called by stage `fan_out`. Safe to repeat and to call out of order: the newest inbox entry wins.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  project id
-- ARGV[2]  version            inbox entry id
-- ARGV[3]  tenant key         who pays
-- ARGV[4]  instance_runners   0, 1, or '' for unchanged
-- ARGV[5]  group_runners      0, 1, or '' for unchanged
-- ARGV[6]  max_running        the most jobs on instance runners at once, or '' for no cap
--
-- Returns  OK     it is the newest now: index the project's buckets anew (`index`)
--          STALE  a newer one is known; nothing changed
-- Cost O(scopes of the project)
--
-- uses: base reply version project

local id, version, tenant, max_running = ARGV[1], ARGV[2], ARGV[3], ARGV[6]
local key = P .. 'project:' .. id
local known = project(id)
local cap_version = call('HGET', key, 'cap_version')
local cap_is_newer = newer(version, cap_version or nil)
local facts_are_newer = newer(version, known.version)

if cap_is_newer then call('HSET', key, 'cap_version', version, 'max_running', max_running) end
if facts_are_newer then
  local instance_runners = ARGV[4] ~= '' and ARGV[4] or known.instance_runners or '1'
  local group_runners = ARGV[5] ~= '' and ARGV[5] or known.group_runners or '1'
  local open = open_scopes(id, known.namespaces or '', instance_runners, group_runners)
  call('HSET', key, 'tenant', tenant, 'namespaces', known.namespaces or '', 'instance_runners', instance_runners,
    'group_runners', group_runners, 'version', version, 'open', open)
end
if cap_is_newer or facts_are_newer then
  call('HSET', key, 'unindexed', '1')
  return OK
end
return call('HEXISTS', key, 'unindexed') == 1 and OK or STALE
