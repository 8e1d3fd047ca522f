-- Take back what dead workers held; a job that has used up its attempts fails. → {requeued, failed}
local waiting, leases, counters, wake = unpack(KEYS)
local job_prefix, max_attempts, error, ttl_ms = unpack(ARGV)

local now = clock()
local num_requeued, num_failed = 0, 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', stamp(now))) do
  local job = job_prefix .. id
  if tonumber(redis.call('HGET', job, 'attempt')) < tonumber(max_attempts) then
    requeue(waiting, leases, wake, job, id)
    num_requeued = num_requeued + 1
  else
    redis.call('ZREM', leases, id)
    redis.call('HSET', job, 'error', error)
    finish(counters, job, id, 'failed', now, ttl_ms)
    num_failed = num_failed + 1
  end
end
return {num_requeued, num_failed}
