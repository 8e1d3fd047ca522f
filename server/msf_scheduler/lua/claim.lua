-- Lease to a worker the jobs whose turn it is, whole, until they hold at least max_samples.
-- KEYS: queue
-- ARGV: worker, max_samples, lease_s, idle (the worker holds nothing), fingerprint (of the worker), expired (error of
--       jobs that are too late), ttl_s (of those)
-- → alone (1: the worker must hold nothing but a suspect), num_expired, jobs (each name, value, …)
local arguments = require 'arguments'
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

local args = arguments.values
local queue = keys.queue(arguments.keys.queue)
local now = clock.now()
local own_fingerprints = {'', args.fingerprint}
local alone, num_expired, num_samples, claimed = 0, 0, 0, {}
fingerprints.refresh(queue, args.fingerprint, now)

local function oldest_job(place, tenant)
  local user = redis.call('ZRANGE', lanes.users(queue, place, tenant), 0, 0)[1]
  return unpack(redis.call('ZRANGE', lanes.jobs(queue, place, tenant, user), 0, 0, 'WITHSCORES'))
end

-- Return the place of a priority class whose tenant is next; of one tenant's places, the one with the older job.
local function next_place(class)
  local best, best_pass, best_seq
  for _, fingerprint in ipairs(own_fingerprints) do
    local place = fingerprints.qualify(class, fingerprint)
    local tenant, pass = unpack(redis.call('ZRANGE', lanes.tenants(queue, place), 0, 0, 'WITHSCORES'))
    if tenant then
      local _, seq = oldest_job(place, tenant)
      pass, seq = tonumber(pass), tonumber(seq)
      if not best or pass < best_pass or (pass == best_pass and seq < best_seq) then
        best, best_pass, best_seq = place, pass, seq
      end
    end
  end
  return best
end

-- Return the priority class to serve next, and its place: the highest after ageing, then the longest without service.
local function next_class()
  local best, best_place, best_level, best_since
  for _, class in ipairs(priority_classes) do
    local place = next_place(class)
    if place then
      local since = tonumber(redis.call('HGET', queue.counters, 'served_at:' .. class))
      local level = class - math.floor(math.max(now - since, 0) / tunables.AGEING_S)
      if not best or level < best_level or (level == best_level and since < best_since) then
        best, best_place, best_level, best_since = class, place, level, since
      end
    end
  end
  return best, best_place
end

-- Return the id of the next job of a place, and move the turn on to others.
local function take_turn(class, place)
  local tenant, pass = unpack(redis.call('ZRANGE', lanes.tenants(queue, place), 0, 0, 'WITHSCORES'))
  local users = lanes.users(queue, place, tenant)
  local id = oldest_job(place, tenant)
  local virtual_time = tonumber(redis.call('HGET', queue.counters, 'virtual_time') or 0)
  redis.call('HSET', queue.counters, 'virtual_time', string.format('%.17g', math.max(virtual_time, pass)),
    'served_at:' .. class, clock.stamp(now))
  redis.call('ZADD', queue.passes, pass, tenant)
  redis.call('ZADD', users, redis.call('HINCRBY', queue.counters, 'turn', 1), redis.call('ZRANGE', users, 0, 0)[1])
  return id
end

local function lease(job, id)
  redis.call('ZADD', queue.leases, clock.stamp(now + args.lease_s), id)
  redis.call('HSET', job, 'state', states.RUNNING, 'worker', args.worker, 'claimed_at', clock.stamp(now))
  redis.call('HINCRBY', job, 'attempt', 1)
  num_samples = num_samples + redis.call('HGET', job, 'num_samples')
  claimed[#claimed + 1] = redis.call('HGETALL', job)
end

-- Lease a queued job, or end it if it is too late for that.
local function take(id)
  local job = jobs.key(id)
  local deadline_at, least_s = unpack(redis.call('HMGET', job, 'deadline_at', 'least_s'))
  if deadline_at and now + least_s > tonumber(deadline_at) then
    queueing.dequeue(queue, job, id)
    lifecycle.fail(queue, job, id, states.EXPIRED, args.expired, now, args.ttl_s)
    num_expired = num_expired + 1
  else
    lanes.add_usage(queue, job, 1)
    queueing.dequeue(queue, job, id)
    lease(job, id)
  end
end

local function first_suspect()
  for _, fingerprint in ipairs(own_fingerprints) do
    local id = redis.call('ZRANGE', fingerprints.qualify(queue.suspects, fingerprint), 0, 0)[1]
    if id then
      return id
    end
  end
end

-- Suspects run alone: the first worker to see one takes nothing more, and takes it when it holds nothing else.
local suspect = first_suspect()
if suspect and args.max_samples > 0 then
  local reserved = waking.reserved_worker(queue, now)
  if not reserved or reserved == args.worker then
    redis.call('HSET', queue.counters, 'alone_worker', args.worker, 'alone_until', clock.stamp(now + args.lease_s))
    alone = 1
    if args.idle then
      redis.call('HDEL', queue.counters, 'alone_worker', 'alone_until')
      take(suspect)
    end
  end
end

while alone == 0 and num_samples < args.max_samples do
  local class, place = next_class()
  if not class then
    break
  end
  take(take_turn(class, place))
end
redis.call('ZREMRANGEBYSCORE', queue.passes, '-inf', redis.call('HGET', queue.counters, 'virtual_time') or 0)

for _, fingerprint in ipairs(own_fingerprints) do
  if not waking.wake_if_work(queue, fingerprint, now) then
    redis.call('DEL', fingerprints.qualify(queue.wake, fingerprint))
  end
end
return {'alone', alone, 'num_expired', num_expired, 'jobs', claimed}
