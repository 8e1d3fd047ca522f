-- → {jobs queued, jobs running, samples of both, age in seconds of the oldest queued job}
local age = 0
local oldest = redis.call('ZRANGE', waiting, 0, 0)[1]
if oldest then
  age = math.max(clock() - redis.call('HGET', JOB_PREFIX .. oldest, 'admitted_at'), 0)
end
local samples = tonumber(redis.call('HGET', counters, 'samples') or 0)
return {redis.call('ZCARD', waiting), redis.call('ZCARD', leases), samples, stamp(age)}
