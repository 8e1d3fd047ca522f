-- Notify a server of every change of a job from now on, and the job's worker that it is watched.
-- KEYS: job
-- ARGV: id, reply_to (stream)
-- → nothing
local jobs = require 'jobs'
local keys = require 'keys'
local streams = require 'streams'

local key, args = require 'arguments'(KEYS, ARGV)

local function watch(job, id)
  local state, worker, is_watched, leader = unpack(redis.call('HMGET', job, 'state', 'worker', 'is_watched', 'leader'))
  if not state or jobs.is_terminal(state) then
    return
  end
  streams.subscribe(job, keys.WATCHERS, args.reply_to)
  if not is_watched then
    redis.call('HSET', job, 'is_watched', 1)
    if worker then
      streams.notify_watched(worker, id)
    end
  end
  if leader then
    watch(jobs.key(leader), leader)  -- its work is also this job's
  end
end

watch(key.job, args.id)
