-- Stands in front of every script: what the transitions share. KEYS[1] is always the job or the queue's waiting set.

-- Samples per second are measured over the busy time of about the last minute.
local RATE_WINDOW_S = 60
-- A server reads its replies at once; the cap only bounds what one that is gone leaves behind.
local MAX_REPLIES = 100000

local function clock()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end

-- Lua would print large numbers with too few digits.
local function stamp(seconds)
  return string.format('%.6f', seconds)
end

-- A stale owner differs in worker or attempt, whatever the job's state is by now.
local function owns(job, worker, attempt)
  local found = redis.call('HMGET', job, 'state', 'worker', 'attempt')
  return found[1] == 'running' and found[2] == worker and found[3] == attempt
end

-- Only the end of emptiness wakes: whoever waits has seen the queue empty (claim.lua).
local function enqueue(waiting, wake, job, id)
  if redis.call('ZCARD', waiting) == 0 then
    redis.call('XADD', wake, 'MAXLEN', 1, '*', 'job', id)
  end
  redis.call('ZADD', waiting, redis.call('HGET', job, 'seq'), id)
end

local function requeue(waiting, leases, wake, job, id)
  redis.call('ZREM', leases, id)
  redis.call('HSET', job, 'state', 'queued')
  redis.call('HDEL', job, 'worker')
  enqueue(waiting, wake, job, id)
end

-- The only way into a terminal state: give back the samples, start the result's life, tell the server that waits.
local function finish(counters, job, id, state, now, ttl_ms)
  redis.call('HINCRBY', counters, 'samples', -redis.call('HGET', job, 'num_samples'))
  redis.call('HSET', job, 'state', state, 'finished_at', stamp(now))
  redis.call('HDEL', job, 'worker')
  redis.call('PEXPIRE', job, ttl_ms)
  local reply_to = redis.call('HGET', job, 'reply_to')
  if reply_to then
    redis.call('XADD', reply_to, 'MAXLEN', '~', MAX_REPLIES, '*', 'job', id, 'state', state)
    redis.call('PEXPIRE', reply_to, ttl_ms)
  end
end

-- {samples done, busy seconds} of the window as seen now; what is older fades away exponentially.
local function service(counters, now)
  local found = redis.call('HMGET', counters, 'rate_samples', 'rate_seconds', 'rate_at')
  local elapsed = math.max(now - (found[3] or now), 0)
  local fade = math.exp(-elapsed / RATE_WINDOW_S)
  return (found[1] or 0) * fade, (found[2] or 0) * fade + elapsed
end

local function store_service(counters, samples, seconds, now)
  redis.call('HSET', counters, 'rate_samples', stamp(samples), 'rate_seconds', stamp(seconds), 'rate_at', stamp(now))
end
