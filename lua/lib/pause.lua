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

local by_hand -- whether something is paused, or set otherwise than by default; looked up once per call

local function something_by_hand()
  if by_hand == nil then by_hand = call('EXISTS', PAUSED, P .. 'policy') > 0 end
  return by_hand
end

local known_paused = {}

local function is_paused(target)
  if known_paused[target] == nil then known_paused[target] = call('HEXISTS', PAUSED, target) == 1 end
  return known_paused[target]
end

local function lane_paused(lane)
  return something_by_hand() and (is_paused('all') or is_paused('lane:' .. lane))
end

local function tenant_paused(tenant)
  return something_by_hand() and is_paused('tenant:' .. tenant)
end

local function project_paused(id)
  return something_by_hand() and is_paused('project:' .. id)
end

-- What kind of target it is, and which.
local function target_parts(target)
  return string.match(target, '^(%a+):?(.*)$')
end
