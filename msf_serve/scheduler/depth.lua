-- → {jobs queued, jobs running, samples of both, age in seconds of the job at the front}
local waiting, leases, counters = unpack(KEYS)
local job_prefix = ARGV[1]

local age = 0
local front = redis.call('ZRANGE', waiting, 0, 0)[1]
if front then
  age = math.max(clock() - redis.call('HGET', job_prefix .. front, 'admitted_at'), 0)
end
local samples = tonumber(redis.call('HGET', counters, 'samples') or 0)
return {redis.call('ZCARD', waiting), redis.call('ZCARD', leases), samples, stamp(age)}
