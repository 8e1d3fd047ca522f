-- Accept a job, or refuse it without a trace. The same id or idempotency key again is answered with what is stored.
-- → {'accepted', record}, {'conflict', id}, {'late'}, {'full', samples, retry after s} or {'memory', bytes, limit}
local job = JOB_PREFIX .. args.id
-- Releases that do not know of webhooks make none due; servers look after them.
local WEBHOOK_LOOK_S = 60

local function answer(found)
  if args.reply_to and not is_terminal(redis.call('HGET', found, 'state')) then
    redis.call('SADD', found .. ':waiters', args.reply_to)
  end
  return {'accepted', redis.call('HGETALL', found)}
end

local function store(state, now, offset)
  redis.call('HSET', job, 'schema_version', args.schema_version, 'id', args.id, 'spec', args.spec, 'terms', args.terms,
    'model', args.model, 'version', args.version, 'num_samples', args.num_samples, 'state', state, 'attempt', 0,
    'seq', redis.call('HINCRBY', counters, 'seq', 1), 'admitted_at', stamp(now), 'clock_offset', stamp(offset), 'band', args.band,
    'tenant', args.tenant, 'user', args.user, 'weight', args.weight, 'cost', args.cost, 'least_s', args.least_s,
    'result_bytes', args.result_bytes)
  if args.webhook then
    redis.call('HSET', job, 'webhook', 1)
    redis.call('ZADD', WEBHOOKS, stamp(now + WEBHOOK_LOOK_S), args.id)  -- its end makes it due at once
  end
  redis.call('ZADD', TENANT_JOBS_PREFIX .. args.tenant, stamp(now), args.id)
  if args.bound then
    redis.call('HSET', job, 'bound', args.bound)
  end
  if args.timeout_s then
    redis.call('HSET', job, 'deadline_at', stamp(now + args.timeout_s))
    redis.call('ZADD', deadlines, stamp(now + args.timeout_s - args.least_s), args.id)
  end
  if args.idempotency then
    redis.call('HSET', args.idempotency, 'job', args.id, 'digest', args.digest)
    redis.call('HSET', job, 'idempotency', args.idempotency)
  end
  if args.share then
    redis.call('HSET', job, 'share', args.share, 'plan', args.plan)
  end
end

-- A job that is waited for by one of higher priority gets that priority.
local function raise(job, id)
  if args.band >= tonumber(redis.call('HGET', job, 'band')) then
    return
  end
  local is_suspect = redis.call('HGET', job, 'suspect') == '1'
  if not is_suspect then
    leave_lane(job, id)
  end
  redis.call('HSET', job, 'band', args.band)
  if not is_suspect then
    join_lane(job, id)
  end
end

-- Identical deterministic work: its result if it is done, else its result once it will be.
local function share(now, offset, is_late)
  local leader = redis.call('GET', args.share)
  local leading = leader and JOB_PREFIX .. leader
  local state = leading and redis.call('HGET', leading, 'state')
  if state == 'succeeded' then
    store('succeeded', now, offset)
    local result = redis.call('HMGET', leading, 'timings', 'provenance')
    redis.call('HSET', job, 'images_of', leader, 'cached', 1, 'timings', result[1])
    if result[2] then
      redis.call('HSET', job, 'provenance', result[2])
    end
    redis.call('ZADD', ends, 'GT', stamp(now + args.ttl_s), leader)
    close(job, args.id, 'succeeded', now, args.ttl_s)
    return true
  end
  if state == 'running' or (state == 'queued' and not is_late) then
    if state == 'queued' then
      raise(leading, leader)
    end
    store('queued', now, offset)
    redis.call('HSET', job, 'leader', leader)
    redis.call('RPUSH', leading .. ':followers', args.id)
    return true
  end
  return false
end

-- Bytes in use with all that accepted jobs may still store, and the limit (0: there is none).
local function memory()
  local info = redis.call('INFO', 'memory')
  local used = tonumber(string.match(info, 'used_memory:(%d+)'))
  return used + tonumber(redis.call('GET', RESERVED) or 0), tonumber(string.match(info, 'maxmemory:(%d+)'))
end

if redis.call('EXISTS', job) == 1 then
  return answer(job)
end
if args.idempotency then
  local known = redis.call('HMGET', args.idempotency, 'job', 'digest')
  if known[1] and redis.call('EXISTS', JOB_PREFIX .. known[1]) == 1 then
    if known[2] ~= args.digest then
      return {'conflict', known[1]}
    end
    return answer(JOB_PREFIX .. known[1])
  end
end

local now, offset = clock()
local is_late = args.timeout_s and args.timeout_s < args.least_s
if args.share and share(now, offset, is_late) then
  return answer(job)
end
if is_late then
  return {'late'}
end
local samples = tonumber(redis.call('HGET', counters, 'samples') or 0)
local excess = samples + args.num_samples - args.limit
if excess > 0 then
  local done, seconds = service(now)
  -- Before anything was done, as if the first sample was just about to be.
  return {'full', samples, stamp(excess * seconds / math.max(done, 1))}
end
local used, limit = memory()
if limit > 0 and used + args.result_bytes > limit then
  return {'memory', used, limit}
end

if samples == 0 then
  redis.call('HSET', counters, 'rate_at', stamp(now))  -- idle time says nothing about the rate
end
store('queued', now, offset)
if args.share then
  redis.call('SET', args.share, args.id)
end
redis.call('SADD', QUEUES, args.name)
count_in(job)
enqueue(job, args.id)
return answer(job)
