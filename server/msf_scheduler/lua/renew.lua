-- Extend the leases that are still this worker's. → ids of the jobs that are not
local now = clock()
local expiry = stamp(now + args.lease_s)
show_fingerprint(now)
local lost = {}

-- A lease ran out, yet its worker lives: that was no death.
local function forgive(job, id, how)
  local deaths = redis.call('HINCRBY', job, 'deaths', -1)
  if redis.call('HGET', job, 'suspect') ~= '1' then
    return
  end
  if deaths >= SUSPECT_AFTER then
    if how == 'alone' then
      redis.call('HINCRBY', job, 'deaths_alone', -1)
    end
    return
  end
  local is_queued = redis.call('HGET', job, 'state') == 'queued'
  if is_queued then
    dequeue(job, id)
  end
  redis.call('HDEL', job, 'suspect', 'deaths_alone')
  if is_queued then
    enqueue(job, id)
  end
end

for _, held in ipairs(args.held) do
  local id, attempt = held[1], held[2]
  local job = JOB_PREFIX .. id
  if owns(job, args.worker, attempt) then
    redis.call('ZADD', leases, expiry, id)
  else
    lost[#lost + 1] = id
    local lapse = 'lapsed ' .. args.worker .. ' ' .. attempt
    local how = redis.call('HGET', job, lapse)
    if how then
      redis.call('HDEL', job, lapse)
      forgive(job, id, how)
    end
  end
end
return lost
