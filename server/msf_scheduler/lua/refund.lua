-- Take back the samples of a charged request that was not admitted; as a request it still counts.
-- KEYS: usage
-- ARGV: samples, sample_steps
-- → nothing
local arguments = require 'arguments'

local usage, args = arguments.keys.usage, arguments.values
redis.call('HINCRBY', usage, 'day_samples', -args.samples)
redis.call('HINCRBY', usage, 'samples', -args.samples)
redis.call('HINCRBY', usage, 'sample_steps', -args.sample_steps)
