-- Store a worker, and the model versions that it offers.
-- KEYS: workers, models
-- ARGV: worker, info, models (each name, info)
-- → nothing

local key, args = require 'arguments'(KEYS, ARGV)
for _, model in ipairs(args.models) do
  redis.call('HSET', key.models, unpack(model))
end
redis.call('HSET', key.workers, args.worker, args.info)
