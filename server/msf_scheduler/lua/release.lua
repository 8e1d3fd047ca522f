-- Put a job back at its place in the queue, without prejudice.
-- KEYS: queue, job
-- ARGV: id, worker, attempt
-- → 1, or 0 if the lease was lost
local jobs = require 'jobs'
local keys = require 'keys'
local queueing = require 'queueing'

local key, args = require 'arguments'(KEYS, ARGV)

if not jobs.is_leased_to(key.job, args.worker, args.attempt) then
  return 0
end
queueing.requeue(keys.queue(key.queue), key.job, args.id)
return 1
