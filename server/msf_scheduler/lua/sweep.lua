-- Take back jobs whose lease ran out, end those that wait past their deadline, and forget results whose life is over.
-- → {requeued, poisoned, expired}
local MAX_FORGOTTEN = 1000  -- at once; there is another sweep in a second
local now = clock()
local num_requeued, num_poisoned, num_expired = 0, 0, 0

for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', stamp(now))) do
  local job = JOB_PREFIX .. id
  local holder = redis.call('HMGET', job, 'worker', 'attempt', 'suspect')
  -- Until that worker shows up (renew.lua).
  redis.call('HSET', job, 'lapsed ' .. holder[1] .. ' ' .. holder[2], holder[3] and 'alone' or 'in company')
  if bereave(job, id, now) then
    num_poisoned = num_poisoned + 1
  else
    num_requeued = num_requeued + 1
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', deadlines, '-inf', stamp(now))) do
  local job = JOB_PREFIX .. id
  local found = redis.call('HMGET', job, 'state', 'leader', 'deadline_at')
  local is_under_way = found[2] and redis.call('HGET', JOB_PREFIX .. found[2], 'state') == 'running'
  if is_under_way and now < tonumber(found[3]) then
    redis.call('ZADD', deadlines, found[3], id)  -- by another job, which may end at any time
  elseif found[1] == 'queued' then
    dequeue(job, id)
    redis.call('HSET', job, 'error', args.expired)
    finish(job, id, 'expired', now, args.ttl_s)
    num_expired = num_expired + 1
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', stamp(now), 'LIMIT', 0, MAX_FORGOTTEN)) do
  local job = JOB_PREFIX .. id
  local filed = redis.call('HMGET', job, 'share', 'idempotency', 'tenant')
  if filed[1] and redis.call('GET', filed[1]) == id then
    redis.call('DEL', filed[1])
  end
  if filed[2] and redis.call('HGET', filed[2], 'job') == id then
    redis.call('DEL', filed[2])
  end
  redis.call('DEL', job, job .. ':images', job .. ':previews')
  if filed[3] then
    redis.call('ZREM', TENANT_JOBS_PREFIX .. filed[3], id)
  end
  redis.call('ZREM', ends, id)
  redis.call('ZREM', dead, id)
end
-- Fingerprints that no worker shows any more: their jobs cannot be run as promised.
for _, bound in ipairs(redis.call('ZRANGEBYSCORE', fingerprints, '-inf', stamp(now - GONE_AFTER_S))) do
  for _, id in ipairs(redis.call('ZRANGE', waiting, 0, -1)) do
    local job = JOB_PREFIX .. id
    if bound_to(job) == bound then
      dequeue(job, id)
      redis.call('HSET', job, 'error', args.gone)
      finish(job, id, 'failed', now, args.dead_ttl_s)
    end
  end
  redis.call('ZREM', fingerprints, bound)
  redis.call('DEL', marked(wake, bound))
end
wake_where_work_is(now)
return {num_requeued, num_poisoned, num_expired}
