-- Store a worker's result and give up its lease.
-- KEYS: queue, job, images
-- ARGV: id, worker, attempt, state, result ("timings" or "error"), value (of that), fingerprint and provenance (of what
--       made the images), ttl_s, is_first (no images were stored before); then the encoded images, or the last of them
-- → 1, or 0 if the lease was lost and the result is dropped
local clock = require 'clock'
local jobs = require 'jobs'
local keys = require 'keys'
local lifecycle = require 'lifecycle'
local states = require 'states'
local throughput = require 'throughput'

local key, args = require 'arguments'(KEYS, ARGV)
local queue, job = keys.queue(key.queue), key.job

if not jobs.is_leased_to(job, args.worker, args.attempt) then
  return 0
end
local now = clock.now()
redis.call('ZREM', queue.leases, args.id)
redis.call('HSET', job, args.result, args.value)
if args.provenance then
  redis.call('HSET', job, 'provenance', args.provenance)
end
lifecycle.store_images(key.images, args.is_first, ARGV)
local share, fingerprint, num_samples = unpack(redis.call('HMGET', job, 'share', 'fingerprint', 'num_samples'))
if share and args.state == states.SUCCEEDED then
  if fingerprint == args.fingerprint then
    redis.call('SET', share, args.id)  -- also for identical jobs that do not follow it
  elseif redis.call('GET', share) == args.id then
    redis.call('DEL', share)  -- not made by the plans it is filed under: for its followers, not for later requests
  end
end
throughput.record(queue, num_samples, now)
lifecycle.finish(queue, job, args.id, args.state, now, args.ttl_s)
return 1
