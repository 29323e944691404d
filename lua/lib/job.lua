-- job: the record of a live job, and its end.
--
-- job:<id>        hash    state, place ('<bucket> <entry id>'), tenant, max_attempts (unless 1); from the first take on
--                         lease ('<lease id> <attempt> <tenant> <pod> <scope it was taken in>'), holder (the JSON members
--                         of its events that say who holds it), since_ms, beat, starts, failed_deliveries, cancel_reason, silent_ms
--                         (of one that runs and does not beat: how long nothing may be heard of it).
--                         While it is queued these are few and short: Redis keeps them as one small list. A holder
--                         is long, and Redis then keeps a table: larger, but faster to read. Few fields, as each costs
--                         about as much as a short key of its own.
-- order:<id>      string  what the pod needs to hand the job out: a line of JSON, then the payload as Rails wrote it
-- ended:<id>      string  '<outcome> <lease id whose runner reported it, or -> <attempt>', kept `ended_ttl`: refuses a late
--                         job.pending, answers a repeated finish
-- deadlines       zset    job -> when to look at its state; the only index of time
-- pod:<pod>:jobs  set     what a pod holds
-- took:<offer id> string  the jobs of a take, '<job>@<lane>' or '-' per slot, by the first offer: the answer to a
--                         repeated call

local DEADLINES = P .. 'deadlines'

local function job_key(id)
  return P .. 'job:' .. id
end

local closing = {} -- jobs that end in this call, in order
local closed = {} -- their ids: such a job is live no more, though its record goes only with `settle`
local went_back = {} -- jobs that go back in this call, in order
local returning = {} -- their ids

local function lease_text(lease_id, attempt, tenant, pod, scope)
  return lease_id .. ' ' .. attempt .. ' ' .. tenant .. ' ' .. pod .. ' ' .. scope
end

-- Its parts; of a job that was never taken '' and '0'.
local function lease_parts(lease)
  local lease_id, attempt, tenant, pod, scope = string.match(lease, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
  return lease_id or '', attempt or '0', tenant, pod, scope
end

-- What a pod remembers of a job that runs with it, for a Redis that has lost its data: lease, bucket, holder.
local function record_text(lease, stood_at, held_by)
  return lease .. ' ' .. string.match(stood_at, '^%S+') .. ' ' .. held_by
end

-- The live job, or nil.
local function load_job(id)
  if closed[id] then return nil end
  local f = call('HMGET', job_key(id), 'state', 'place', 'lease', 'holder')
  if not f[1] then return nil end
  local bucket, entry_id = string.match(f[2], '^(%S+) (%S+)$')
  local lease_id, attempt, tenant, pod, scope = lease_parts(f[3] or '')
  return {
    id = id, state = f[1], bucket = bucket, entry_id = entry_id, lease = f[3], lease_id = lease_id, attempt = attempt,
    tenant = tenant, pod = pod, scope = scope, holder = f[4] or '',
  }
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

-- Takes jobs out of the counts that hold them; their bucket entries stay.
local function release(jobs)
  local counted_in = {}
  for _, job in ipairs(jobs) do
    local _, project_id = bucket_parts(job.bucket)
    if job.scope ~= 'instance' then
      local key = job.scope .. ':' .. project_id
      call('SREM', P .. 'running:' .. key, job.id)
      running_by[key] = nil
      freed_in[key] = (freed_in[key] or 0) + 1
    else
      local of_tenant = counted_in[job.tenant] or {}
      counted_in[job.tenant] = of_tenant
      of_tenant[project_id] = of_tenant[project_id] or {}
      table.insert(of_tenant[project_id], job.id)
    end
  end
  for tenant, of_tenant in pairs(counted_in) do uncount(tenant, of_tenant) end
end

-- Nobody holds these jobs any more. Last of all: what stands in `deadlines` is looked at, and what its pod holds goes with the pod.
-- So a job there that is queued was cut off.
local function let_go(jobs)
  if not jobs[1] then return end
  local ids, of_pods = {}, {}
  for i, job in ipairs(jobs) do
    ids[i] = job.id
    of_pods[job.pod] = of_pods[job.pod] or {}
    table.insert(of_pods[job.pod], job.id)
  end
  call('ZREM', DEADLINES, unpack(ids))
  for pod, of_pod in pairs(of_pods) do call('SREM', P .. 'pod:' .. pod .. ':jobs', unpack(of_pod)) end
end

-- A job whose end was told, now or before an error cut that off: `settle` does the rest.
local function close_record(job)
  closed[job.id] = true
  closing[#closing + 1] = job
end

-- Ends a job: one event, one small record, nothing else left once `settle` has run. A queued job leaves its bucket's head.
-- `reported_by` is the lease whose runner reported the end, if one did.
local function close(job, outcome, word, extra, ttl_ms, reported_by)
  local queued = job.state == 'queued'
  if queued then
    bucket_forget(job.bucket, { job.entry_id })
    reindex(job.bucket, bucket_head(job.bucket))
  end
  emit(word, job.id, job.attempt, holder_of(job) .. extra)
  remember_end(job.id, outcome, reported_by or '', job.attempt, ttl_ms)
  close_record(job)
end

-- The entries of jobs that have ended leave their buckets, and empty buckets go.
local function drop_entries()
  local entries, names, members = {}, {}, {}
  for _, job in ipairs(closing) do
    local name = job.bucket
    if not entries[name] then
      entries[name] = {}
      names[#names + 1] = name
      members[#members + 1] = bucket_member(bucket_parts(name))
    end
    if job.state ~= 'queued' then table.insert(entries[name], job.entry_id) end
  end
  if not names[1] then return end
  -- A bucket with queued jobs is not empty.
  local queued = call('ZMSCORE', BUCKETS, unpack(members))
  for i, name in ipairs(names) do
    if entries[name][1] then bucket_forget(name, entries[name]) end
    if not queued[i] then bucket_close(name) end
  end
end

-- Jobs that went back stand in their lanes again, and whoever waits there is woken. `me` and `mine` as in `wake_for`.
local function index_went_back(me, mine)
  for _, job in ipairs(went_back) do
    index(job.bucket, bucket_head(job.bucket))
    local fp, project_id = bucket_parts(job.bucket)
    wake_for(fp, project_id, me, {}, mine)
  end
end

-- The end of every script that ends jobs or gives them back: what is done once for all of them. The records of ended jobs go
-- last: until then a repeated call finds them and completes what an error cut off. Jobs that went back are indexed by exact
-- counts, so after all that lowers the scores of their projects.
local function settle(me, mine)
  local held, keys = {}, {}
  for _, job in ipairs(closing) do
    if job.state ~= 'queued' then held[#held + 1] = job end
    keys[#keys + 1] = job_key(job.id)
    keys[#keys + 1] = P .. 'order:' .. job.id
  end
  drop_entries()
  if held[1] then release(held) end
  lower_in_groups()
  place_freed()
  index_went_back(me, mine)
  for _, job in ipairs(went_back) do held[#held + 1] = job end
  let_go(held)
  if keys[1] then call('UNLINK', unpack(keys)) end
end

local NO_ENTRY = '0-0' -- the place of a job that has none

-- A queued job is not to be taken. It has no place any more.
local function leave_queue(job)
  bucket_forget(job.bucket, { job.entry_id })
  local head = bucket_head(job.bucket)
  reindex(job.bucket, head)
  if not head then bucket_close(job.bucket) end
end

-- To its old place in the queue, as its record has it already.
local function go_back(job)
  release({ job })
  bucket_return(job.bucket, job.entry_id)
  went_back[#went_back + 1] = job
  returning[job.id] = true
end

-- Back to its old place in the queue. The lease id stays in the record: a repeat is then recognised. More fields may follow.
local function requeue(job, reason, ...)
  emit('requeued', job.id, job.attempt, holder_of(job) .. ',"reason":"' .. reason .. '"')
  call('HSET', job_key(job.id), 'state', 'queued', 'since_ms', NOW_TEXT, ...)
  go_back(job)
end

-- Whether a job was on its way back when an error cut that off.
local function was_cut_off(job)
  if job.state ~= 'queued' or not job.pod or returning[job.id] then return false end
  return call('ZSCORE', DEADLINES, job.id) or call('SISMEMBER', P .. 'pod:' .. job.pod .. ':jobs', job.id) == 1
end
