-- Store a worker's result and give up its lease. → 1, or 0 when the lease was lost and the result is dropped
local job = JOB_PREFIX .. args.id

if not owns(job, args.worker, args.attempt) then
  return 0
end
local now = clock()
redis.call('ZREM', leases, args.id)
redis.call('HSET', job, args.field, args.value)
if args.provenance then
  redis.call('HSET', job, 'provenance', args.provenance)
end
if #ARGV > 1 then
  redis.call('RPUSH', job .. ':images', unpack(ARGV, 2))
end
local share = redis.call('HGET', job, 'share')
if share and redis.call('HGET', job, 'plan') ~= args.plan then
  redis.call('DEL', share)  -- made by another plan than it is filed under: for those who wait, not for later
end
local done, seconds = service(now)
store_service(done + redis.call('HGET', job, 'num_samples'), seconds, now)
finish(job, args.id, args.state, now, args.ttl_s)
return 1
