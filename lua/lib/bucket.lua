-- bucket: the queued jobs of one (fingerprint, project, priority), in order.
--
-- bucket:<fp>:<project>:<priority>  stream, group `dispatchers`; entry: id <job> at <queue time in ms>
-- buckets   zset, all 0: '<project>:<fp>:<priority>' of every bucket that holds queued jobs, so that a range by
--           name gives one project's
-- returned  set   the buckets that may hold given-back jobs: pending entries of the consumer `returned`,
--           all older than any entry not yet read, so they go first
--
-- An entry stays from fan_out until the job ends; what is queued is what nobody has read, and `returned`.

local BUCKETS = P .. 'buckets'
local RETURNED = P .. 'returned'
local GROUP = 'dispatchers'

local function bucket_key(name)
  return P .. 'bucket:' .. name
end

-- Fingerprint, project and priority of a bucket.
local function bucket_parts(name)
  local fp, id, priority = string.match(name, '^([^:]+):(%d+):(-?%d)$')
  return fp, id, tonumber(priority)
end

-- Its name in `buckets`, and back.
local function bucket_member(fp, id, priority)
  return id .. ':' .. fp .. ':' .. priority
end

local function bucket_of_member(member)
  local id, fp, priority = string.match(member, '^(%d+):([^:]+):(-?%d)$')
  return fp .. ':' .. id .. ':' .. priority
end

local function entries_of(answer)
  return answer and answer[1] and answer[1][2] or {}
end

local any_returned -- whether some bucket may hold given-back jobs; looked up once per call

-- The first given-back entries, at most `count`.
local function returned(name, count)
  if any_returned == nil then any_returned = call('EXISTS', RETURNED) == 1 end
  if not any_returned or call('SISMEMBER', RETURNED, name) == 0 then return {} end
  local entries = entries_of(call('XREADGROUP', 'GROUP', GROUP, 'returned', 'COUNT', count, 'STREAMS', bucket_key(name), '0'))
  if not entries[1] then call('SREM', RETURNED, name) end
  return entries
end

-- The first entry after `last` that nobody has read; `last` is the newest that somebody has.
local function unread(name, last)
  return call('XRANGE', bucket_key(name), '(' .. last, '+', 'COUNT', 1)[1]
end

local function last_read(name)
  local group = call('XINFO', 'GROUPS', bucket_key(name))[1]
  for i = 1, #group, 2 do
    if group[i] == 'last-delivered-id' then return group[i + 1] end
  end
end

-- Queue time of the bucket's first queued job, or nil when none is queued.
local function bucket_head(name)
  if call('EXISTS', bucket_key(name)) == 0 then return nil end
  local entry = returned(name, 1)[1] or unread(name, last_read(name))
  return entry and tonumber(entry[2][4])
end

local popped = {} -- bucket, entry id and job of what this call has taken

-- Takes the first queued entry for a pod. Answers its id, its job, the next one's queue time or nil, and whether it had
-- been given back.
local function bucket_pop(name, pod)
  local given_back = returned(name, 2)
  if given_back[1] then
    local id = given_back[1][1]
    call('XCLAIM', bucket_key(name), GROUP, pod, 0, id, 'JUSTID')
    popped[#popped + 1] = { name, id, given_back[1][2][2] }
    local next_entry = given_back[2] or unread(name, last_read(name))
    return id, given_back[1][2][2], next_entry and tonumber(next_entry[2][4]), true
  end
  local answer = redis.pcall('XREADGROUP', 'GROUP', GROUP, pod, 'COUNT', 1, 'STREAMS', bucket_key(name), '>')
  if answer and answer.err then
    -- A lane may name a bucket that emptied while the lane's scope was not its project's.
    if string.find(answer.err, 'NOGROUP', 1, true) then return nil end
    error(answer)
  end
  local entry = entries_of(answer)[1]
  if not entry then return nil end
  popped[#popped + 1] = { name, entry[1], entry[2][2] }
  local next_entry = unread(name, entry[1])
  return entry[1], entry[2][2], next_entry and tonumber(next_entry[2][4]), false
end

-- Puts a taken entry back in its old place.
local function bucket_return(name, entry_id)
  call('XCLAIM', bucket_key(name), GROUP, 'returned', 0, entry_id, 'JUSTID')
  call('SADD', RETURNED, name)
  any_returned = true
end

-- The pod that has a taken entry.
local function entry_holder(name, entry_id)
  local pending = call('XPENDING', bucket_key(name), GROUP, entry_id, entry_id, 1)[1]
  return pending and pending[2]
end

-- Forgets entries for good.
local function bucket_forget(name, entry_ids)
  local key = bucket_key(name)
  call('XACK', key, GROUP, unpack(entry_ids))
  call('XDEL', key, unpack(entry_ids))
end

-- Forgets a bucket that has lost its last entry.
local function bucket_close(name)
  local key = bucket_key(name)
  if call('XLEN', key) > 0 then return end
  call('DEL', key)
  call('SREM', RETURNED, name)
end
