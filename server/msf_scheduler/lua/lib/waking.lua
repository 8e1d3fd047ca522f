-- Waking of workers that wait in a blocking read. One token while there is work wakes one worker, whose claim leaves
-- another token if work remains: to wake all of them would cost a claim of each for every arrival.
-- A worker that is full runs at most one job more of each lane, so it wakes only when a lane gets its first job.
-- Whether it holds another of that lane is known to it alone: each full worker has a token of its own, and one is
-- asked after the other until a claim empties the lane.
local fingerprints = require 'fingerprints'
local clock = require 'clock'
local lanes = require 'lanes'
local tunables = require 'tunables'

local waking = {}

-- Return the worker that runs out of work in order to run a suspect, or nil.
function waking.reserved_worker(queue, now)
  local worker, expiry = unpack(redis.call('HMGET', queue.counters, 'alone_worker', 'alone_until'))
  return worker and now <= tonumber(expiry) and worker or nil
end

function waking.wake_one(queue, fingerprint)
  local wake = fingerprints.qualify(queue.wake, fingerprint)
  if redis.call('EXISTS', wake) == 0 then
    redis.call('LPUSH', wake, 1)
  end
end

-- Leave a token if a worker that waits for this fingerprint could claim something. Return whether it could.
function waking.wake_if_work(queue, fingerprint, now)
  local has_suspect = redis.call('EXISTS', fingerprints.qualify(queue.suspects, fingerprint)) == 1
  local has_work = lanes.have_jobs(queue, fingerprint) or (has_suspect and not waking.reserved_worker(queue, now))
  if has_work then
    waking.wake_one(queue, fingerprint)
  end
  return has_work
end

-- Give a full worker its token. Return whether it had none.
function waking.announce_newcomers(queue, waiter)
  local token = queue.newcomer_token .. waiter
  if redis.call('EXISTS', token) == 1 then
    return false
  end
  redis.call('LPUSH', token, 1)
  redis.call('EXPIRE', token, tunables.FULL_TTL_S)
  return true
end

-- Announce the latest newcomer to one full worker, or to all of them, that made their last claim before it came.
local function announce_unseen(queue, fingerprint, is_to_all)
  local _, came_at = unpack(redis.call('ZRANGE', fingerprints.qualify(queue.newcomers, fingerprint), 0, 0, 'REV',
    'WITHSCORES'))
  if not came_at then
    return
  end
  local full = fingerprints.qualify(queue.full, fingerprint)
  local waiters = redis.call('ZRANGEBYSCORE', full, '-inf', '(' .. came_at, 'LIMIT', 0, tunables.MAX_ANNOUNCED)
  for _, waiter in ipairs(waiters) do
    if waking.announce_newcomers(queue, waiter) and not is_to_all then
      return
    end
  end
end

-- Let one more full worker look for newcomers that it has not seen.
function waking.pass_on_newcomers(queue, fingerprint)
  announce_unseen(queue, fingerprint, false)
end

-- Record whether a worker is full after a claim, and let the next one look at the newcomers that are left.
function waking.set_full(queue, fingerprint, waiter, is_full, now)
  local full = fingerprints.qualify(queue.full, fingerprint)
  redis.call('DEL', queue.newcomer_token .. waiter)
  if is_full then
    redis.call('ZADD', full, clock.stamp(now), waiter)
  else
    redis.call('ZREM', full, waiter)
  end
  waking.pass_on_newcomers(queue, fingerprint)
end

-- Leave tokens wherever there is work: a worker that took the last one may have died.
function waking.wake_all(queue, now)
  for _, fingerprint in ipairs(fingerprints.all(queue)) do
    waking.wake_if_work(queue, fingerprint, now)
    redis.call('ZREMRANGEBYSCORE', fingerprints.qualify(queue.full, fingerprint), '-inf',
      clock.stamp(now - tunables.FULL_TTL_S))
    announce_unseen(queue, fingerprint, true)
  end
end

return waking
