-- Take back at once the jobs of a worker that is known to be dead.
-- KEYS: queue
-- ARGV: worker, poisoned (error of jobs that are given up), dead_ttl_s (of those)
-- → num_requeued, num_poisoned, is_done (0: there is more to do)
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

if waking.reserved_worker(queue, now) == args.worker then
  redis.call('HDEL', queue.counters, 'alone_worker', 'alone_until')
  waking.wake_all(queue, now)
end
for _, id in ipairs(redis.call('ZRANGE', queue.leases, 0, -1)) do
  local job = jobs.key(id)
  if num_requeued + num_poisoned == tunables.MAX_SWEPT then
    return {'num_requeued', num_requeued, 'num_poisoned', num_poisoned, 'is_done', 0}
  end
  if redis.call('HGET', job, 'worker') == args.worker then
    if lifecycle.record_death(queue, job, id, now, args.poisoned, args.dead_ttl_s) then
      num_poisoned = num_poisoned + 1
    else
      num_requeued = num_requeued + 1
    end
  end
end
return {'num_requeued', num_requeued, 'num_poisoned', num_poisoned, 'is_done', 1}
