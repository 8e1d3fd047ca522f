-- Take back the samples of a charged job that was not admitted, or that was not a new one.
-- KEYS: usage
-- ARGV: samples, sample_steps
-- → nothing

local key, args = require 'arguments'(KEYS, ARGV)
local usage = key.usage
-- The day may have ended since the charge: what is refunded must not become an allowance of the next.
local day_samples = tonumber(redis.call('HGET', usage, 'day_samples') or 0)
redis.call('HSET', usage, 'day_samples', math.max(0, day_samples - args.samples))
redis.call('HINCRBY', usage, 'samples', -args.samples)
redis.call('HINCRBY', usage, 'sample_steps', -args.sample_steps)
