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
-- uses: base reply event score pause policy affinity wake project bucket order index group count job

local dead, heartbeat, cursor = ARGV[1], ARGV[2], ARGV[3]
local seen = call('ZSCORE', KEYS[2], dead)
if heartbeat ~= '' and seen and seen ~= heartbeat then return { STALE } end

local mine, given_back = {}, 0
local held = P .. 'pod:' .. dead .. ':jobs'
local page = call('SSCAN', held, cursor, 'COUNT', STEPS)
for _, id in ipairs(page[2]) do
  local job = load_job(id)
  if not job or job.pod ~= dead or job.state == 'queued' and not was_cut_off(job) then
    call('SREM', held, id)
  elseif job.state == 'queued' then
    go_back(job)
    given_back = given_back + 1
  elseif job.state == 'assigned' then
    requeue(job, heartbeat == '' and 'drain' or 'pod_dead')
    given_back = given_back + 1
  end
end
settle('', mine)
if page[1] ~= '0' then return { page[1], given_back } end

local mailbox = P .. 'mail:' .. dead
call('ZREM', KEYS[2], dead)
for _, letter in ipairs(call('XREVRANGE', mailbox, '+', '-', 'COUNT', STEPS)) do
  if letter[2][2] == 'wake' then wake_one(letter[2][4], '') end
end
call('DEL', mailbox)
return { '0', given_back }
