-- Count requests or samples for an API key, or refuse them without touching the key's limits.
-- KEYS: usage
-- ARGV: requests, samples, sample_steps, requests_per_minute, samples_per_day (limits, where there are any)
-- → where requests are limited: remaining (requests) and reset_s (until all of a minute are there again);
--   of a refusal: limit (its name) and retry_after_s
local clock = require 'clock'

local MINUTE_S, DAY_S = 60, 86400
local ROUNDING_S = 0.001

local key, args = require 'arguments'(KEYS, ARGV)
local usage = key.usage
local now = clock.now()
local full_at, day_at, day_samples = unpack(redis.call('HMGET', usage, 'full_at', 'day_at', 'day_samples'))
full_at, day_at, day_samples = tonumber(full_at or now), tonumber(day_at or now), tonumber(day_samples or 0)

local function reply(...)
  local answer = {...}
  if args.requests_per_minute then
    local wait = math.max(full_at - now, 0)
    local remaining = math.floor((MINUTE_S - wait) * args.requests_per_minute / MINUTE_S + ROUNDING_S)
    for _, word in ipairs({'remaining', math.max(remaining, 0), 'reset_s', clock.stamp(wait)}) do
      answer[#answer + 1] = word
    end
  end
  return answer
end

local function refuse(limit, seconds)
  redis.call('HINCRBY', usage, 'refused', 1)
  return reply('limit', limit, 'retry_after_s', clock.stamp(seconds))
end

-- A bucket of a minute's requests, as the time at which it will be full again (GCRA).
if args.requests_per_minute and args.requests > 0 then
  local interval = args.requests * MINUTE_S / args.requests_per_minute
  local wait = math.max(full_at, now) + interval - MINUTE_S - now
  if wait > ROUNDING_S then
    return refuse('requests_per_minute', wait)
  end
  full_at = math.max(full_at, now) + interval
end
if now >= day_at + DAY_S then
  day_at, day_samples = now, 0
end
if args.samples_per_day and args.samples > 0 and day_samples + args.samples > args.samples_per_day then
  return refuse('samples_per_day', day_at + DAY_S - now)
end

redis.call('HSET', usage, 'full_at', clock.stamp(full_at), 'day_at', clock.stamp(day_at),
  'day_samples', day_samples + args.samples)
redis.call('HINCRBY', usage, 'requests', args.requests)
redis.call('HINCRBY', usage, 'samples', args.samples)
redis.call('HINCRBY', usage, 'sample_steps', args.sample_steps)
return reply()
