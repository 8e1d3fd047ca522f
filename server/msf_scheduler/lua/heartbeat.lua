-- Note that a worker lives and forget those that do not. → 1, or 0 when the worker is not registered
local now = clock()
for _, id in ipairs(redis.call('ZRANGEBYSCORE', HEARTBEATS, '-inf', stamp(now - args.ttl_s))) do
  if id ~= args.worker then
    redis.call('HDEL', WORKERS, id)
    redis.call('HDEL', LOADS, id)
    redis.call('ZREM', HEARTBEATS, id)
  end
end
redis.call('SET', LAST_SEEN, stamp(now))
if redis.call('HEXISTS', WORKERS, args.worker) == 0 then
  return 0
end
redis.call('ZADD', HEARTBEATS, stamp(now), args.worker)
if args.load then
  redis.call('HSET', LOADS, args.worker, args.load)
end
return 1
