-- Take back jobs whose lease ran out, end those that are past their deadline, and forget results that are past their
-- lifetime.
-- KEYS: queue
-- ARGV: expired, poisoned, gone (errors of jobs that end), ttl_s, dead_ttl_s (of those)
-- → num_requeued, num_poisoned, num_expired, is_done (0: there is more to do)
local clock = require 'clock'
local fingerprints = require 'fingerprints'
local jobs = require 'jobs'
local keys = require 'keys'
local lifecycle = require 'lifecycle'
local queueing = require 'queueing'
local states = require 'states'
local tunables = require 'tunables'
local waking = require 'waking'

local key, args = require 'arguments'(KEYS, ARGV)
local queue = keys.queue(key.queue)
local now = clock.now()
local num_requeued, num_poisoned, num_expired, is_done = 0, 0, 0, 1

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
  end
end

local function forget(id)
  local job = jobs.key(id)
  local share, idempotency, tenant = unpack(redis.call('HMGET', job, 'share', 'idempotency', 'tenant'))
  if share and redis.call('GET', share) == id then
    redis.call('DEL', share)
  end
  if idempotency and redis.call('HGET', idempotency, 'job') == id then
    redis.call('DEL', idempotency)
  end
  redis.call('DEL', job, job .. keys.IMAGES, job .. keys.PREVIEWS)
  if tenant then
    redis.call('ZREM', keys.TENANT_JOBS .. tenant, id)
  end
  redis.call('ZREM', queue.ends, id)
  redis.call('ZREM', queue.dead_letters, id)
end

-- Fail the queued jobs of a fingerprint that no worker has any more: they cannot be run as promised.
local function fail_bound(fingerprint)
  local num_failed = 0
  for _, id in ipairs(redis.call('ZRANGE', queue.waiting, 0, -1)) do
    local job = jobs.key(id)
    if fingerprints.of_job(job) == fingerprint then
      if num_failed == tunables.MAX_SWEPT then
        is_done = 0
        return
      end
      num_failed = num_failed + 1
      queueing.dequeue(queue, job, id)
      lifecycle.fail(queue, job, id, states.FAILED, args.gone, now, args.dead_ttl_s)
    end
  end
  redis.call('ZREM', queue.fingerprints, fingerprint)
  redis.call('DEL', fingerprints.qualify(queue.wake, fingerprint))
end

local function each_until(set, time, action)
  local members = redis.call('ZRANGEBYSCORE', set, '-inf', clock.stamp(time), 'LIMIT', 0, tunables.MAX_SWEPT)
  for _, member in ipairs(members) do
    action(member)
  end
  if #members == tunables.MAX_SWEPT then
    is_done = 0
  end
end

each_until(queue.leases, now, reclaim_lapsed)
each_until(queue.deadlines, now, expire)
each_until(queue.ends, now, forget)
each_until(queue.fingerprints, now - tunables.GONE_AFTER_S, fail_bound)
waking.wake_all(queue, now)
return {'num_requeued', num_requeued, 'num_poisoned', num_poisoned, 'num_expired', num_expired, 'is_done', is_done}
