-- job: the record of a live job, and its end.
--
-- job:<id>        hash    state, place ('<bucket> <entry id>'), tenant, max_attempts (unless 1); from the first take on
--                         lease_id, attempt, pod, scope (the one it was taken in), holder (the JSON members of its
--                         events that say who holds it), since_ms, beat, starts, failed_deliveries, cancel_reason.
--                         While it is queued these are few and short: Redis keeps them as one small list. A holder
--                         is long, and Redis then keeps a table: larger, but faster to read.
-- order:<id>      string  what the pod needs to hand the job out: a line of JSON, then the payload as Rails wrote it
-- ended:<id>      string  '<outcome> <lease_id or -> <attempt>', kept `ended_ttl`: refuses a late job.pending, answers
--                         a repeated finish
-- deadlines       zset    job -> when to look at its state; the only index of time
-- pod:<pod>:jobs  hash    lease id -> job: what a pod holds, and the answer to a repeated take

local DEADLINES = P .. 'deadlines'

local function job_key(id)
  return P .. 'job:' .. id
end

local closing = {} -- jobs that end in this call, in order
local closed = {} -- their ids: such a job is live no more, though its record goes only with `settle`

-- The live job, or nil.
local function load_job(id)
  if closed[id] then return nil end
  local f = call('HMGET', job_key(id), 'state', 'lease_id', 'attempt', 'place', 'tenant', 'pod', 'scope', 'holder')
  if not f[1] then return nil end
  local job = {
    id = id, state = f[1], lease_id = f[2] or '', attempt = f[3] or '0', tenant = f[5], pod = f[6], scope = f[7],
    holder = f[8] or '',
  }
  job.bucket, job.entry_id = string.match(f[4], '^(%S+) (%S+)$')
  return job
end

local function holder_of(job)
  return job.state == 'queued' and '' or job.holder
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

-- Takes jobs off their pods and out of the counts that hold them; their bucket entries stay.
local function release(jobs)
  local ids, leases, counted = {}, {}, {}
  for i, job in ipairs(jobs) do
    ids[i] = job.id
    leases[job.pod] = leases[job.pod] or {}
    table.insert(leases[job.pod], job.lease_id)
    if job.scope == 'instance' then
      local _, project_id = bucket_parts(job.bucket)
      local whose = job.tenant .. ' ' .. project_id
      counted[whose] = counted[whose] or {}
      table.insert(counted[whose], job.id)
    end
  end
  for pod, ended_leases in pairs(leases) do call('HDEL', P .. 'pod:' .. pod .. ':jobs', unpack(ended_leases)) end
  call('ZREM', DEADLINES, unpack(ids))
  for whose, of_project in pairs(counted) do
    local tenant, project_id = string.match(whose, '^(%S+) (%d+)$')
    uncount(tenant, project_id, of_project)
  end
end

-- Ends a job: one event, one small record, nothing else left once `settle` has run. A queued job leaves its bucket's head.
local function close(job, outcome, word, extra, ttl_ms)
  local queued = job.state == 'queued'
  bucket_drop(job.bucket, job.entry_id)
  if queued then reindex(job.bucket, bucket_head(job.bucket)) end
  emit(word, job.id, job.attempt, holder_of(job) .. extra)
  remember_end(job.id, outcome, queued and '' or job.lease_id, job.attempt, ttl_ms)
  closed[job.id] = true
  closing[#closing + 1] = job
end

-- The end of every script that ends jobs or gives them back: what is done once for all of them. The records of ended jobs go
-- last: until then a repeated call finds them and completes what an error cut off.
local function settle()
  local held, keys = {}, {}
  for _, job in ipairs(closing) do
    if job.state ~= 'queued' then held[#held + 1] = job end
    keys[#keys + 1] = job_key(job.id)
    keys[#keys + 1] = P .. 'order:' .. job.id
  end
  if held[1] then release(held) end
  place_freed()
  if keys[1] then call('UNLINK', unpack(keys)) end
end

-- Back to its old place in the queue. The lease id stays in the record: a repeat is then recognised.
local function requeue(job, reason, me, mine)
  release({ job })
  bucket_return(job.bucket, job.entry_id)
  call('HSET', job_key(job.id), 'state', 'queued', 'since_ms', NOW_TEXT)
  emit('requeued', job.id, job.attempt, holder_of(job) .. ',"reason":"' .. reason .. '"')
  index(job.bucket, bucket_head(job.bucket))
  wake_for(job.bucket, me, {}, mine)
end
