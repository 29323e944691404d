-- pause: what an operator holds up: nothing new of it is assigned. All else goes on.
--
-- paused      hash  target -> JSON: since_ms, until_ms where it ends by itself, by, note. A target is 'all', 'lane:<lane>',
--                   'tenant:<key>' or 'project:<id>'
-- pause_ends  zset  target -> when its pause is over; of one that is over and not yet dealt with to the end: when somebody else
--                   should do it
--
-- instance    string  names what this partition holds: another one than before, and Redis has lost its data. Where it is missing
--                     nothing is assigned: a runner may still run a job that Rails has published again.
--
-- A paused lane keeps what stands in it, and `take` passes it over. A paused tenant is like one at its cap in instance lanes,
-- and its buckets stand in no others. A paused project has no open scopes. Nobody is woken for what is paused: whoever ends the
-- pause wakes.

local PAUSED = P .. 'paused'
local PAUSE_ENDS = P .. 'pause_ends'

local INSTANCE = P .. 'instance'

local has_instance -- looked up with the next
local by_hand -- what is known to be paused; false: nothing is, nor is anything set otherwise than by default

-- Whether an operator has a hand in it; looked up once per call.
local function something_by_hand()
  if by_hand == nil then
    -- A key that is named three times counts three times: one call tells all.
    local there = call('EXISTS', INSTANCE, INSTANCE, INSTANCE, PAUSED, P .. 'policy')
    has_instance = there >= 3
    by_hand = there ~= 3 and {}
  end
  return by_hand
end

-- `kind` is 'lane:', 'tenant:' or 'project:'. One function, as each costs every call that has it.
local function paused(kind, of)
  local known = something_by_hand()
  if not known then return false end
  if not has_instance and kind == 'lane:' then return true end
  local target = kind .. of
  if known[target] == nil then
    known[target] = call('HEXISTS', PAUSED, target) == 1 or kind == 'lane:' and call('HEXISTS', PAUSED, 'all') == 1
  end
  return known[target]
end

-- What is written of a pause. `until_ms` may be ''; `members` are those that are told, JSON with a comma before each.
local function write_pause(target, since_ms, until_ms, members)
  if until_ms == '' then
    call('ZREM', PAUSE_ENDS, target)
  else
    call('ZADD', PAUSE_ENDS, until_ms, target)
  end
  call('HSET', PAUSED, target, '{"since_ms":' .. since_ms .. members .. '}')
end

-- What kind of target it is, and which.
local function target_parts(target)
  return string.match(target, '^(%a+):?(.*)$')
end
