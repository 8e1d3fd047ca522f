-- Order of the queued jobs and of those that follow them: priority class → tenants by virtual time (start-time fair
-- queuing, in sample steps over weight) → the tenant's users in turn → the user's jobs by admission. Jobs bound to a
-- fingerprint have lanes of their own: a place is a priority class with such a fingerprint.
local clock = require 'clock'
local fingerprints = require 'fingerprints'
local priority_classes = require 'priority_classes'
local tunables = require 'tunables'

local lanes = {}

function lanes.tenants(queue, place)
  return queue.tenants .. place
end

function lanes.users(queue, place, tenant)
  return queue.users .. place .. ':' .. tenant
end

function lanes.jobs(queue, place, tenant, user)
  return queue.lane .. place .. ':' .. #tenant .. ':' .. tenant .. ':' .. user
end

-- Return the name of the lane that a tenant has in a priority class.
function lanes.name(class, tenant)
  return class .. ':' .. tenant
end

-- Return the id of the tenant's next job at a place, and its admission number.
function lanes.first(queue, place, tenant)
  local user = redis.call('ZRANGE', lanes.users(queue, place, tenant), 0, 0)[1]
  if user then
    local id, seq = unpack(redis.call('ZRANGE', lanes.jobs(queue, place, tenant, user), 0, 0, 'WITHSCORES'))
    return id, tonumber(seq)
  end
end

local function is_empty(queue, class)
  for _, fingerprint in ipairs(fingerprints.all(queue)) do
    if redis.call('EXISTS', lanes.tenants(queue, fingerprints.qualify(class, fingerprint))) == 1 then
      return false
    end
  end
  return true
end

-- Return whether any lane of a fingerprint has jobs.
function lanes.have_jobs(queue, fingerprint)
  return redis.call('EXISTS', fingerprints.qualify(queue.newcomers, fingerprint)) == 1
end

-- Add a job, unless it is there. Return whether its lane was empty.
function lanes.join(queue, job, id)
  local class, tenant, user, seq = unpack(redis.call('HMGET', job, 'priority_class', 'tenant', 'user', 'seq'))
  local fingerprint = fingerprints.of_job(job)
  local place = fingerprints.qualify(class, fingerprint)
  local jobs, users = lanes.jobs(queue, place, tenant, user), lanes.users(queue, place, tenant)
  if redis.call('ZADD', jobs, seq, id) == 0 or redis.call('ZCARD', jobs) > 1 then
    return false
  end
  redis.call('ZADD', users, redis.call('HINCRBY', queue.counters, 'turn', 1), user)
  if redis.call('ZCARD', users) > 1 then
    return false
  end
  local now = clock.stamp(clock.now())
  if is_empty(queue, class) then
    redis.call('HSET', queue.counters, 'served_at:' .. class, now)
  end
  redis.call('ZADD', fingerprints.qualify(queue.newcomers, fingerprint), now, lanes.name(class, tenant))
  local virtual_time = tonumber(redis.call('HGET', queue.counters, 'virtual_time') or 0)
  local pass = tonumber(redis.call('ZSCORE', queue.passes, tenant) or 0)
  redis.call('ZADD', lanes.tenants(queue, place), math.max(virtual_time, pass), tenant)
  return true
end

function lanes.leave(queue, job, id)
  local class, tenant, user = unpack(redis.call('HMGET', job, 'priority_class', 'tenant', 'user'))
  local fingerprint = fingerprints.of_job(job)
  local place = fingerprints.qualify(class, fingerprint)
  local jobs, users = lanes.jobs(queue, place, tenant, user), lanes.users(queue, place, tenant)
  if redis.call('ZREM', jobs, id) == 0 or redis.call('EXISTS', jobs) == 1 then
    return
  end
  redis.call('ZREM', users, user)
  if redis.call('EXISTS', users) == 0 then
    redis.call('ZREM', lanes.tenants(queue, place), tenant)
    redis.call('ZREM', fingerprints.qualify(queue.newcomers, fingerprint), lanes.name(class, tenant))
  end
end

-- Advance the virtual time to that of a tenant whose turn it is.
function lanes.advance(queue, pass)
  local virtual_time = tonumber(redis.call('HGET', queue.counters, 'virtual_time') or 0)
  redis.call('HSET', queue.counters, 'virtual_time', string.format('%.17g', math.max(virtual_time, pass)))
end

-- Add a job's cost over its weight to what its tenant has used (sign -1: the job was given back). `job` is the one
-- whose turn it was, which may be a follower of the one that is run.
function lanes.add_usage(queue, job, sign)
  local tenant, cost, weight = unpack(redis.call('HMGET', job, 'tenant', 'cost', 'weight'))
  if not tenant then
    return  -- ended and forgotten
  end
  local virtual_time = tonumber(redis.call('HGET', queue.counters, 'virtual_time') or 0)
  local pass = tonumber(redis.call('ZSCORE', queue.passes, tenant) or 0)
  pass = math.max(pass, virtual_time) + sign * cost / weight
  redis.call('ZADD', queue.passes, pass, tenant)
  for _, fingerprint in ipairs(fingerprints.all(queue)) do
    for _, class in ipairs(priority_classes) do
      redis.call('ZADD', lanes.tenants(queue, fingerprints.qualify(class, fingerprint)), 'XX', pass, tenant)
    end
  end
end

-- Forget what tenants have used up to the virtual time: all are equal there. At most as many as keeps the script short,
-- and more than a claim adds.
function lanes.forget_passes(queue)
  local virtual_time = redis.call('HGET', queue.counters, 'virtual_time') or 0
  local limit = {'BYSCORE', 'LIMIT', 0, tunables.MAX_FORGOTTEN}
  local tenants = redis.call('ZRANGE', queue.passes, '-inf', virtual_time, unpack(limit))
  if tenants[1] then
    redis.call('ZREM', queue.passes, unpack(tenants))
  end
end

return lanes
