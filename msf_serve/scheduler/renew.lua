-- Extend the leases that are still this worker's. → ids of the jobs that are not
local leases = KEYS[1]
local worker, lease_s, job_prefix = unpack(ARGV)

local expiry = stamp(clock() + lease_s)
local lost = {}
for i = 4, #ARGV, 2 do
  local id, attempt = ARGV[i], ARGV[i + 1]
  if owns(job_prefix .. id, worker, attempt) then
    redis.call('ZADD', leases, expiry, id)
  else
    lost[#lost + 1] = id
  end
end
return lost
