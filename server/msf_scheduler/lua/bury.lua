-- Take back at once what a worker held that is known to be dead. → {requeued, poisoned}
local now = clock()
local num_requeued, num_poisoned = 0, 0
if alone_worker(now) == args.worker then
  redis.call('HDEL', counters, 'alone_worker', 'alone_until')
  wake_where_work_is(now)
end
for _, id in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
  local job = JOB_PREFIX .. id
  if redis.call('HGET', job, 'worker') == args.worker then
    if bereave(job, id, now) then
      num_poisoned = num_poisoned + 1
    else
      num_requeued = num_requeued + 1
    end
  end
end
return {num_requeued, num_poisoned}
