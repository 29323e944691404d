-- tenant: a tenant's weight and cap, from `tenant.upserted`.
--
-- Called by stage `fan_out`. Safe to repeat and to call out of order: the newest inbox entry wins.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  tenant key
-- ARGV[2]  version         inbox entry id
-- ARGV[3]  weight          its share against others'
-- ARGV[4]  max_running     the most jobs on instance runners at once, or '' for no cap
--
-- Returns  OK     it is the newest now, or was already
--          STALE  a newer one is known; nothing changed
-- Cost O(lanes in which the tenant has queued jobs)
--
-- uses: base reply score pause policy affinity wake version project bucket order index

local tenant, version, weight, max_running = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local key = P .. 'tenant:' .. tenant
local known = call('HGET', key, 'version')
if known ~= version then
  if not newer(version, known) then return STALE end
  call('HSET', key, 'version', version, 'weight', weight, 'max_running', max_running)
end
for _, fp in ipairs(call('SRANDMEMBER', key .. ':lanes', STEPS)) do -- of more, `take` and `uncount` mend the rest
  place_tenant(fp, tenant)
  if not tenant_capped(tenant) then uncapped(fp) end
end
return OK
