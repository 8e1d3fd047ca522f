-- Store a value for a time. What accepted work needs is written by scripts, which Redis also runs out of memory.
-- KEYS: name
-- ARGV: ttl_s; then the value
-- → nothing

local key, args = require 'arguments'(KEYS, ARGV)
redis.call('SET', key.name, ARGV[2], 'EX', args.ttl_s)
