-- Record a delivery in its job, if that still exists, and schedule the next attempt, if any.
-- KEYS: webhooks, webhook (the stored message), job
-- ARGV: id, delivery, retry_in_s (none: there is no further attempt)
-- → nothing
local clock = require 'clock'

local key, args = require 'arguments'(KEYS, ARGV)
if args.retry_in_s then
  redis.call('ZADD', key.webhooks, clock.stamp(clock.now() + args.retry_in_s), args.id)
else
  redis.call('ZREM', key.webhooks, args.id)
  redis.call('DEL', key.webhook)
end
if args.delivery and redis.call('EXISTS', key.job) == 1 then
  redis.call('HSET', key.job, 'delivery', args.delivery)
end
