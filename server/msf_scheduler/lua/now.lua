-- Read the clock that never jumps, and Redis's own.
-- KEYS: clock
-- → seconds of each
local clock = require 'clock'

local now, offset = clock.now()
return {clock.stamp(now), clock.stamp(now - offset)}
