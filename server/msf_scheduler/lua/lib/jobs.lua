-- Job records: hashes whose fields job_codec.py reads.
local keys = require 'keys'
local states = require 'states'

local jobs = {}

function jobs.key(id)
  return keys.JOB .. id
end

function jobs.is_terminal(state)
  return state ~= states.QUEUED and state ~= states.RUNNING
end

-- Return whether the lease is current. A stale owner differs in worker or attempt, whatever the job's state is by now.
function jobs.is_leased_to(job, worker, attempt)
  local state, owner, latest = unpack(redis.call('HMGET', job, 'state', 'worker', 'attempt'))
  return state == states.RUNNING and owner == worker and tonumber(latest) == attempt
end

-- Return the field that remembers a lease that ran out.
function jobs.lapse(worker, attempt)
  return 'lapsed ' .. worker .. ' ' .. attempt
end

return jobs
