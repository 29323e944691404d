-- bury: a pod is dead, or says good-bye: give back what it had not delivered, pass on the wakes it had not heard.
--
-- Called by stage `recover` for a pod whose heartbeat it has seen unchanged for `pod_dead_after` on its own clock,
-- and by a draining pod for itself. Safe to repeat; called until it answers 0. Jobs that had started stay: their
-- runners resume them on another pod, or their leases run out.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  pod             the dead one
-- ARGV[2]  heartbeat       its last one as seen; '' when it says good-bye itself
-- ARGV[3]  cursor          0, then as answered
--
-- Returns  {next cursor, jobs given back}; cursor '0': done
--          {STALE}  it lives: its heartbeat has moved
-- Cost O(64)
--
-- flags: allow-oom
-- uses: base reply event score wake version project bucket index count job

local dead, heartbeat, cursor = ARGV[1], ARGV[2], ARGV[3]
local seen = call('ZSCORE', KEYS[2], dead)
if heartbeat ~= '' and seen and seen ~= heartbeat then return { STALE } end

local mine, given_back = {}, 0
local page = call('HSCAN', P .. 'pod:' .. dead .. ':jobs', cursor, 'COUNT', STEPS)
for i = 1, #page[2], 2 do
  local lease_id, job = page[2][i], load_job(page[2][i + 1])
  if not job or job.lease_id ~= lease_id or job.state == 'queued' then
    call('HDEL', P .. 'pod:' .. dead .. ':jobs', lease_id)
  elseif job.state == 'assigned' then
    requeue(job, heartbeat == '' and 'drain' or 'pod_dead', '', mine)
    given_back = given_back + 1
  end
end
settle()
if page[1] ~= '0' then return { page[1], given_back } end

local mailbox = P .. 'mail:' .. dead
call('ZREM', KEYS[2], dead)
for _, letter in ipairs(call('XREVRANGE', mailbox, '+', '-', 'COUNT', STEPS)) do
  if letter[2][2] == 'wake' then wake_one(letter[2][4], '') end
end
call('DEL', mailbox)
return { '0', given_back }
