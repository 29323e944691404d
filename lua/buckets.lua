-- buckets: a page of the buckets that have queued jobs, each with what decides who may take them.
--
-- Called by stage `stuck`, page by page. Reads only.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  after           the last member of the page before, as a lexical bound: '-', then as answered
--
-- Returns {next, buckets, capabilities}. next: the bound to go on from, '' when done; per bucket its member of `buckets`
--         and its project's facts, flat; per fingerprint among them it and its capability, flat
-- Cost O(64)
--
-- flags: no-writes
-- uses: base project bucket index

local members = call('ZRANGEBYLEX', BUCKETS, ARGV[1], '+', 'LIMIT', 0, STEPS)
local buckets, capabilities, seen, facts_of = {}, {}, {}, {}

for i, member in ipairs(members) do
  local fp, id = bucket_parts(bucket_of_member(member))
  if facts_of[id] == nil then facts_of[id] = call('HGET', P .. 'project:' .. id, 'facts') end
  buckets[2 * i - 1], buckets[2 * i] = member, facts_of[id] or ''
  if not seen[fp] then
    seen[fp] = true
    capabilities[#capabilities + 1] = fp
    capabilities[#capabilities + 1] = call('HGET', CAPABILITIES, fp) or ''
  end
end
return { #members == STEPS and '(' .. members[STEPS] or '', buckets, capabilities }
