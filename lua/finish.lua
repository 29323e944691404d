-- finish: record the end of jobs, once, and tell Rails.
--
-- Called by stage `finish` once per batch of `Finished`, and for `job.finished` from Rails, which needs no lease:
-- Rails is the record. Safe to repeat: the same lease's end is OK again.
--
-- KEYS[1]  the partition   KEYS[2]  its pods
-- ARGV[1]  ended_ttl_ms    how long an end is remembered
-- ARGV[2…] per job, 5:     job id, lease id ('' from Rails), status word, exit code, failure reason word or ''
--
-- Returns, per job  OK        recorded, now or before; a job that was being canceled is recorded as canceled
--                   GONE      it had ended otherwise: canceled, expired, under another lease; or it was never here, and
--                             Rails is told again
--                   STALE     another lease holds it now
--                   REFUSED   it was never started
-- Cost O(jobs · lanes in which the tenant has queued jobs)
--
-- flags: allow-oom
-- uses: base reply event score pause policy affinity wake project bucket order index group count job

local ended_ttl_ms = ARGV[1]
local outcomes = {}

local function finish(id, lease_id, status, exit_code, failure_reason)
  local job = load_job(id)
  if not job then
    local _, by = ended(id)
    if by and by == lease_id then return OK end
    if lease_id == '' and not by then remember_end(id, status, '', 0, ended_ttl_ms) end -- refuses a late job.pending
    return GONE
  end
  if lease_id ~= '' then
    if job.lease_id ~= lease_id or job.state == 'queued' then return STALE end
    if job.state == 'assigned' then return REFUSED end
  elseif job.state ~= 'queued' then
    mail(job.pod, 'type', 'revoke', 'job', id, 'lease', job.lease_id, 'reason', 'finished')
  end
  local extra = ',"exit_code":' .. exit_code .. ',"failure_reason":"' .. failure_reason .. '"'
  if job.state == 'canceling' then
    local reason = call('HGET', job_key(id), 'cancel_reason') or '""'
    close(job, 'canceled', 'canceled', ',"status":"' .. status .. '"' .. extra .. ',"reason":' .. reason, ended_ttl_ms,
      lease_id)
  else
    close(job, status, 'finished', ',"status":"' .. status .. '"' .. extra, ended_ttl_ms, lease_id)
  end
  return OK
end

for i = 2, #ARGV, 5 do
  outcomes[#outcomes + 1] = finish(unpack(ARGV, i, i + 4))
end
settle()
return outcomes
