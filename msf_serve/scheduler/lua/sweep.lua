-- Take back jobs whose lease ran out and end those that wait past their deadline. → {requeued, poisoned, expired}
local now = clock()
local num_requeued, num_poisoned, num_expired = 0, 0, 0

-- When the clock was set back, no lease may last longer for it.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, stamp(now + 2 * args.lease_s), '+inf')) do
  redis.call('ZADD', leases, stamp(now + args.lease_s), id)
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', stamp(now))) do
  local job = JOB_PREFIX .. id
  local holder = redis.call('HMGET', job, 'worker', 'attempt')
  redis.call('HSET', job, 'lapsed', holder[1] .. ' ' .. holder[2])  -- taken back if that worker shows up (renew.lua)
  if bereave(job, id, now) then
    num_poisoned = num_poisoned + 1
  else
    num_requeued = num_requeued + 1
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', deadlines, '-inf', stamp(now))) do
  local job = JOB_PREFIX .. id
  if redis.call('HGET', job, 'state') == 'queued' then
    dequeue(job, id)
    redis.call('HSET', job, 'error', args.expired)
    finish(job, id, 'expired', now, args.ttl_ms)
    num_expired = num_expired + 1
  end
end
redis.call('ZREMRANGEBYSCORE', dead, '-inf', stamp(now - args.dead_ttl_ms / 1000))
return {num_requeued, num_poisoned, num_expired}
