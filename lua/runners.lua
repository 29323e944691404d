-- runners: a page of the registry.
--
-- Called by `redis::explain` and stage `stuck`, page by page. Reads only.
--
-- KEYS[1]  {jr:runners}:ids  set  ids of runners that are not deleted
-- ARGV[1]  cursor          0, then as answered
-- ARGV[2]  id prefix       '{jr:runners}:id:'
--
-- Returns {next cursor, records}: cursor '0': done; records as JSON. One may come twice.
-- Cost O(64)
--
-- flags: no-writes
-- uses: base

local page = redis.call('SSCAN', KEYS[1], ARGV[1], 'COUNT', STEPS)
local records = {}
for _, id in ipairs(page[2]) do
  local record = redis.call('HGET', ARGV[2] .. id, 'record')
  if record and record ~= '' then records[#records + 1] = record end
end
return { page[1], records }
