-- Take back the samples of a charged request that was not admitted; as a request it still counts.
-- KEYS: usage
-- ARGV: samples, sample_steps
-- → nothing

local key, args = require 'arguments'(KEYS, ARGV)
local usage = key.usage
redis.call('HINCRBY', usage, 'day_samples', -args.samples)
redis.call('HINCRBY', usage, 'samples', -args.samples)
redis.call('HINCRBY', usage, 'sample_steps', -args.sample_steps)
