-- policy: set how it is chosen who is next.
--
-- Called by a pod as it connects, with its configuration, and by `job-router lane-order`. Safe to repeat: while buckets are not
-- indexed after a change, each call answers so.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1…] field, value    pairs, as in the hash; an empty value: the default. `instance` is of all instance lanes: what was said of
--                          single ones is forgotten. None: all buckets are indexed
--
-- Returns  1  something is another now: index all buckets anew (`index`), then call again without fields
--          0  all was so before
-- Cost O(fields)
--
-- flags: allow-oom
-- uses: base policy

local function set(field, value)
  if (call('HGET', POLICY, field) or '') == value then return end
  call('HSET', POLICY, 'unindexed', '1')
  if value == '' then
    call('HDEL', POLICY, field)
  else
    call('HSET', POLICY, field, value)
  end
end

for i = 1, #ARGV, 2 do
  set(ARGV[i], ARGV[i + 1])
  if ARGV[i] == 'instance' then
    for _, field in ipairs(call('HKEYS', POLICY)) do
      if string.find(field, '^lane:') then set(field, '') end
    end
  end
end
if #ARGV == 0 then call('HDEL', POLICY, 'unindexed') end
return call('HEXISTS', POLICY, 'unindexed')
