-- Store a worker's result and give up its lease. → 1, or 0 when the lease was lost and the result is dropped
local job, images, leases, counters = unpack(KEYS)
local id, worker, attempt, state, field, value, ttl_ms = unpack(ARGV, 1, 7)

if not owns(job, worker, attempt) then
  return 0
end
local now = clock()
redis.call('ZREM', leases, id)
redis.call('HSET', job, field, value)
if #ARGV > 7 then
  redis.call('RPUSH', images, unpack(ARGV, 8))
  redis.call('PEXPIRE', images, ttl_ms)
end
local done, seconds = service(counters, now)
store_service(counters, done + redis.call('HGET', job, 'num_samples'), seconds, now)
finish(counters, job, id, state, now, ttl_ms)
return 1
