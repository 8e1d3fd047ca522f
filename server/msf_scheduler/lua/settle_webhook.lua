-- Record a delivery in its job, if that still exists, and schedule the next attempt, if any.
-- KEYS: webhook (the stored message), job
-- ARGV: id, tenant, host, delivery, retry_in_s (none: there is no further attempt)
-- → nothing
local clock = require 'clock'
local webhooks = require 'webhooks'

local key, args = require 'arguments'(KEYS, ARGV)
if args.retry_in_s then
  webhooks.schedule(args.tenant, args.host, args.id, clock.now() + args.retry_in_s)
else
  webhooks.remove(args.tenant, args.host, args.id)
  redis.call('DEL', key.webhook)
end
if args.delivery and redis.call('EXISTS', key.job) == 1 then
  redis.call('HSET', key.job, 'delivery', args.delivery)
end
