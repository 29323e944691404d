-- order: sorted sets that say who is next, read ahead where a call moves many members, and then written once at its end.

local orders = {} -- key -> its first members in order, with `whole` when these are all, and what has `changed`
local order_keys = {} -- in the order in which they were asked for: a lane, then its tenants

local function before(a, b)
  return a.score < b.score or a.score == b.score and a.member < b.member
end

-- Writes what has changed in a sorted set.
local function write_order(list)
  local added, removed = {}, {}
  for member, score in pairs(list.changed) do
    if score then
      added[#added + 1], added[#added + 2] = score, member
    else
      removed[#removed + 1] = member
    end
  end
  list.changed = {}
  if added[1] then call('ZADD', list.key, unpack(added)) end
  if removed[1] then call('ZREM', list.key, unpack(removed)) end
end

local function read_order(list)
  local flat = call('ZRANGE', list.key, 0, list.ahead - 1, 'WITHSCORES')
  list.whole = #flat < 2 * list.ahead
  for i = 1, #flat, 2 do list[#list + 1] = { member = flat[i], score = tonumber(flat[i + 1]) } end
end

-- The first members of a sorted set. From now on its changes are kept here until `write_orders`, and this list follows
-- them; it is empty only when the set is, or who reads it has taken members out of it.
local function order_of(key, ahead)
  local list = orders[key]
  if list then return list end
  list = { key = key, ahead = ahead, changed = {} }
  orders[key] = list
  order_keys[#order_keys + 1] = key
  read_order(list)
  return list
end

-- From now on changes of this sorted set are kept until `write_orders`; nobody reads it before.
local function hold_order(key)
  if orders[key] then return end
  orders[key] = { key = key, unread = true, changed = {} }
  order_keys[#order_keys + 1] = key
end

-- The first member and its score, or nil.
local function first_of(key)
  local list = orders[key]
  if list then return list[1] and list[1].member, list[1] and list[1].score end
  local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')
  return first[1], tonumber(first[2])
end

-- Gives a member its score, or takes it out when that is nil. Answers whether it may be new.
local function set_place(key, member, score)
  local list = orders[key]
  if not list then
    if score then return call('ZADD', key, score, member) == 1 end
    call('ZREM', key, member)
    return false
  end
  list.changed[member] = score or false
  if list.unread then return true end
  local new = true
  for i, known in ipairs(list) do
    if known.member == member then
      table.remove(list, i)
      new = false
      break
    end
  end
  local placed = { member = member, score = score }
  -- Behind the last that is known it may stand anywhere.
  if score and (list.whole or list[1] and before(placed, list[#list])) then
    local at = #list + 1
    while at > 1 and before(placed, list[at - 1]) do at = at - 1 end
    table.insert(list, at, placed)
  end
  if not list[1] and not list.whole then
    write_order(list)
    read_order(list)
  end
  return new
end

-- The first member of a list that was read ahead stands further back.
local function sink(list, score)
  local first = list[1]
  list.changed[first.member] = score
  first.score = score
  local at, count = 1, #list
  while at < count and before(list[at + 1], first) do
    list[at], list[at + 1] = list[at + 1], first
    at = at + 1
  end
  if at == count and not list.whole then
    list[at] = nil -- behind the last that is known it may stand anywhere
    if at == 1 then
      write_order(list)
      read_order(list)
    end
  end
end

-- The end of every script that reads ahead or holds. A tenant's buckets before the tenant: where an error cuts this off, the tenant
-- stands where `take` meets it and mends it.
local function write_orders()
  for i = #order_keys, 1, -1 do
    local list = orders[order_keys[i]]
    if next(list.changed) then write_order(list) end
  end
  orders, order_keys = {}, {}
end
