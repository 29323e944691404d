-- look: what is queued in a bucket, without a write: for scripts that only read.

local AHEAD_MAX = 256 -- of more entries it is known that they are at least so many

-- Queued jobs of a bucket: its entries but those that a pod holds.
local function queued_in(name)
  local entries = call('XLEN', bucket_key(name))
  if entries == 0 then return 0 end
  local pending = call('XPENDING', bucket_key(name), GROUP)
  local held = pending[1]
  for _, consumer in ipairs(pending[4] or {}) do
    if consumer[1] == 'returned' then held = held - consumer[2] end
  end
  return math.max(0, entries - held)
end

-- How many queued jobs of a bucket go before this entry, and whether there may be more.
local function ahead_in_bucket(name, entry_id)
  local key, before = bucket_key(name), '(' .. entry_id
  local given_back = call('XPENDING', key, GROUP, '-', before, AHEAD_MAX, 'returned')
  local new = call('XRANGE', key, '(' .. last_read(name), before, 'COUNT', AHEAD_MAX)
  return #given_back + #new, #given_back == AHEAD_MAX or #new == AHEAD_MAX
end

-- The first queued entry of a bucket, {id, fields}, or nil.
local function first_queued(name)
  local key = bucket_key(name)
  if call('EXISTS', key) == 0 then return nil end
  local given_back = call('XPENDING', key, GROUP, '-', '+', 1, 'returned')[1]
  if given_back then return call('XRANGE', key, given_back[1], given_back[1])[1] end
  return unread(name, last_read(name))
end
