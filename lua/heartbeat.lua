-- heartbeat: this pod is alive; who else is?
--
-- Called by stage `recover` every `pod_heartbeat`. Safe to repeat.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             who calls
-- ARGV[2]  mail_read       id of the last mail it has dealt with; older mail goes away
-- ARGV[3]  mail_ttl_ms     how long mail outlives a pod that nobody buries
--
-- Returns {new, pods}. new: 1 when the pod was not known, at its start or after others took it for dead; pods:
--         {pod, last heartbeat} pairs, flat, at most 1,000
-- Cost O(pods)
--
-- flags: allow-oom
-- uses: base wake

local me, mail_read, mail_ttl_ms = ARGV[1], ARGV[2], ARGV[3]
local new = call('ZADD', KEYS[2], NOW_TEXT, me)
local mailbox = P .. 'mail:' .. me
call('XTRIM', mailbox, 'MINID', '~', mail_read)
call('PEXPIRE', mailbox, mail_ttl_ms)
return { new, call('ZRANGE', KEYS[2], 0, 999, 'WITHSCORES') }
