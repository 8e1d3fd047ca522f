-- Extend the leases that are still a worker's.
-- KEYS: queue
-- ARGV: worker, lease_s, leases (each id, attempt), fingerprint (of the worker)
-- → ids of the jobs whose lease was lost
local clock = require 'clock'
local fingerprints = require 'fingerprints'
local jobs = require 'jobs'
local keys = require 'keys'
local queueing = require 'queueing'
local states = require 'states'
local tunables = require 'tunables'

local key, args = require 'arguments'(KEYS, ARGV)
local queue = keys.queue(key.queue)
local now = clock.now()
local expiry = clock.stamp(now + args.lease_s)
local lost = {}
fingerprints.refresh(queue, args.fingerprint, now)

-- Undo a death: the lease ran out, yet the worker lives.
local function forgive(job, id, was_alone)
  local num_deaths = redis.call('HINCRBY', job, 'num_deaths', -1)
  local is_suspect, state = unpack(redis.call('HMGET', job, 'is_suspect', 'state'))
  if not is_suspect then
    return
  end
  if num_deaths >= tunables.SUSPECT_AFTER then
    if was_alone then
      redis.call('HINCRBY', job, 'num_deaths_alone', -1)
    end
    return
  end
  if state == states.QUEUED then
    queueing.dequeue(queue, job, id)
  end
  redis.call('HDEL', job, 'is_suspect', 'num_deaths_alone')
  if state == states.QUEUED then
    queueing.enqueue(queue, job, id)
  end
end

for _, lease in ipairs(args.leases) do
  local id, attempt = unpack(lease)
  local job = jobs.key(id)
  if jobs.is_leased_to(job, args.worker, attempt) then
    redis.call('ZADD', queue.leases, expiry, id)
  else
    lost[#lost + 1] = id
    local lapse = jobs.lapse(args.worker, attempt)
    local circumstances = redis.call('HGET', job, lapse)
    if circumstances then
      redis.call('HDEL', job, lapse)
      forgive(job, id, circumstances == 'alone')
    end
  end
end
return lost
