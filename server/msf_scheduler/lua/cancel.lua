-- End a job that has not ended, and notify the worker that runs it.
-- KEYS: queue, job
-- ARGV: id, state (to leave it in), error, ttl_s
-- → the state that the job is left in; nil: no such job
local clock = require 'clock'
local jobs = require 'jobs'
local keys = require 'keys'
local lifecycle = require 'lifecycle'
local queueing = require 'queueing'
local states = require 'states'
local streams = require 'streams'

local key, args = require 'arguments'(KEYS, ARGV)
local job = key.job
local queue = keys.queue(key.queue)

local state, worker = unpack(redis.call('HMGET', job, 'state', 'worker'))
if not state or jobs.is_terminal(state) then
  return state
end
if state == states.QUEUED then
  queueing.dequeue(queue, job, args.id)
else
  redis.call('ZREM', queue.leases, args.id)
  streams.notify_cancelled(worker, args.id)
end
if args.error then
  redis.call('HSET', job, 'error', args.error)
end
lifecycle.finish(queue, job, args.id, args.state, clock.now(), args.ttl_s)
return args.state
