-- End a job that has not ended; its worker, if any, learns of it when it renews. → the state that the job is left in
local job, waiting, leases, counters = unpack(KEYS)
local id, ttl_ms = unpack(ARGV)

local state = redis.call('HGET', job, 'state')
if state ~= 'queued' and state ~= 'running' then
  return state
end
redis.call('ZREM', waiting, id)
redis.call('ZREM', leases, id)
finish(counters, job, id, 'cancelled', clock(), ttl_ms)
return 'cancelled'
