-- Take back jobs whose lease ran out, end those that are past their deadline, and forget results that are past their
-- lifetime.
-- KEYS: queue
-- ARGV: name ("model/version"), expired, poisoned, gone (errors of jobs that end), ttl_s, dead_ttl_s (of those)
-- → num_requeued, num_poisoned, num_expired, is_done (0: there is more to do)
local clock = require 'clock'
local fingerprints = require 'fingerprints'
local jobs = require 'jobs'
local keys = require 'keys'
local lanes = require 'lanes'
local lifecycle = require 'lifecycle'
local priority_classes = require 'priority_classes'
local queueing = require 'queueing'
local states = require 'states'
local tunables = require 'tunables'
local waking = require 'waking'

local key, args = require 'arguments'(KEYS, ARGV)
local queue = keys.queue(key.queue)
local now = clock.now()
local num_requeued, num_poisoned, num_expired, num_swept, is_done = 0, 0, 0, 0, 1

local function reclaim_lapsed(id)
  local job = jobs.key(id)
  local worker, attempt, is_suspect = unpack(redis.call('HMGET', job, 'worker', 'attempt', 'is_suspect'))
  -- renew.lua undoes the death if that worker returns.
  redis.call('HSET', job, jobs.lapse(worker, attempt), is_suspect and 'alone' or 'shared')
  if lifecycle.record_death(queue, job, id, now, args.poisoned, args.dead_ttl_s) then
    num_poisoned = num_poisoned + 1
  else
    num_requeued = num_requeued + 1
  end
end

local function expire(id)
  local job = jobs.key(id)
  local state, leader, deadline_at = unpack(redis.call('HMGET', job, 'state', 'leader', 'deadline_at'))
  local is_led = leader and redis.call('HGET', jobs.key(leader), 'state') == states.RUNNING
  if is_led and now < tonumber(deadline_at) then
    redis.call('ZADD', queue.deadlines, deadline_at, id)  -- the running job may end at any time
  elseif state == states.QUEUED then
    queueing.dequeue(queue, job, id)
    lifecycle.fail(queue, job, id, states.EXPIRED, args.expired, now, args.ttl_s)
    num_expired = num_expired + 1
  else
    redis.call('ZREM', queue.deadlines, id)  -- it has started; it gets another if it is queued again
  end
end

local function forget(id)
  local job = jobs.key(id)
  local share, idempotency, tenant, result_bytes = unpack(redis.call('HMGET', job, 'share', 'idempotency', 'tenant',
    'result_bytes'))
  num_swept = num_swept + math.floor((result_bytes or 0) / tunables.MAX_STORED_BYTES)  -- to free memory takes time
  if share and redis.call('GET', share) == id then
    redis.call('DEL', share)
  end
  if idempotency and redis.call('HGET', idempotency, 'job') == id then
    redis.call('DEL', idempotency)
  end
  redis.call('UNLINK', job, job .. keys.IMAGES, job .. keys.PREVIEWS)
  if tenant then
    redis.call('ZREM', keys.TENANT_JOBS .. tenant, id)
  end
  redis.call('ZREM', queue.ends, id)
  redis.call('ZREM', queue.dead_letters, id)
end

-- Return the next entry of the lanes, or suspect, that is bound to a fingerprint.
local function first_bound(fingerprint)
  local suspect = redis.call('ZRANGE', fingerprints.qualify(queue.suspects, fingerprint), 0, 0)[1]
  if suspect then
    return suspect
  end
  for _, class in ipairs(priority_classes) do
    local place = fingerprints.qualify(class, fingerprint)
    local tenant = redis.call('ZRANGE', lanes.tenants(queue, place), 0, 0)[1]
    if tenant then
      return (lanes.first(queue, place, tenant))
    end
  end
end

-- Count a job that is about to be dealt with, and its followers. Return false if this call has done enough.
local function count(job)
  if num_swept >= tunables.MAX_SWEPT then
    is_done = 0
    return false
  end
  num_swept = num_swept + 1 + redis.call('LLEN', job .. keys.FOLLOWERS)
  return true
end

-- Fail the queued jobs of a fingerprint that no worker has any more: they cannot be run as promised.
local function fail_bound(fingerprint)
  local id = first_bound(fingerprint)
  while id do
    local entry = jobs.key(id)
    local job_id = redis.call('HGET', entry, 'leader') or id
    local job = jobs.key(job_id)
    if not count(job) then
      return
    end
    if redis.call('HGET', job, 'state') == states.QUEUED then
      queueing.dequeue(queue, job, job_id)
      lifecycle.fail(queue, job, job_id, states.FAILED, args.gone, now, args.dead_ttl_s)
    else
      queueing.dequeue(queue, entry, id)  -- a follower of a job that runs
    end
    id = first_bound(fingerprint)
  end
  redis.call('ZREM', queue.fingerprints, fingerprint)
  redis.call('DEL', fingerprints.qualify(queue.wake, fingerprint))
end

local function each_until(set, time, action)
  local members = redis.call('ZRANGEBYSCORE', set, '-inf', clock.stamp(time), 'LIMIT', 0, tunables.MAX_SWEPT + 1)
  for _, member in ipairs(members) do
    if not count(jobs.key(member)) then
      return
    end
    action(member)
  end
end

each_until(queue.leases, now, reclaim_lapsed)
each_until(queue.deadlines, now, expire)
each_until(queue.ends, now, forget)
each_until(queue.fingerprints, now - tunables.GONE_AFTER_S, fail_bound)
waking.wake_all(queue, now)
if redis.call('EXISTS', queue.waiting, queue.leases, queue.ends, queue.fingerprints, queue.full) == 0 then
  redis.call('SREM', keys.QUEUES, args.name)  -- until a job is admitted
end
return {'num_requeued', num_requeued, 'num_poisoned', num_poisoned, 'num_expired', num_expired, 'is_done', is_done}
