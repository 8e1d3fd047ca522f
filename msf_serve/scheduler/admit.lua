-- Accept a job, or refuse it without a trace. The same id again is answered with what is stored.
-- → {1, record} or {0, samples queued and running, seconds after which to retry}
local job, waiting, counters, wake = unpack(KEYS)
local id, schema_version, spec, model, version, num_samples, reply_to, limit = unpack(ARGV)

if redis.call('EXISTS', job) == 1 then
  return {1, redis.call('HGETALL', job)}
end

local now = clock()
local samples = tonumber(redis.call('HGET', counters, 'samples') or 0)
local excess = samples + num_samples - limit
if excess > 0 then
  local done, seconds = service(counters, now)
  -- Before anything was done, as if the first sample was just about to be.
  return {0, samples, stamp(excess * seconds / math.max(done, 1))}
end

if samples == 0 then
  redis.call('HSET', counters, 'rate_at', stamp(now))  -- idle time says nothing about the rate
end
redis.call('HINCRBY', counters, 'samples', num_samples)
local seq = redis.call('HINCRBY', counters, 'seq', 1)
redis.call('HSET', job, 'schema_version', schema_version, 'id', id, 'spec', spec, 'model', model, 'version', version,
  'num_samples', num_samples, 'state', 'queued', 'attempt', 0, 'seq', seq, 'admitted_at', stamp(now))
if reply_to ~= '' then
  redis.call('HSET', job, 'reply_to', reply_to)
end
enqueue(waiting, wake, job, id)
return {1, redis.call('HGETALL', job)}
