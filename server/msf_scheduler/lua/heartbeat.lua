-- Record that a worker is alive, and forget workers that are not.
-- KEYS: workers, loads, heartbeats, last_seen
-- ARGV: worker, load, ttl_s
-- → 1, or 0 if the worker is not registered
local clock = require 'clock'
local tunables = require 'tunables'

local key, args = require 'arguments'(KEYS, ARGV)
local now = clock.now()
local silent = clock.stamp(now - args.ttl_s)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key.heartbeats, '-inf', silent, 'LIMIT', 0, tunables.MAX_SWEPT)) do
  if id ~= args.worker then
    redis.call('HDEL', key.workers, id)
    redis.call('HDEL', key.loads, id)
    redis.call('ZREM', key.heartbeats, id)
  end
end
redis.call('SET', key.last_seen, clock.stamp(now))
if redis.call('HEXISTS', key.workers, args.worker) == 0 then
  return 0
end
redis.call('ZADD', key.heartbeats, clock.stamp(now), args.worker)
if args.load then
  redis.call('HSET', key.loads, args.worker, args.load)
end
return 1
