-- wake: wake the best pod that waits in a lane.
--
-- Called by stage `recover` for a lane that `sweep` found stuck. Safe to repeat.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  lane            '<scope>:<fp>'
-- ARGV[2]  pod             who calls; woken through the answer, not by mail
--
-- Returns  1  the calling pod itself was the best one waiting
--          0  another was woken, or nobody waits
-- Cost O(log pods)
--
-- flags: allow-oom
-- uses: base wake

return wake_one(ARGV[1], ARGV[2]) and 1 or 0
