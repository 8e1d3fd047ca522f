-- Ends of jobs, and of those that share their work.
local capacity = require 'capacity'
local clock = require 'clock'
local jobs = require 'jobs'
local keys = require 'keys'
local lanes = require 'lanes'
local queueing = require 'queueing'
local states = require 'states'
local streams = require 'streams'
local tunables = require 'tunables'
local webhooks = require 'webhooks'

local lifecycle = {}

-- End one record: its state, its lifetime from here on, and who waits for it.
function lifecycle.close(queue, job, id, state, now, ttl_s)
  redis.call('ZREM', queue.deadlines, id)
  redis.call('HSET', job, 'state', state, 'finished_at', clock.stamp(now))
  redis.call('HDEL', job, 'worker', 'leader', 'charged_to', 'served_as')
  if state ~= states.SUCCEEDED then
    redis.call('UNLINK', job .. keys.IMAGES)  -- of a worker that did not store all of them
  end
  redis.call('ZADD', queue.ends, clock.stamp(now + ttl_s), id)
  local receiver, tenant = unpack(redis.call('HMGET', job, 'webhook', 'tenant'))
  if receiver then
    webhooks.schedule(tenant, receiver, id, now)
  end
  streams.notify_end(job, id, state)
end

-- Store the images that come after ARGV[1]; the first replace what another attempt left.
function lifecycle.store_images(images, is_first, ARGV)
  if is_first then
    redis.call('UNLINK', images)
  end
  if #ARGV > 1 then
    redis.call('RPUSH', images, unpack(ARGV, 2))
  end
end

-- Facts about the work of a job, whoever asked for it.
local INHERITED = {'attempt', 'num_deaths', 'num_deaths_alone', 'is_suspect'}

-- Let the first follower of a job that ended without a result do the work, for all others.
local function promote_follower(queue, job, is_share)
  local followers = job .. keys.FOLLOWERS
  local id = redis.call('LPOP', followers)
  if not id then
    return
  end
  local successor = jobs.key(id)
  local watchers = successor .. keys.WATCHERS
  redis.call('HDEL', successor, 'leader')
  for _, field in ipairs(INHERITED) do
    local value = redis.call('HGET', job, field)
    if value then
      redis.call('HSET', successor, field, value)
    end
  end
  if redis.call('EXISTS', followers) == 1 then
    redis.call('RENAME', followers, successor .. keys.FOLLOWERS)
    for _, follower_id in ipairs(redis.call('LRANGE', successor .. keys.FOLLOWERS, 0, -1)) do
      local follower = jobs.key(follower_id)
      redis.call('HSET', follower, 'leader', id)
      redis.call('SUNIONSTORE', watchers, watchers, follower .. keys.WATCHERS)
    end
  end
  if redis.call('EXISTS', watchers) == 1 then
    redis.call('HSET', successor, 'is_watched', 1)
  end
  if is_share then
    redis.call('SET', redis.call('HGET', successor, 'share'), id)
  end
  capacity.count_follower(queue, successor, -1)
  capacity.reserve(queue, successor)
  queueing.enqueue(queue, successor, id)
end

-- Give a job the result of an identical one, which has or had the images.
function lifecycle.share_result(job, source, source_id)
  local timings, job_error, provenance = unpack(redis.call('HMGET', source, 'timings', 'error', 'provenance'))
  redis.call('HSET', job, 'images_of', source_id, timings and 'timings' or 'error', timings or job_error)
  if provenance then
    redis.call('HSET', job, 'provenance', provenance)
  end
end

-- End all followers of a job with the result of the job `source_id`.
local function close_followers(queue, job, source_id, state, now, ttl_s)
  for _, id in ipairs(redis.call('LRANGE', job .. keys.FOLLOWERS, 0, -1)) do
    local follower = jobs.key(id)
    lanes.leave(queue, follower, id)
    lifecycle.share_result(follower, jobs.key(source_id), source_id)
    capacity.count_follower(queue, follower, -1)
    lifecycle.close(queue, follower, id, state, now, ttl_s)
  end
  redis.call('DEL', job .. keys.FOLLOWERS)
end

-- End a queued job, and those that follow it, with the result of an identical one.
function lifecycle.finish_from(queue, job, id, source_id, now, ttl_s)
  queueing.dequeue(queue, job, id)
  lifecycle.share_result(job, jobs.key(source_id), source_id)
  lifecycle.close(queue, job, id, states.SUCCEEDED, now, ttl_s)
  capacity.release(queue, job)
  close_followers(queue, job, source_id, states.SUCCEEDED, now, ttl_s)
  redis.call('ZADD', queue.ends, 'GT', clock.stamp(now + ttl_s), source_id)
end

-- End a job and those that follow it: the only way into a terminal state, with `finish_from`.
function lifecycle.finish(queue, job, id, state, now, ttl_s)
  local leader, share, charged_to = unpack(redis.call('HMGET', job, 'leader', 'share', 'charged_to'))
  lifecycle.close(queue, job, id, state, now, ttl_s)
  if leader then
    redis.call('LREM', jobs.key(leader) .. keys.FOLLOWERS, 1, id)
    capacity.count_follower(queue, job, -1)
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
  local is_share = redis.call('GET', share) == id
  if is_share and state ~= states.SUCCEEDED then
    redis.call('DEL', share)
  end
  if state == states.CANCELLED or state == states.EXPIRED then
    if charged_to then
      lanes.add_usage(queue, jobs.key(charged_to), -1)  -- the work starts again
    end
    promote_follower(queue, job, is_share)
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
