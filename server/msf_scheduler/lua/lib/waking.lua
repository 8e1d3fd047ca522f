-- Waking of workers that wait in a blocking read. One token while there is work wakes one worker, whose claim leaves
-- another token if work remains: to wake all of them would cost a claim of each for every arrival.
local fingerprints = require 'fingerprints'
local lanes = require 'lanes'

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

-- Leave tokens wherever there is work: a worker that took the last one may have died.
function waking.wake_all(queue, now)
  for _, fingerprint in ipairs(fingerprints.all(queue)) do
    waking.wake_if_work(queue, fingerprint, now)
  end
end

return waking
