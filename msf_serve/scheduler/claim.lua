-- Lease the jobs at the front to a worker, whole, until they hold at least max_samples.
-- → {cursor for the wake stream, record, record, …}
local waiting, leases, wake, queues = unpack(KEYS)
local name, worker, max_samples, lease_s, job_prefix = unpack(ARGV)

max_samples = tonumber(max_samples)
local now = clock()
local expiry = stamp(now + lease_s)
local claimed = {'0-0'}
local num_samples = 0
for _, id in ipairs(redis.call('ZRANGE', waiting, 0, max_samples - 1)) do
  if num_samples >= max_samples then
    break
  end
  local job = job_prefix .. id
  redis.call('ZREM', waiting, id)
  redis.call('ZADD', leases, expiry, id)
  redis.call('HSET', job, 'state', 'running', 'worker', worker, 'claimed_at', stamp(now))
  redis.call('HINCRBY', job, 'attempt', 1)
  num_samples = num_samples + redis.call('HGET', job, 'num_samples')
  claimed[#claimed + 1] = redis.call('HGETALL', job)
end
if #claimed > 1 then
  redis.call('SADD', queues, name)
end

-- Whoever waits from here on missed nothing: at this entry of the stream the queue was empty.
if redis.call('ZCARD', waiting) == 0 then
  local last = redis.call('XREVRANGE', wake, '+', '-', 'COUNT', 1)
  if last[1] then
    claimed[1] = last[1][1]
  end
end
return claimed
