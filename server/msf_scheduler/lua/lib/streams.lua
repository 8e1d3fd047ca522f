-- Streams that a server or a worker reads.
local keys = require 'keys'
local tunables = require 'tunables'

local streams = {}

local function append(stream, max_length, ...)
  redis.call('XADD', stream, 'MAXLEN', '~', max_length, '*', ...)
  redis.call('EXPIRE', stream, tunables.STREAM_TTL_S)
end

-- Have a stream notified of a job's end (`set` is keys.WAITERS) or changes (keys.WATCHERS), unless too many are.
function streams.subscribe(job, set, stream)
  if redis.call('SCARD', job .. set) < tunables.MAX_SUBSCRIBERS then
    redis.call('SADD', job .. set, stream)
  end
end

-- Notify a worker that one of its jobs was cancelled.
function streams.notify_cancelled(worker, id)
  append(keys.NOTICES .. worker, tunables.MAX_NOTICES, 'job', id)
end

-- Notify a worker that one of its jobs is to be served under these terms.
function streams.notify_raised(worker, id, terms)
  append(keys.NOTICES .. worker, tunables.MAX_NOTICES, 'job', id, 'terms', terms)
end

-- Notify a worker that one of its jobs is being watched.
function streams.notify_watched(worker, id)
  append(keys.WATCHES .. worker, tunables.MAX_NOTICES, 'job', id)
end

function streams.notify_watchers(job, id)
  for _, stream in ipairs(redis.call('SMEMBERS', job .. keys.WATCHERS)) do
    append(stream, tunables.MAX_REPLIES, 'changed', id)
  end
end

-- Notify all servers that wait for a job, or watch it, of its end.
function streams.notify_end(job, id, state)
  for _, stream in ipairs(redis.call('SMEMBERS', job .. keys.WAITERS)) do
    append(stream, tunables.MAX_REPLIES, 'job', id, 'state', state)
  end
  streams.notify_watchers(job, id)
  redis.call('DEL', job .. keys.WAITERS, job .. keys.WATCHERS)
end

return streams
