-- pause: hold up everything, a lane, a tenant or a project: nothing new of it is assigned until `resume`.
--
-- Called by `job-router pause`. Safe to repeat: the same pause again changes nothing. Another end, name or note takes the place
-- of the former; it stays paused since when it was.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  target          'all', 'lane:<lane>', 'tenant:<key>' or 'project:<id>'
-- ARGV[2]  name            the same for people, a JSON string
-- ARGV[3]  until_ms        when it ends by itself, or ''
-- ARGV[4]  by              who wants it, a JSON string
-- ARGV[5]  note            why, a JSON string
--
-- Returns  OK     paused, now or by an earlier call
-- Cost O(lanes in which the tenant has queued jobs, or scopes of the project)
--
-- flags: allow-oom
-- uses: base reply event score pause policy project bucket order index

local target, name, until_ms, by, note = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local known = call('HGET', PAUSED, target)
local since_ms = known and string.match(known, '^{"since_ms":(%d+)') or NOW_TEXT
local members = ',"by":' .. by .. ',"note":' .. note
if until_ms ~= '' then members = ',"until_ms":' .. until_ms .. members end

-- What fails here has paused nothing, and is told again. What fails after it is done again.
if known ~= '{"since_ms":' .. since_ms .. members .. '}' then emit_queue('paused', target, name, members) end
write_pause(target, since_ms, until_ms, members)

local kind, of = target_parts(target)
if kind == 'tenant' then
  for _, fp in ipairs(call('SRANDMEMBER', P .. 'tenant:' .. of .. ':lanes', STEPS)) do -- of more, `take` mends the rest
    place_tenant(fp, of)
  end
elseif kind == 'project' and project_facts(of).facts then
  route_project(of)
end
return OK
