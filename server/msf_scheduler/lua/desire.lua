-- Note which versions of a model are wanted (without `versions`: nothing is said of it any more), unless that changed
-- after the revision `since`. → the new revision, or 0
if args.since then
  local current = redis.call('HGET', DESIRED, args.model)
  if current and cjson.decode(current).revision > args.since then
    return 0
  end
end
local revision = redis.call('INCR', REVISION)
if args.versions then
  redis.call('HSET', DESIRED, args.model, '{"revision":' .. revision .. ',"versions":' .. args.versions .. '}')
else
  redis.call('HDEL', DESIRED, args.model)
end
return revision
