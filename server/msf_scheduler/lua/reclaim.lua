-- Take back at once the jobs of a worker that is known to be dead.
-- KEYS: queue
-- ARGV: worker, poisoned (error of jobs that are given up), dead_ttl_s (of those), start (0, then as returned)
-- → num_requeued, num_poisoned, is_done (0: there is more to do), start. A lease that moves between calls may be
--   missed; it runs out.
local clock = require 'clock'
local jobs = require 'jobs'
local keys = require 'keys'
local lifecycle = require 'lifecycle'
local tunables = require 'tunables'
local waking = require 'waking'

local key, args = require 'arguments'(KEYS, ARGV)
local queue = keys.queue(key.queue)
local now = clock.now()
local num_requeued, num_poisoned = 0, 0

local function report(start, is_done)
  return {'num_requeued', num_requeued, 'num_poisoned', num_poisoned, 'is_done', is_done, 'start', start}
end

if waking.reserved_worker(queue, now) == args.worker then
  redis.call('HDEL', queue.counters, 'alone_worker', 'alone_until')
  waking.wake_all(queue, now)
end
local ids = redis.call('ZRANGE', queue.leases, args.start, args.start + tunables.MAX_LEASES_READ - 1)
local num_kept, num_swept = 0, 0
for _, id in ipairs(ids) do
  local job = jobs.key(id)
  if num_swept >= tunables.MAX_SWEPT then
    return report(args.start + num_kept, 0)
  end
  if redis.call('HGET', job, 'worker') == args.worker then
    num_swept = num_swept + 1 + redis.call('LLEN', job .. keys.FOLLOWERS)
    if lifecycle.record_death(queue, job, id, now, args.poisoned, args.dead_ttl_s) then
      num_poisoned = num_poisoned + 1
    else
      num_requeued = num_requeued + 1
    end
  else
    num_kept = num_kept + 1
  end
end
return report(args.start + num_kept, #ids < tunables.MAX_LEASES_READ and 1 or 0)
