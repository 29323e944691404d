-- scope: a runner of this scope is connected: from now on jobs are indexed for it.
--
-- Called by stage `scopes` when a pod gets its first runner of a scope, and every third of `scope_ttl` while it has
-- one. Safe to repeat. A scope is 'opening' until every bucket that was queued before has been indexed (`index`);
-- whoever meets it in that state does the indexing, so a pod that dies half way leaves nothing out.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  scope           instance, group:<id> or project:<id>
-- ARGV[2]  indexed         1: all buckets are indexed now
--
-- Returns  1  open: nothing to do
--          0  opening: page through `index`, then call again with 1
-- Cost O(log scopes)
--
-- uses: base project

local scope, indexed = ARGV[1], ARGV[2]
if indexed == '1' or tonumber(call('ZSCORE', SCOPES, scope) or '0') > 0 then
  call('ZADD', SCOPES, NOW_TEXT, scope)
  return 1
end
call('ZADD', SCOPES, 0, scope)
return 0
