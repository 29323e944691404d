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
-- uses: base reply pause version project

local id, version, tenant, max_running = ARGV[1], ARGV[2], ARGV[3], ARGV[6]
local key = P .. 'project:' .. id
local known = project_facts(id)
local cap_is_newer = newer(version, call('HGET', key, 'cap_version'))
local facts_are_newer = newer(version, known.job_version) and newer(version, known.upsert_version)

if not cap_is_newer and not facts_are_newer then return known.unindexed and OK or STALE end
if cap_is_newer then
  known.cap = max_running == '' and '-' or max_running
  call(max_running == '' and 'SREM' or 'SADD', CAPPED, id)
end
if facts_are_newer then
  local _, instance_runners, group_runners, namespaces = facts_parts(known.facts or '- 1 1 ')
  if ARGV[4] ~= '' then instance_runners = ARGV[4] end
  if ARGV[5] ~= '' then group_runners = ARGV[5] end
  known.facts = tenant .. ' ' .. instance_runners .. ' ' .. group_runners .. ' ' .. namespaces
end
route_project(id)
-- Last, and at once: until it is written, the same call is newer.
local told = { 'unindexed', '1' }
if cap_is_newer then told[3], told[4] = 'cap_version', version end
if facts_are_newer then
  for _, word in ipairs({ 'facts', known.facts, 'upsert_version', version }) do told[#told + 1] = word end
end
call('HSET', key, unpack(told))
return OK
