-- Stands in front of every script, behind the names of the queue's keys (keys.py): what the transitions share.
-- ARGV[1] is JSON with the script's arguments by name.
local args = cjson.decode(ARGV[1])

-- Samples per second are measured over the busy time of about the last minute.
local RATE_WINDOW_S = 60
-- A server reads its replies at once; the caps only bound what one that is gone leaves behind.
local MAX_REPLIES = 100000
local MAX_NOTICES = 10000
local MAX_DEAD = 1000
-- A lower priority is served as one level higher for each so many seconds that it was passed over.
local AGEING_S = 5
local BANDS = {0, 1, 2}
-- How often a job may lose a worker before it runs alone, and how often alone before it is given up.
local SUSPECT_AFTER = 2
local POISONED_AFTER = 3

-- A strict job whose plans no worker has shown for so long is given up: nobody else may run it.
local GONE_AFTER_S = 60

-- Somebody sweeps every second: a longer gap means that the clock was set, or that the whole service was down.
local MAX_GAP_S = 60
local STREAM_TTL_MS = 86400000

-- Seconds that never jump: leases, deadlines and the lives of results must not end because a clock was set.
-- Returns what to subtract for Redis's own time, too.
local function clock()
  local time = redis.call('TIME')
  local wall = time[1] + time[2] / 1000000
  local seen = redis.call('HMGET', CLOCK, 'wall', 'offset')
  local last, offset = tonumber(seen[1] or wall), tonumber(seen[2] or 0)
  local gap = wall - last
  if gap < 0 or gap > MAX_GAP_S then
    offset = offset - gap
  end
  if not seen[1] or gap < 0 or gap > 1 then
    redis.call('HSET', CLOCK, 'wall', string.format('%.6f', wall), 'offset', string.format('%.6f', offset))
  end
  return wall + offset, offset
end

-- Lua would print large numbers with too few digits.
local function stamp(seconds)
  return string.format('%.6f', seconds)
end

-- An entry in a stream that a server or a worker reads.
local function tell(stream, cap, ...)
  redis.call('XADD', stream, 'MAXLEN', '~', cap, '*', ...)
  redis.call('PEXPIRE', stream, STREAM_TTL_MS)
end

local function is_terminal(state)
  return state ~= 'queued' and state ~= 'running'
end

-- A stale owner differs in worker or attempt, whatever the job's state is by now.
local function owns(job, worker, attempt)
  local found = redis.call('HMGET', job, 'state', 'worker', 'attempt')
  return found[1] == 'running' and found[2] == worker and tonumber(found[3]) == attempt
end

-- Lanes: who goes next. Band (priority) → tenants by virtual time (start-time fair queuing, in sample steps over
-- weight) → the tenant's users in turn → the user's jobs by admission. Strict jobs have lanes of their own in every band,
-- for each fingerprint: only workers with that fingerprint look there. `bound` is such a job's fingerprint, else ''.

local function bound_to(job)
  return redis.call('HGET', job, 'bound') or ''
end

local function marked(name, bound)
  return bound == '' and name or name .. '@' .. bound
end

local function all_bounds()
  local bounds = redis.call('ZRANGE', fingerprints, 0, -1)
  bounds[#bounds + 1] = ''
  return bounds
end

local function lane_keys(job)
  local found = redis.call('HMGET', job, 'band', 'tenant', 'user')
  local band, tenant, user = found[1], found[2], found[3]
  local place = marked(band, bound_to(job))
  return {
    band = band, tenant = tenant, user = user,
    tenants = tenants .. place,
    users = users .. place .. ':' .. tenant,
    jobs = lane .. place .. ':' .. #tenant .. ':' .. tenant .. ':' .. user,
  }
end

local function band_is_empty(band)
  for _, bound in ipairs(all_bounds()) do
    if redis.call('EXISTS', tenants .. marked(band, bound)) == 1 then
      return false
    end
  end
  return true
end

local function join_lane(job, id)
  local keys = lane_keys(job)
  redis.call('ZADD', keys.jobs, redis.call('HGET', job, 'seq'), id)
  if redis.call('ZCARD', keys.jobs) > 1 then
    return
  end
  redis.call('ZADD', keys.users, redis.call('HINCRBY', counters, 'turn', 1), keys.user)
  if redis.call('ZCARD', keys.users) > 1 then
    return
  end
  if band_is_empty(keys.band) then
    redis.call('HSET', counters, 'band' .. keys.band, stamp(clock()))
  end
  local virtual_time = tonumber(redis.call('HGET', counters, 'virtual_time') or 0)
  local pass = tonumber(redis.call('ZSCORE', passes, keys.tenant) or 0)
  redis.call('ZADD', keys.tenants, math.max(virtual_time, pass), keys.tenant)
end

local function leave_lane(job, id)
  local keys = lane_keys(job)
  if redis.call('ZREM', keys.jobs, id) == 0 then
    return
  end
  if redis.call('EXISTS', keys.jobs) == 1 then
    return
  end
  redis.call('ZREM', keys.users, keys.user)
  if redis.call('EXISTS', keys.users) == 0 then
    redis.call('ZREM', keys.tenants, keys.tenant)
  end
end

-- What a tenant has used, moved by a job's cost over its weight (sign -1: the job was given back).
local function charge(job, sign)
  local found = redis.call('HMGET', job, 'tenant', 'cost', 'weight')
  local tenant = found[1]
  local pass = redis.call('ZSCORE', passes, tenant) or redis.call('HGET', counters, 'virtual_time') or 0
  pass = pass + sign * found[2] / found[3]
  redis.call('ZADD', passes, pass, tenant)
  for _, bound in ipairs(all_bounds()) do
    for _, band in ipairs(BANDS) do
      redis.call('ZADD', tenants .. marked(band, bound), 'XX', pass, tenant)
    end
  end
end

-- The worker that gets idle to run a suspect, if any.
local function alone_worker(now)
  local reserved = redis.call('HMGET', counters, 'alone_worker', 'alone_until')
  return reserved[1] and now <= tonumber(reserved[2]) and reserved[1]
end

-- Whether a worker that waits could claim something that is bound so.
local function has_work(now, bound)
  for _, band in ipairs(BANDS) do
    if redis.call('EXISTS', tenants .. marked(band, bound)) == 1 then
      return true
    end
  end
  return redis.call('EXISTS', marked(suspects, bound)) == 1 and not alone_worker(now)
end

-- One token while there is work: it wakes one worker, whose claim puts another there if it leaves some (claim.lua).
-- To wake all that wait would cost a claim of each for every arrival.
local function wake_one(bound)
  if redis.call('EXISTS', marked(wake, bound)) == 0 then
    redis.call('LPUSH', marked(wake, bound), 1)
  end
end

-- Whoever took the last token may have died with it.
local function wake_where_work_is(now)
  for _, bound in ipairs(all_bounds()) do
    if has_work(now, bound) then
      wake_one(bound)
    end
  end
end

-- A live worker runs jobs of its fingerprint.
local function show_fingerprint(now)
  if args.fingerprint then
    redis.call('ZADD', fingerprints, stamp(now), args.fingerprint)
  end
end

local function enqueue(job, id)
  local bound = bound_to(job)
  if bound ~= '' then
    redis.call('ZADD', fingerprints, 'NX', stamp(clock()), bound)
  end
  wake_one(bound)
  local is_suspect = redis.call('HGET', job, 'suspect') == '1'
  local seq = redis.call('HGET', job, 'seq')
  redis.call('ZADD', waiting, seq, id)
  if is_suspect then
    redis.call('ZADD', marked(suspects, bound), seq, id)
  else
    join_lane(job, id)
  end
end

local function dequeue(job, id)
  redis.call('ZREM', waiting, id)
  if redis.call('ZREM', marked(suspects, bound_to(job)), id) == 0 then
    leave_lane(job, id)
  end
  if redis.call('EXISTS', waiting) == 0 then
    redis.call('DEL', passes)  -- an empty queue owes nobody anything
  end
end

local function requeue(job, id)
  redis.call('ZREM', leases, id)
  redis.call('HSET', job, 'state', 'queued')
  redis.call('HDEL', job, 'worker', 'progress')
  redis.call('DEL', job .. ':previews')
  charge(job, -1)
  enqueue(job, id)
end

local function tell_watchers(job, id)
  for _, stream in ipairs(redis.call('SMEMBERS', job .. ':watchers')) do
    tell(stream, MAX_REPLIES, 'news', id)
  end
end

local function tell_waiters(job, id, state)
  for _, stream in ipairs(redis.call('SMEMBERS', job .. ':waiters')) do
    tell(stream, MAX_REPLIES, 'job', id, 'state', state)
  end
  tell_watchers(job, id)
  redis.call('DEL', job .. ':waiters', job .. ':watchers')
end

-- The record's own end: its state, its life from here on, and who waits for it.
local function close(job, id, state, now, ttl_s)
  redis.call('ZREM', deadlines, id)
  redis.call('HSET', job, 'state', state, 'finished_at', stamp(now))
  redis.call('HDEL', job, 'worker', 'leader')
  redis.call('ZADD', ends, stamp(now + ttl_s), id)
  if redis.call('HEXISTS', job, 'webhook') == 1 then
    redis.call('ZADD', WEBHOOKS, stamp(now), id)
  end
  tell_waiters(job, id, state)
end

local function count_in(job)
  local found = redis.call('HMGET', job, 'num_samples', 'result_bytes')
  redis.call('HINCRBY', counters, 'samples', found[1])
  redis.call('INCRBY', RESERVED, found[2])
end

local function count_out(job)
  local found = redis.call('HMGET', job, 'num_samples', 'result_bytes')
  redis.call('HINCRBY', counters, 'samples', -found[1])
  redis.call('DECRBY', RESERVED, found[2])
end

-- The leader of identical jobs ended without a result: the first that followed it does the work, for all others.
local function promote(job)
  local followers = job .. ':followers'
  local id = redis.call('LPOP', followers)
  if not id then
    return
  end
  local next_job = JOB_PREFIX .. id
  redis.call('HDEL', next_job, 'leader')
  if redis.call('EXISTS', followers) == 1 then
    redis.call('RENAME', followers, next_job .. ':followers')
    for _, follower in ipairs(redis.call('LRANGE', next_job .. ':followers', 0, -1)) do
      redis.call('HSET', JOB_PREFIX .. follower, 'leader', id)
    end
  end
  redis.call('SET', redis.call('HGET', next_job, 'share'), id)
  count_in(next_job)
  enqueue(next_job, id)
end

-- The only way into a terminal state, for a job and those that follow it.
local function finish(job, id, state, now, ttl_s)
  local leader = redis.call('HGET', job, 'leader')
  if leader then
    redis.call('LREM', JOB_PREFIX .. leader .. ':followers', 1, id)
    close(job, id, state, now, ttl_s)
    return
  end
  count_out(job)
  close(job, id, state, now, ttl_s)
  if state == 'failed' then
    redis.call('ZADD', dead, stamp(now), id)
    redis.call('ZREMRANGEBYRANK', dead, 0, -MAX_DEAD - 1)
  end
  local share = redis.call('HGET', job, 'share')
  if not share then
    return
  end
  if state ~= 'succeeded' then
    redis.call('DEL', share)
  end
  if state == 'cancelled' or state == 'expired' then
    promote(job)
    return
  end
  local result = redis.call('HMGET', job, 'timings', 'error', 'provenance')
  for _, follower in ipairs(redis.call('LRANGE', job .. ':followers', 0, -1)) do
    local its_job = JOB_PREFIX .. follower
    redis.call('HSET', its_job, 'images_of', id, 'cached', 1)
    redis.call('HSET', its_job, result[1] and 'timings' or 'error', result[1] or result[2])
    if result[3] then
      redis.call('HSET', its_job, 'provenance', result[3])
    end
    close(its_job, follower, state, now, ttl_s)
  end
  redis.call('DEL', job .. ':followers')
end

-- A worker stopped while it held the job. → whether the job is given up
local function bereave(job, id, now)
  redis.call('HINCRBY', job, 'deaths', 1)
  if redis.call('HGET', job, 'suspect') == '1' then
    if redis.call('HINCRBY', job, 'deaths_alone', 1) >= POISONED_AFTER then
      redis.call('ZREM', leases, id)
      redis.call('HSET', job, 'error', args.poisoned)
      finish(job, id, 'failed', now, args.dead_ttl_s)
      return true
    end
  elseif tonumber(redis.call('HGET', job, 'deaths')) >= SUSPECT_AFTER then
    redis.call('HSET', job, 'suspect', 1)
  end
  requeue(job, id)
  return false
end

-- {samples done, busy seconds} of the window as seen now; what is older fades away exponentially.
local function service(now)
  local found = redis.call('HMGET', counters, 'rate_samples', 'rate_seconds', 'rate_at')
  local elapsed = math.max(now - (found[3] or now), 0)
  local fade = math.exp(-elapsed / RATE_WINDOW_S)
  return (found[1] or 0) * fade, (found[2] or 0) * fade + elapsed
end

local function store_service(samples, seconds, now)
  redis.call('HSET', counters, 'rate_samples', stamp(samples), 'rate_seconds', stamp(seconds), 'rate_at', stamp(now))
end
