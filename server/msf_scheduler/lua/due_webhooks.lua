-- Take the webhooks that are due; they are due again after lease_s unless somebody says otherwise. → job ids
local now = clock()
local ids = redis.call('ZRANGEBYSCORE', WEBHOOKS, '-inf', stamp(now), 'LIMIT', 0, args.limit)
for _, id in ipairs(ids) do
  redis.call('ZADD', WEBHOOKS, stamp(now + args.lease_s), id)
end
return ids
