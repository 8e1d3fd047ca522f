-- Count a request with its samples for the API key whose hash is KEYS[1], or refuse it without touching its limits.
-- → {'charged'}, or {'requests' | 'samples', seconds until it would not be refused}
local MINUTE_S, DAY_S = 60, 86400
local ROUNDING_S = 0.001

local now = clock()
local found = redis.call('HMGET', KEYS[1], 'full_at', 'day_at', 'day_samples')
local full_at, day_at, day_samples = tonumber(found[1] or now), tonumber(found[2] or now), tonumber(found[3] or 0)

local function refuse(limit, seconds)
  redis.call('HINCRBY', KEYS[1], 'refused', 1)
  return {limit, stamp(seconds)}
end

-- A bucket of a minute's requests, as the time at which it will be full again (GCRA).
if args.requests_per_minute then
  local interval = MINUTE_S / args.requests_per_minute
  full_at = math.max(full_at, now) + interval
  local wait = full_at - MINUTE_S - now
  if wait > ROUNDING_S then
    return refuse('requests', wait)
  end
end
if now >= day_at + DAY_S then
  day_at, day_samples = now, 0
end
if args.samples_per_day and day_samples + args.samples > args.samples_per_day then
  return refuse('samples', day_at + DAY_S - now)
end

redis.call('HSET', KEYS[1], 'full_at', stamp(full_at), 'day_at', stamp(day_at), 'day_samples', day_samples + args.samples)
redis.call('HINCRBY', KEYS[1], 'requests', 1)
redis.call('HINCRBY', KEYS[1], 'samples', args.samples)
redis.call('HINCRBY', KEYS[1], 'sample_steps', args.sample_steps)
return {'charged'}
