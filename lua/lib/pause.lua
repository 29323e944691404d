-- pause: what an operator holds up: nothing new of it is assigned. All else goes on.
--
-- paused      hash  target -> JSON: since_ms, until_ms where it ends by itself, by, note. A target is 'all', 'lane:<lane>',
--                   'tenant:<key>' or 'project:<id>'
-- pause_ends  zset  target -> when its pause is over; of one that is over and not yet dealt with to the end: when somebody else
--                   should do it
--
-- A paused lane keeps what stands in it, and `take` passes it over. A paused tenant is like one at its cap in instance lanes,
-- and its buckets stand in no others. A paused project has no open scopes. Nobody is woken for what is paused: whoever ends the
-- pause wakes.

local PAUSED = P .. 'paused'
local PAUSE_ENDS = P .. 'pause_ends'

local by_hand -- what is known to be paused; false: nothing is, nor is anything set otherwise than by default

-- Whether an operator has a hand in it; looked up once per call.
local function something_by_hand()
  if by_hand == nil then by_hand = call('EXISTS', PAUSED, P .. 'policy') > 0 and {} end
  return by_hand
end

-- `kind` is 'lane:', 'tenant:' or 'project:'. One function, as each costs every call that has it.
local function paused(kind, of)
  local known = something_by_hand()
  if not known then return false end
  local target = kind .. of
  if known[target] == nil then
    known[target] = call('HEXISTS', PAUSED, target) == 1 or kind == 'lane:' and call('HEXISTS', PAUSED, 'all') == 1
  end
  return known[target]
end

-- What kind of target it is, and which.
local function target_parts(target)
  return string.match(target, '^(%a+):?(.*)$')
end
