-- Take the webhooks that are due; unless settled, each is due again after lease_s.
-- KEYS: webhooks
-- ARGV: limit, lease_s
-- → ids of jobs
local clock = require 'clock'

local key, args = require 'arguments'(KEYS, ARGV)
local webhooks = key.webhooks
local now = clock.now()
local ids = redis.call('ZRANGEBYSCORE', webhooks, '-inf', clock.stamp(now), 'LIMIT', 0, args.limit)
for _, id in ipairs(ids) do
  redis.call('ZADD', webhooks, clock.stamp(now + args.lease_s), id)
end
return ids
