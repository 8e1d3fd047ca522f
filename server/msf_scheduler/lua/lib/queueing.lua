-- Ways into the queue and out of it. A follower has an entry in the lanes while its leader is queued, so that their
-- work is done when the first of them would be served; entries that outlive that are dropped when their turn comes.
local clock = require 'clock'
local fingerprints = require 'fingerprints'
local jobs = require 'jobs'
local keys = require 'keys'
local lanes = require 'lanes'
local states = require 'states'
local waking = require 'waking'

local queueing = {}

-- Count the steps, decodes included, of a job that enters the queue or leaves it (sign -1).
local function count_steps(queue, job, sign)
  local num_samples, cost = unpack(redis.call('HMGET', job, 'num_samples', 'cost'))
  redis.call('HINCRBY', queue.counters, 'queued_steps', sign * (num_samples + cost))
end

-- Add a job or a follower to the lanes.
function queueing.join_lanes(queue, job, id, fingerprint)
  if lanes.join(queue, job, id) then
    waking.pass_on_newcomers(queue, fingerprint)
  end
end

-- Have a job that is queued end when it is too late to run it.
function queueing.set_deadline(queue, job, id)
  local deadline_at, least_s = unpack(redis.call('HMGET', job, 'deadline_at', 'least_s'))
  if deadline_at then
    redis.call('ZADD', queue.deadlines, clock.stamp(deadline_at - least_s), id)
  end
end

-- Queue a job, and its followers with it.
function queueing.enqueue(queue, job, id)
  local fingerprint = fingerprints.of_job(job)
  if fingerprint ~= '' then
    redis.call('ZADD', queue.fingerprints, 'NX', clock.stamp(clock.now()), fingerprint)
  end
  waking.wake_one(queue, fingerprint)
  local is_suspect, seq = unpack(redis.call('HMGET', job, 'is_suspect', 'seq'))
  if redis.call('ZADD', queue.waiting, seq, id) == 1 then
    count_steps(queue, job, 1)
  end
  if is_suspect then
    redis.call('ZADD', fingerprints.qualify(queue.suspects, fingerprint), seq, id)
    lanes.leave(queue, job, id)  -- where a follower that leads now may have been
    return
  end
  queueing.join_lanes(queue, job, id, fingerprint)
  for _, follower_id in ipairs(redis.call('LRANGE', job .. keys.FOLLOWERS, 0, -1)) do
    queueing.join_lanes(queue, jobs.key(follower_id), follower_id, fingerprint)
  end
end

-- Remove a job, or a follower, wherever it waits.
function queueing.dequeue(queue, job, id)
  if redis.call('ZREM', queue.waiting, id) == 1 then
    count_steps(queue, job, -1)
  end
  if redis.call('ZREM', fingerprints.qualify(queue.suspects, fingerprints.of_job(job)), id) == 0 then
    lanes.leave(queue, job, id)
  end
  if redis.call('EXISTS', queue.waiting) == 0 then
    redis.call('UNLINK', queue.passes)  -- an empty queue owes nothing to any tenant
    redis.call('HDEL', queue.counters, 'queued_steps')  -- which an earlier release did not count
  end
end

-- Put a running job back at its old place.
function queueing.requeue(queue, job, id)
  redis.call('ZREM', queue.leases, id)
  lanes.add_usage(queue, jobs.key(redis.call('HGET', job, 'charged_to') or id), -1)
  redis.call('HSET', job, 'state', states.QUEUED)
  redis.call('HDEL', job, 'worker', 'progress', 'charged_to', 'served_as')
  redis.call('DEL', job .. keys.PREVIEWS)
  queueing.set_deadline(queue, job, id)
  queueing.enqueue(queue, job, id)
end

return queueing
