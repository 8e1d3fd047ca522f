-- Lease the jobs whose turn it is to a worker, whole, until they hold at least max_samples.
-- → {1 if the worker must be (or is now) alone with a suspect, number dropped past their deadline, record, record, …}
local now = clock()
local claimed = {0, 0}
local num_samples = 0
local my_bounds = {'', args.fingerprint}
show_fingerprint(now)

local function lease(job, id)
  redis.call('ZADD', leases, stamp(now + args.lease_s), id)
  redis.call('HSET', job, 'state', 'running', 'worker', args.worker, 'claimed_at', stamp(now))
  redis.call('HINCRBY', job, 'attempt', 1)
  num_samples = num_samples + redis.call('HGET', job, 'num_samples')
  claimed[#claimed + 1] = redis.call('HGETALL', job)
end

local function head_of(place, tenant)
  local user = redis.call('ZRANGE', users .. place .. ':' .. tenant, 0, 0)[1]
  return redis.call('ZRANGE', lane .. place .. ':' .. #tenant .. ':' .. tenant .. ':' .. user, 0, 0, 'WITHSCORES')
end

-- Of a band's lanes that this worker may serve, those with the tenant that is next; of one tenant's, the older job.
local function place_in(band)
  local best, best_pass, best_seq
  for _, bound in ipairs(my_bounds) do
    local place = marked(band, bound)
    local tenant, pass = unpack(redis.call('ZRANGE', tenants .. place, 0, 0, 'WITHSCORES'))
    if tenant then
      local seq = tonumber(head_of(place, tenant)[2])
      pass = tonumber(pass)
      if not best or pass < best_pass or (pass == best_pass and seq < best_seq) then
        best, best_pass, best_seq = place, pass, seq
      end
    end
  end
  return best
end

-- The band that is served next: the highest, as raised by the time for which it was passed over.
local function next_band()
  local best, best_level, best_since
  for _, band in ipairs(BANDS) do
    if place_in(band) then
      local since = tonumber(redis.call('HGET', counters, 'band' .. band))
      local level = band - math.floor(math.max(now - since, 0) / AGEING_S)
      if not best or level < best_level or (level == best_level and since < best_since) then
        best, best_level, best_since = band, level, since
      end
    end
  end
  return best
end

local function next_job(band)
  local place = place_in(band)
  local tenant, pass = unpack(redis.call('ZRANGE', tenants .. place, 0, 0, 'WITHSCORES'))
  local its_users = users .. place .. ':' .. tenant
  local user = redis.call('ZRANGE', its_users, 0, 0)[1]
  local id = head_of(place, tenant)[1]
  local virtual_time = tonumber(redis.call('HGET', counters, 'virtual_time') or 0)
  redis.call('HSET', counters, 'virtual_time', string.format('%.17g', math.max(virtual_time, pass)),
    'band' .. band, stamp(now))
  redis.call('ZADD', passes, pass, tenant)
  redis.call('ZADD', its_users, redis.call('HINCRBY', counters, 'turn', 1), user)
  return id
end

local function is_late(job)
  local found = redis.call('HMGET', job, 'deadline_at', 'least_s')
  return found[1] and now + found[2] > tonumber(found[1])
end

-- Out of the queue: into a lease, or to its end when it is too late for that.
local function take(id)
  local job = JOB_PREFIX .. id
  if is_late(job) then
    dequeue(job, id)
    redis.call('HSET', job, 'error', args.expired)
    finish(job, id, 'expired', now, args.ttl_s)
    claimed[2] = claimed[2] + 1
  else
    charge(job, 1)
    dequeue(job, id)
    lease(job, id)
  end
end

-- Suspects run alone: the first worker to see one takes nothing more, and takes it when it holds nothing else.
local suspect
for _, bound in ipairs(my_bounds) do
  suspect = suspect or redis.call('ZRANGE', marked(suspects, bound), 0, 0)[1]
end
if suspect and args.max_samples > 0 then
  local worker = alone_worker(now)
  if not worker or worker == args.worker then
    redis.call('HSET', counters, 'alone_worker', args.worker, 'alone_until', stamp(now + args.lease_s))
    claimed[1] = 1
    if args.idle then
      redis.call('HDEL', counters, 'alone_worker', 'alone_until')
      take(suspect)
    end
  end
end

while claimed[1] == 0 and num_samples < args.max_samples do
  local band = next_band()
  if not band then
    break
  end
  take(next_job(band))
end
redis.call('ZREMRANGEBYSCORE', passes, '-inf', redis.call('HGET', counters, 'virtual_time') or 0)

for _, bound in ipairs(my_bounds) do
  if has_work(now, bound) then
    wake_one(bound)
  else
    redis.call('DEL', marked(wake, bound))
  end
end
return claimed
