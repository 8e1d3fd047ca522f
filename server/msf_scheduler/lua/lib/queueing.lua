-- Ways into the queue and out of it.
local clock = require 'clock'
local fingerprints = require 'fingerprints'
local keys = require 'keys'
local lanes = require 'lanes'
local states = require 'states'
local waking = require 'waking'

local queueing = {}

function queueing.enqueue(queue, job, id)
  local fingerprint = fingerprints.of_job(job)
  if fingerprint ~= '' then
    redis.call('ZADD', queue.fingerprints, 'NX', clock.stamp(clock.now()), fingerprint)
  end
  waking.wake_one(queue, fingerprint)
  local is_suspect, seq = unpack(redis.call('HMGET', job, 'is_suspect', 'seq'))
  redis.call('ZADD', queue.waiting, seq, id)
  if is_suspect then
    redis.call('ZADD', fingerprints.qualify(queue.suspects, fingerprint), seq, id)
  elseif lanes.join(queue, job, id) then
    waking.pass_on_newcomers(queue, fingerprint)
  end
end

function queueing.dequeue(queue, job, id)
  redis.call('ZREM', queue.waiting, id)
  if redis.call('ZREM', fingerprints.qualify(queue.suspects, fingerprints.of_job(job)), id) == 0 then
    lanes.leave(queue, job, id)
  end
  if redis.call('EXISTS', queue.waiting) == 0 then
    redis.call('DEL', queue.passes)  -- an empty queue owes nothing to any tenant
  end
end

-- Put a running job back at its old place.
function queueing.requeue(queue, job, id)
  redis.call('ZREM', queue.leases, id)
  redis.call('HSET', job, 'state', states.QUEUED)
  redis.call('HDEL', job, 'worker', 'progress')
  redis.call('DEL', job .. keys.PREVIEWS)
  lanes.add_usage(queue, job, -1)
  queueing.enqueue(queue, job, id)
end

return queueing
