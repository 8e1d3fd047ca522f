-- Write down how a delivery went, where the job can still be read, and when to try again, if ever.
local job = JOB_PREFIX .. args.id
if args.again_in_s then
  redis.call('ZADD', WEBHOOKS, stamp(clock() + args.again_in_s), args.id)
else
  redis.call('ZREM', WEBHOOKS, args.id)
  redis.call('DEL', WEBHOOK_PREFIX .. args.id)
end
if args.delivery and redis.call('EXISTS', job) == 1 then
  redis.call('HSET', job, 'delivery', args.delivery)
end
return 1
