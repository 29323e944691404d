-- index: index queued buckets anew, a page at a time.
--
-- Called by stage `scopes` when a scope opens, by `fan_out` when a project's scopes changed, and when a pause has ended. Safe to repeat. Only
-- adds: a bucket that stands in a lane it no longer belongs to is taken out when `take` meets it.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             who calls; woken through the answer, not by mail
-- ARGV[2]  after           the last member of the page before, or where to start, as a lexical bound: '-', '[12:', '(…'
-- ARGV[3]  before          where to end: '+', '(12;'
-- ARGV[4]  project         the project whose change is indexed, or ''
-- ARGV[5]  tenant          index only its buckets, or '' for all
--
-- Returns {next, lanes}. next: the bound to go on from, '' when done; lanes: those in which the calling pod waited.
-- Cost O(32 · scopes)
--
-- flags: allow-oom
-- uses: base score pause policy affinity wake project bucket order index

local me, after, before, changed, of_tenant = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local PAGE = 32
local mine, woken = {}, {}
local members = call('ZRANGEBYLEX', BUCKETS, after, before, 'LIMIT', 0, PAGE)

for _, member in ipairs(members) do
  local name = bucket_of_member(member)
  local fp, id = bucket_parts(name)
  local head = (of_tenant == '' or project(id).tenant == of_tenant) and bucket_head(name)
  if head then
    index(name, head)
    wake_for(fp, id, me, woken, mine)
  end
end

if #members == PAGE then return { '(' .. members[PAGE], mine } end
if changed ~= '' then call('HDEL', P .. 'project:' .. changed, 'unindexed') end
return { '', mine }
