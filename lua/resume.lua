-- resume: end a pause, and wake who waits for what it held up.
--
-- Called by `job-router resume`, and by stage `resume` when a pause's time is over. Safe to repeat, and may be left half way: what
-- is not done to the end comes up in `pause_ends` again.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  target          'all', 'lane:<lane>', 'tenant:<key>' or 'project:<id>'
-- ARGV[2]  name            the same for people, a JSON string
-- ARGV[3]  by              who wants it, a JSON string
-- ARGV[4]  over            its end as seen by who calls because that is past, or ''
-- ARGV[5]  indexed         1: the buckets of its tenant or project are indexed anew
--
-- Returns  OK     not paused any more. Of a tenant or a project: index its buckets (`index`), then call again with 1
--          GONE   it is not paused
--          STALE  it has another end by now; nothing changed
-- Cost O(lanes in which the tenant has queued jobs, or scopes of the project, or pods)
--
-- flags: allow-oom
-- uses: base reply event score pause policy affinity wake project bucket order index

local INDEX_MS = 5000 -- by then its buckets are indexed, or whoever was about to do it is dead

local target, name, by, over, indexed = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local pause, ends = call('HGET', PAUSED, target), call('ZSCORE', PAUSE_ENDS, target)
if indexed == '1' then
  if not pause then call('ZREM', PAUSE_ENDS, target) end -- else it was paused again meanwhile
  return OK
end
if not pause and not ends then return GONE end
if over ~= '' and over ~= ends then return STALE end

-- What fails from here on comes up again, and is told again at most.
call('ZADD', PAUSE_ENDS, NOW + INDEX_MS, target)
if pause then
  local since_ms, note = string.match(pause, '^{"since_ms":(%d+).-,"note":(".*")}$')
  local reason = over == '' and 'asked' or 'over'
  emit_queue('resumed', target, name, ',"reason":"' .. reason .. '","since_ms":' .. since_ms .. ',"by":' .. by ..
    ',"note":' .. note)
  call('HDEL', PAUSED, target)
end

local kind, of = target_parts(target)
if kind == 'lane' then
  wake_one(of, '')
elseif kind == 'all' then
  -- All lanes at once, however many there are: each pod asks for whatever it has slots for.
  for _, pod in ipairs(call('ZRANGE', KEYS[2], 0, PODS_MAX - 1)) do mail(pod, 'type', 'resync') end
elseif kind == 'tenant' then
  for _, fp in ipairs(call('SRANDMEMBER', P .. 'tenant:' .. of .. ':lanes', STEPS)) do -- of more, `index` finds the rest
    place_tenant(fp, of)
    if not tenant_capped(of) then uncapped(fp) end
  end
end
if kind == 'project' and project_facts(of).facts then route_project(of) end
if kind == 'lane' or kind == 'all' then call('ZREM', PAUSE_ENDS, target) end
return OK
