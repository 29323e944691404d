-- job: the record of a live job, and its end.
--
-- job:<id>        hash    state, lease_id, attempt, place ('<bucket> <entry id>'), tenant, runner ('<runner id> <system
--                         id>'), pod, scope (the one it was taken in), beat, starts, max_attempts, failed_deliveries,
--                         cancel_reason, since_ms. Few, short and the most read first: Redis then keeps it as one
--                         small list, which it searches from the front.
-- order:<id>      string  what the pod needs to hand the job out: a line of JSON, then the payload as Rails wrote it
-- ended:<id>      string  '<outcome> <lease_id or -> <attempt>', kept `ended_ttl`: refuses a late job.pending, answers
--                         a repeated finish
-- deadlines       zset    job -> when to look at its state; the only index of time
-- pod:<pod>:jobs  hash    lease id -> job: what a pod holds, and the answer to a repeated take

local DEADLINES = P .. 'deadlines'

local function job_key(id)
  return P .. 'job:' .. id
end

-- The live job, or nil.
local function load_job(id)
  local f = call('HMGET', job_key(id), 'state', 'lease_id', 'attempt', 'place', 'tenant', 'runner', 'pod', 'scope',
    'beat', 'starts')
  if not f[1] then return nil end
  local job = {
    id = id, state = f[1], lease_id = f[2], attempt = f[3], tenant = f[5], runner = f[6], pod = f[7], scope = f[8],
    beat = f[9] or '', starts = tonumber(f[10] or '0'),
  }
  job.bucket, job.entry_id = string.match(f[4], '^(%S+) (%S+)$')
  return job
end

local function holder_of(job)
  if not job.runner or job.state == 'queued' then return '' end
  local runner_id, system_id = string.match(job.runner, '^(%d+) (%S+)$')
  return holder(job.lease_id, runner_id, system_id, job.pod)
end

-- The record of an ended job: outcome and lease id, or nil.
local function ended(id)
  local record = call('GET', P .. 'ended:' .. id)
  if not record then return nil end
  return string.match(record, '^(%S+) (%S+)')
end

local function remember_end(id, outcome, lease_id, attempt, ttl_ms)
  if lease_id == '' then lease_id = '-' end
  call('SET', P .. 'ended:' .. id, outcome .. ' ' .. lease_id .. ' ' .. attempt, 'PX', ttl_ms)
end

-- Takes a job off the pod and the counts that hold it; its bucket entry stays.
local function release(job)
  call('HDEL', P .. 'pod:' .. job.pod .. ':jobs', job.lease_id)
  call('ZREM', DEADLINES, job.id)
  if job.scope == 'instance' then
    local _, project_id = bucket_parts(job.bucket)
    uncount(job.tenant, project_id, job.id)
  end
end

-- Ends a job: one event, one small record, nothing else left. A queued job leaves its bucket's head.
local function close(job, outcome, word, extra, ttl_ms)
  local queued = job.state == 'queued'
  bucket_drop(job.bucket, job.entry_id)
  if queued then reindex(job.bucket, bucket_head(job.bucket)) else release(job) end
  call('UNLINK', job_key(job.id), P .. 'order:' .. job.id)
  remember_end(job.id, outcome, queued and '' or job.lease_id, job.attempt, ttl_ms)
  emit(word, job.id, job.attempt, holder_of(job) .. extra)
end

-- Back to its old place in the queue. The lease id stays in the record: a repeat is then recognised.
local function requeue(job, reason, me, mine)
  release(job)
  bucket_return(job.bucket, job.entry_id)
  call('HSET', job_key(job.id), 'state', 'queued', 'since_ms', NOW_TEXT)
  emit('requeued', job.id, job.attempt, holder_of(job) .. ',"reason":"' .. reason .. '"')
  index(job.bucket, bucket_head(job.bucket))
  wake_for(job.bucket, me, {}, mine)
end
