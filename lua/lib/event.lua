-- event: tell Rails. One entry on {jr:<p>}:events per move, in the same step as the move.
--
-- The stream is trimmed by `sweep`, not here: trimming is no work for the path of a job.

local EVENTS = P .. 'events'

-- `word` is the type's last word; `extra` is JSON members, each with a comma before it, or ''.
local function emit(word, id, attempt, extra)
  call('XADD', EVENTS, '*', 'v', '1', 'type', 'job.' .. word, 'data',
    '{"event_id":"' .. id .. '.' .. attempt .. '.' .. NOW_TEXT .. '.' .. word .. '","at_ms":' .. NOW_TEXT ..
    ',"id":' .. id .. ',"attempt":' .. attempt .. extra .. '}')
end

-- What happens to a queue, and not to a job. `target` is made of checked words; `name` is JSON.
local function emit_queue(word, target, name, extra)
  call('XADD', EVENTS, '*', 'v', '1', 'type', 'queue.' .. word, 'data',
    '{"event_id":"' .. target .. '.' .. NOW_TEXT .. '.' .. word .. '","at_ms":' .. NOW_TEXT ..
    ',"target":' .. name .. extra .. '}')
end

-- Managers of runners that are connected: manager -> when a pod said so last, in Redis' ms.
local ONLINE = P .. 'online'

-- What becomes of a runner's manager. `extra` is JSON members, as above.
local function emit_runner(word, runner_id, system_id, pod, extra)
  call('XADD', EVENTS, '*', 'v', '1', 'type', 'runner.' .. word, 'data',
    '{"event_id":"' .. runner_id .. '.' .. system_id .. '.' .. NOW_TEXT .. '.' .. word .. '","at_ms":' .. NOW_TEXT ..
    ',"runner_id":' .. runner_id .. ',"system_id":"' .. system_id .. '","pod":"' .. pod .. '"' .. extra .. '}')
end

-- This partition was empty, and has this name now.
local function emit_empty(instance)
  call('XADD', EVENTS, '*', 'v', '1', 'type', 'redis.empty', 'data',
    '{"event_id":"' .. instance .. '.empty","at_ms":' .. NOW_TEXT .. ',"instance":"' .. instance .. '"}')
end

-- The members that say who holds the job.
local function holder(lease_id, runner_id, system_id, pod)
  return ',"lease_id":"' .. lease_id .. '","runner_id":' .. runner_id ..
    ',"system_id":"' .. system_id .. '","pod":"' .. pod .. '"'
end
