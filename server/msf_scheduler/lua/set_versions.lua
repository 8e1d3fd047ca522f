-- Store which versions of a model are to be served, unless that changed after the revision `since`.
-- KEYS: desired, revision
-- ARGV: model, versions (as JSON; without it workers decide), since
-- → the new revision, or 0

local key, args = require 'arguments'(KEYS, ARGV)
if args.since then
  local current = redis.call('HGET', key.desired, args.model)
  if current and cjson.decode(current).revision > args.since then
    return 0
  end
end
local revision = redis.call('INCR', key.revision)
if args.versions then
  -- cjson would write an empty list as an object.
  local desired = string.format('{"revision":%d,"versions":%s}', revision, args.versions)
  redis.call('HSET', key.desired, args.model, desired)
else
  redis.call('HDEL', key.desired, args.model)
end
return revision
