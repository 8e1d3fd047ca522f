-- Strict jobs are bound to a fingerprint: only workers that have it may run them. '' stands for any worker.
local clock = require 'clock'

local fingerprints = {}

function fingerprints.of_job(job)
  return redis.call('HGET', job, 'bound_to') or ''
end

-- Return the name that something has for the jobs bound to a fingerprint.
function fingerprints.qualify(name, fingerprint)
  return fingerprint == '' and name or name .. '@' .. fingerprint
end

-- Return all fingerprints that queued jobs may be bound to, and ''.
function fingerprints.all(queue)
  local all = redis.call('ZRANGE', queue.fingerprints, 0, -1)
  all[#all + 1] = ''
  return all
end

-- Record that a live worker has the fingerprint, if it has any.
function fingerprints.refresh(queue, fingerprint, now)
  if fingerprint then
    redis.call('ZADD', queue.fingerprints, clock.stamp(now), fingerprint)
  end
end

return fingerprints
