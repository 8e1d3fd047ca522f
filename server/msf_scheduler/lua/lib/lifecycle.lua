-- Ends of jobs, and of those that share their work.
local capacity = require 'capacity'
local clock = require 'clock'
local jobs = require 'jobs'
local keys = require 'keys'
local queueing = require 'queueing'
local states = require 'states'
local streams = require 'streams'
local tunables = require 'tunables'

local lifecycle = {}

-- End one record: its state, its lifetime from here on, and who waits for it.
function lifecycle.close(queue, job, id, state, now, ttl_s)
  redis.call('ZREM', queue.deadlines, id)
  redis.call('HSET', job, 'state', state, 'finished_at', clock.stamp(now))
  redis.call('HDEL', job, 'worker', 'leader')
  redis.call('ZADD', queue.ends, clock.stamp(now + ttl_s), id)
  if redis.call('HEXISTS', job, 'webhook') == 1 then
    redis.call('ZADD', keys.WEBHOOKS, clock.stamp(now), id)
  end
  streams.notify_end(job, id, state)
end

-- Let the first follower of a job that ended without a result do the work, for all others.
local function promote_follower(queue, job)
  local followers = job .. keys.FOLLOWERS
  local id = redis.call('LPOP', followers)
  if not id then
    return
  end
  local successor = jobs.key(id)
  redis.call('HDEL', successor, 'leader')
  if redis.call('EXISTS', followers) == 1 then
    redis.call('RENAME', followers, successor .. keys.FOLLOWERS)
    for _, follower in ipairs(redis.call('LRANGE', successor .. keys.FOLLOWERS, 0, -1)) do
      redis.call('HSET', jobs.key(follower), 'leader', id)
    end
  end
  redis.call('SET', redis.call('HGET', successor, 'share'), id)
  capacity.reserve(queue, successor)
  queueing.enqueue(queue, successor, id)
end

-- End all followers of a job with its result.
local function close_followers(queue, job, id, state, now, ttl_s)
  local timings, job_error, provenance = unpack(redis.call('HMGET', job, 'timings', 'error', 'provenance'))
  for _, follower_id in ipairs(redis.call('LRANGE', job .. keys.FOLLOWERS, 0, -1)) do
    local follower = jobs.key(follower_id)
    redis.call('HSET', follower, 'images_of', id)
    redis.call('HSET', follower, timings and 'timings' or 'error', timings or job_error)
    if provenance then
      redis.call('HSET', follower, 'provenance', provenance)
    end
    lifecycle.close(queue, follower, follower_id, state, now, ttl_s)
  end
  redis.call('DEL', job .. keys.FOLLOWERS)
end

-- End a job and those that follow it: the only way into a terminal state.
function lifecycle.finish(queue, job, id, state, now, ttl_s)
  local leader, share = unpack(redis.call('HMGET', job, 'leader', 'share'))
  lifecycle.close(queue, job, id, state, now, ttl_s)
  if leader then
    redis.call('LREM', jobs.key(leader) .. keys.FOLLOWERS, 1, id)
    return
  end
  capacity.release(queue, job)
  if state == states.FAILED then
    redis.call('ZADD', queue.dead_letters, clock.stamp(now), id)
    redis.call('ZREMRANGEBYRANK', queue.dead_letters, 0, -tunables.MAX_DEAD_LETTERS - 1)
  end
  if not share then
    return
  end
  if state ~= states.SUCCEEDED then
    redis.call('DEL', share)
  end
  if state == states.CANCELLED or state == states.EXPIRED then
    promote_follower(queue, job)
  else
    close_followers(queue, job, id, state, now, ttl_s)
  end
end

-- End a job with an error.
function lifecycle.fail(queue, job, id, state, job_error, now, ttl_s)
  redis.call('HSET', job, 'error', job_error)
  lifecycle.finish(queue, job, id, state, now, ttl_s)
end

-- Requeue a job whose worker stopped, or fail it as poisoned. Return whether it failed.
function lifecycle.record_death(queue, job, id, now, poisoned, ttl_s)
  local num_deaths = redis.call('HINCRBY', job, 'num_deaths', 1)
  if redis.call('HEXISTS', job, 'is_suspect') == 1 then
    if redis.call('HINCRBY', job, 'num_deaths_alone', 1) >= tunables.POISONED_AFTER then
      redis.call('ZREM', queue.leases, id)
      lifecycle.fail(queue, job, id, states.FAILED, poisoned, now, ttl_s)
      return true
    end
  elseif num_deaths >= tunables.SUSPECT_AFTER then
    redis.call('HSET', job, 'is_suspect', 1)
  end
  queueing.requeue(queue, job, id)
  return false
end

return lifecycle
