-- Samples that the queue holds, sample steps of each tenant, and memory set aside for the results of accepted jobs.
-- Followers, whose work another job does, are counted apart.
local keys = require 'keys'

local capacity = {}

local function add(queue, job, sign)
  local num_samples, result_bytes, tenant, cost = unpack(redis.call('HMGET', job, 'num_samples', 'result_bytes',
    'tenant', 'cost'))
  redis.call('HINCRBY', queue.counters, 'samples', sign * num_samples)
  redis.call('INCRBY', keys.RESERVED, sign * result_bytes)
  if redis.call('HINCRBY', keys.OPEN_STEPS, tenant, sign * cost) == 0 then
    redis.call('HDEL', keys.OPEN_STEPS, tenant)
  end
end

function capacity.reserve(queue, job)
  add(queue, job, 1)
end

function capacity.release(queue, job)
  add(queue, job, -1)
end

-- Count a follower (sign -1: it has ended, or leads now).
function capacity.count_follower(queue, job, sign)
  redis.call('HINCRBY', queue.counters, 'follower_samples', sign * redis.call('HGET', job, 'num_samples'))
end

-- Return the samples that are queued or running.
function capacity.num_samples(queue)
  return tonumber(redis.call('HGET', queue.counters, 'samples') or 0)
end

-- Return the samples of followers.
function capacity.num_follower_samples(queue)
  return tonumber(redis.call('HGET', queue.counters, 'follower_samples') or 0)
end

-- Return the sample steps of a tenant's queued and running jobs, of all models.
function capacity.open_steps(tenant)
  return tonumber(redis.call('HGET', keys.OPEN_STEPS, tenant) or 0)
end

-- Return the bytes in use including all that is set aside, and the limit (0: none).
function capacity.memory()
  local info = redis.call('INFO', 'memory')
  local used_bytes = tonumber(string.match(info, 'used_memory:(%d+)'))
  return used_bytes + (redis.call('GET', keys.RESERVED) or 0), tonumber(string.match(info, 'maxmemory:(%d+)'))
end

return capacity
