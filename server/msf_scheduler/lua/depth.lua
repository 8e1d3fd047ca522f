-- Measure a queue.
-- KEYS: queue
-- → num_jobs_queued, num_jobs_running, num_samples (of both), num_steps_queued (with decodes), oldest_age_s (of the
--   queued jobs, or 0)
local capacity = require 'capacity'
local clock = require 'clock'
local jobs = require 'jobs'
local keys = require 'keys'

local key = require 'arguments'(KEYS, ARGV)
local queue = keys.queue(key.queue)
local age_s = 0
local oldest = redis.call('ZRANGE', queue.waiting, 0, 0)[1]
if oldest then
  age_s = math.max(clock.now() - redis.call('HGET', jobs.key(oldest), 'admitted_at'), 0)
end
return {
  'num_jobs_queued', redis.call('ZCARD', queue.waiting),
  'num_jobs_running', redis.call('ZCARD', queue.leases),
  'num_samples', capacity.num_samples(queue),
  'num_steps_queued', math.max(tonumber(redis.call('HGET', queue.counters, 'queued_steps') or 0), 0),
  'oldest_age_s', clock.stamp(age_s),
}
