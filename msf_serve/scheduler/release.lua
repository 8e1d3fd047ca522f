-- Put a job back where it was in its queue, as if it had not been claimed. → 1, or 0 when the lease was lost
local job, waiting, leases, wake = unpack(KEYS)
local id, worker, attempt = unpack(ARGV)

if not owns(job, worker, attempt) then
  return 0
end
redis.call('HINCRBY', job, 'attempt', -1)
requeue(waiting, leases, wake, job, id)
return 1
