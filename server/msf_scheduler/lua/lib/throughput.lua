-- Samples per second of busy time, averaged over a window that fades exponentially.
local clock = require 'clock'
local tunables = require 'tunables'

local throughput = {}

-- Return the samples and the busy seconds of the window as of now.
function throughput.read(queue, now)
  local samples, seconds, at = unpack(redis.call('HMGET', queue.counters, 'rate_samples', 'rate_seconds', 'rate_at'))
  local elapsed = math.max(now - (at or now), 0)
  local fade = math.exp(-elapsed / tunables.THROUGHPUT_WINDOW_S)
  return (samples or 0) * fade, (seconds or 0) * fade + elapsed
end

function throughput.record(queue, num_samples, now)
  local samples, seconds = throughput.read(queue, now)
  redis.call('HSET', queue.counters, 'rate_samples', clock.stamp(samples + num_samples),
    'rate_seconds', clock.stamp(seconds), 'rate_at', clock.stamp(now))
end

-- Start the window at the first job after a pause: idle time is not busy time.
function throughput.resume(queue, now)
  redis.call('HSET', queue.counters, 'rate_at', clock.stamp(now))
end

return throughput
