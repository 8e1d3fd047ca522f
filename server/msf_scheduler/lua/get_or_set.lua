-- Return a stored value, after storing the one in ARGV[2] if there is none.
-- KEYS: name
-- → the value that is stored now

local key = require 'arguments'(KEYS, ARGV)
redis.call('SET', key.name, ARGV[2], 'NX')
return redis.call('GET', key.name)
