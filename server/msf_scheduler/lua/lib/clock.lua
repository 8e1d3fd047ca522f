-- Seconds that never jump: leases, deadlines and lifetimes of results must not end because Redis's clock was set.
local keys = require 'keys'
local tunables = require 'tunables'

local clock = {}

-- Format for storage: Lua would print large numbers with too few digits.
function clock.stamp(seconds)
  return string.format('%.6f', seconds)
end

-- Return the time, and the offset to subtract from it for Redis's own time.
function clock.now()
  local seconds, microseconds = unpack(redis.call('TIME'))
  local wall = seconds + microseconds / 1000000
  local last, offset = unpack(redis.call('HMGET', keys.CLOCK, 'wall', 'offset'))
  local gap = last and wall - last or 0
  offset = tonumber(offset or 0)
  if gap < 0 or gap > tunables.MAX_CLOCK_GAP_S then
    offset = offset - gap
  end
  if not last or gap < 0 or gap > 1 then
    redis.call('HSET', keys.CLOCK, 'wall', clock.stamp(wall), 'offset', clock.stamp(offset))
  end
  return wall + offset, offset
end

return clock
