-- Accept a job, or refuse it without a trace. A known id or idempotency key is answered with the stored job.
-- KEYS: queue, job, tenant_jobs; idempotency and share where the job has them
-- ARGV: id, fields (of the record), name ("model/version"), limit (samples), digest (of the idempotent request),
--       timeout_s, reply_to (stream), ttl_s (of a result that is there at once); limits of the tenant: max_open_steps,
--       max_stored_jobs, max_pending_webhooks
-- → outcome "accepted" with job (name, value, …) · "conflict" with job_id · "late" · "full" with num_samples and
--   retry_after_s · "limited" with limit (its name) and retry_after_s · "memory" with used_bytes and limit_bytes
local capacity = require 'capacity'
local clock = require 'clock'
local jobs = require 'jobs'
local keys = require 'keys'
local lifecycle = require 'lifecycle'
local queueing = require 'queueing'
local states = require 'states'
local streams = require 'streams'
local throughput = require 'throughput'
local tunables = require 'tunables'
local waking = require 'waking'
local webhooks = require 'webhooks'

local key, args = require 'arguments'(KEYS, ARGV)
local queue, fields = keys.queue(key.queue), args.fields

local function answer(job)
  if args.reply_to and not jobs.is_terminal(redis.call('HGET', job, 'state')) then
    streams.subscribe(job, keys.WAITERS, args.reply_to)
  end
  return {'outcome', 'accepted', 'job', redis.call('HGETALL', job)}
end

local function store(state, now, offset)
  for name, value in pairs(fields) do
    redis.call('HSET', key.job, name, value)
  end
  redis.call('HSET', key.job, 'state', state, 'attempt', 0, 'seq', redis.call('HINCRBY', queue.counters, 'seq', 1),
    'admitted_at', clock.stamp(now), 'clock_offset', clock.stamp(offset))
  redis.call('ZADD', key.tenant_jobs, clock.stamp(now), args.id)
  if fields.webhook then
    webhooks.schedule(fields.tenant, fields.webhook, args.id, now + tunables.WEBHOOK_CHECK_S)  -- the end makes it due
  end
  if args.timeout_s then
    redis.call('HSET', key.job, 'deadline_at', clock.stamp(now + args.timeout_s))
    queueing.set_deadline(queue, key.job, args.id)
  end
  if key.idempotency then
    redis.call('HSET', key.idempotency, 'job', args.id, 'digest', args.digest)
  end
end

-- Estimate when this many samples will be done. Before the first is, estimate as if it were about to be.
local function retry_after_s(num_samples, now)
  local done, seconds = throughput.read(queue, now)
  return num_samples * seconds / math.max(done, 1)
end

-- Refuse the job for a limit of its tenant.
local function refuse(limit, seconds)
  return {'outcome', 'limited', 'limit', limit, 'retry_after_s', clock.stamp(seconds)}
end

-- Answer with the result of an identical job.
local function reuse_result(leader_id, now, offset)
  store(states.SUCCEEDED, now, offset)
  lifecycle.share_result(key.job, jobs.key(leader_id), leader_id)
  redis.call('ZADD', queue.ends, 'GT', clock.stamp(now + args.ttl_s), leader_id)
  lifecycle.close(queue, key.job, args.id, states.SUCCEEDED, now, args.ttl_s)
end

-- Wait for the result of an identical job, and have the work done when the first of those that wait would be served.
local function follow(leader, leader_id, now, offset)
  store(states.QUEUED, now, offset)
  redis.call('HSET', key.job, 'leader', leader_id)
  redis.call('RPUSH', leader .. keys.FOLLOWERS, args.id)
  capacity.count_follower(queue, key.job, 1)
  if redis.call('HEXISTS', leader, 'is_suspect') == 0 then
    queueing.join_lanes(queue, key.job, args.id, fields.bound_to or '')
    waking.wake_one(queue, fields.bound_to or '')
  end
end

if redis.call('EXISTS', key.job) == 1 then
  return answer(key.job)
end
if key.idempotency then
  local id, digest = unpack(redis.call('HMGET', key.idempotency, 'job', 'digest'))
  if id and redis.call('EXISTS', jobs.key(id)) == 1 then
    if digest ~= args.digest then
      return {'outcome', 'conflict', 'job_id', id}
    end
    return answer(jobs.key(id))
  end
end

local now, offset = clock.now()
local is_late = args.timeout_s and args.timeout_s < fields.least_s
local leader_id = key.share and redis.call('GET', key.share)
local leader = leader_id and jobs.key(leader_id)
local leader_state = leader and redis.call('HGET', leader, 'state')
local is_made = leader_state == states.SUCCEEDED
local can_follow = (leader_state == states.RUNNING or (leader_state == states.QUEUED and not is_late))
  and redis.call('LLEN', leader .. keys.FOLLOWERS) < tunables.MAX_FOLLOWERS

if is_late and not is_made and not can_follow then
  return {'outcome', 'late'}
end
local num_samples = capacity.num_samples(queue)
local num_open = num_samples + capacity.num_follower_samples(queue)
local excess = num_open + fields.num_samples - args.limit
if excess > 0 and not is_made then
  return {'outcome', 'full', 'num_samples', num_open, 'retry_after_s', clock.stamp(retry_after_s(excess, now))}
end
if redis.call('ZCARD', key.tenant_jobs) >= args.max_stored_jobs then
  return refuse('stored_jobs', tunables.MAX_RETRY_AFTER_S)
end
if fields.webhook and webhooks.count(fields.tenant) >= args.max_pending_webhooks then
  return refuse('pending_webhooks', tunables.MAX_RETRY_AFTER_S)
end
if args.max_open_steps and not is_made and not can_follow then
  local excess_steps = capacity.open_steps(fields.tenant) + fields.cost - args.max_open_steps
  if excess_steps > 0 then
    redis.call('HINCRBY', keys.USAGE .. fields.tenant, 'refused', 1)
    return refuse('concurrent_sample_steps', retry_after_s(excess_steps * fields.num_samples / fields.cost, now))
  end
end
local used_bytes, limit_bytes = capacity.memory()
if limit_bytes > 0 and used_bytes + fields.result_bytes > limit_bytes then
  return {'outcome', 'memory', 'used_bytes', used_bytes, 'limit_bytes', limit_bytes}
end
if is_made then
  reuse_result(leader_id, now, offset)
  return answer(key.job)
end
if can_follow then
  follow(leader, leader_id, now, offset)
  return answer(key.job)
end

if num_samples == 0 then
  throughput.resume(queue, now)
end
store(states.QUEUED, now, offset)
if key.share then
  redis.call('SET', key.share, args.id)
end
redis.call('SADD', keys.QUEUES, args.name)
capacity.reserve(queue, key.job)
queueing.enqueue(queue, key.job, args.id)
return answer(key.job)
