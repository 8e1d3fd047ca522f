-- Note that a worker lives and forget those that do not. → 1, or 0 when the worker is not registered
local workers, heartbeats, last_seen = unpack(KEYS)
local worker, ttl_s = unpack(ARGV)

local now = clock()
for _, id in ipairs(redis.call('ZRANGEBYSCORE', heartbeats, '-inf', stamp(now - ttl_s))) do
  if id ~= worker then
    redis.call('HDEL', workers, id)
    redis.call('ZREM', heartbeats, id)
  end
end
redis.call('SET', last_seen, stamp(now))
if redis.call('HEXISTS', workers, worker) == 0 then
  return 0
end
redis.call('ZADD', heartbeats, stamp(now), worker)
return 1
