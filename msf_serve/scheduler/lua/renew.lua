-- Extend the leases that are still this worker's. → ids of the jobs that are not
local expiry = stamp(clock() + args.lease_s)
local lost = {}

-- A lease ran out, yet its worker lives: that was no death.
local function forgive(job, id)
  if redis.call('HINCRBY', job, 'deaths', -1) < SUSPECT_AFTER and redis.call('HGET', job, 'suspect') == '1' then
    local is_queued = redis.call('HGET', job, 'state') == 'queued'
    if is_queued then
      dequeue(job, id)
    end
    redis.call('HDEL', job, 'suspect', 'deaths_alone')
    if is_queued then
      enqueue(job, id)
    end
  end
end

for _, held in ipairs(args.held) do
  local id, attempt = held[1], held[2]
  local job = JOB_PREFIX .. id
  if owns(job, args.worker, attempt) then
    redis.call('ZADD', leases, expiry, id)
  else
    lost[#lost + 1] = id
    if redis.call('HDEL', job, 'lapsed ' .. args.worker .. ' ' .. attempt) == 1 then
      forgive(job, id)
    end
  end
end
return lost
