-- Lease jobs to a worker, whole and in turn: first the work that it wants, then one job of each lane (priority class
-- and tenant) of which it holds nothing.
-- KEYS: queue
-- ARGV: worker, waiter (that waits for newcomers), budget_steps, held (lanes, each class, tenant), full_classes (that
--       get no newcomers), max_samples, lease_s, idle (the worker holds nothing), fingerprint (of the worker), expired
--       (error of jobs that are too late), ttl_s (of those)
-- → alone (1: the worker must hold nothing but a suspect), limit ("budget" or "room": what kept it from more;
--   "work"), num_expired, jobs (each name, value, …), terms (under which each is served)
local clock = require 'clock'
local fingerprints = require 'fingerprints'
local jobs = require 'jobs'
local keys = require 'keys'
local lanes = require 'lanes'
local lifecycle = require 'lifecycle'
local priority_classes = require 'priority_classes'
local queueing = require 'queueing'
local states = require 'states'
local streams = require 'streams'
local tunables = require 'tunables'
local waking = require 'waking'

local key, args = require 'arguments'(KEYS, ARGV)
local queue = keys.queue(key.queue)
local now = clock.now()
local own_fingerprints = {'', args.fingerprint}
local alone, claimed, terms, held = 0, {}, {}, {}
local num_samples, num_steps, num_expired, num_ended, num_dropped = 0, 0, 0, 0, 0
fingerprints.refresh(queue, args.fingerprint, now)
local num_held = {}
for _, class in ipairs(priority_classes) do
  num_held[class] = 0
end

local function hold(class, tenant)
  local lane = lanes.name(class, tenant)
  if not held[lane] then
    held[lane] = true
    num_held[class] = num_held[class] + 1
  end
end

for _, lane in ipairs(args.held) do
  hold(unpack(lane))
end

local queued_fingerprints = {}
for _, fingerprint in ipairs(own_fingerprints) do
  if lanes.have_jobs(queue, fingerprint) then
    table.insert(queued_fingerprints, fingerprint)
  end
end

-- Return the first `limit` turns of a class for each fingerprint, in their order: place, tenant, and what sorts them.
-- Lanes in `excluded`, of which the class has `num_excluded`, have no turn.
local function turns_of(class, limit, excluded, num_excluded)
  local turns = {}
  for _, fingerprint in ipairs(queued_fingerprints) do
    local place = fingerprints.qualify(class, fingerprint)
    local tenants = redis.call('ZRANGE', lanes.tenants(queue, place), 0, limit + num_excluded - 1, 'WITHSCORES')
    local num_turns = 0
    for i = 1, #tenants, 2 do
      local tenant, pass = tenants[i], tonumber(tenants[i + 1])
      if num_turns < limit and not excluded[lanes.name(class, tenant)] then
        local _, seq = lanes.first(queue, place, tenant)
        turns[#turns + 1] = {class = class, place = place, tenant = tenant, pass = pass, seq = seq}
        num_turns = num_turns + 1
      end
    end
  end
  table.sort(turns, function(a, b)
    return a.pass < b.pass or (a.pass == b.pass and a.seq < b.seq)
  end)
  return turns
end

-- Return the class to serve next of those with turns: the highest after ageing, then the longest without service.
local function next_class(turns)
  local best, best_level, best_since
  for _, class in ipairs(priority_classes) do
    if turns[class][1] then
      local since = tonumber(redis.call('HGET', queue.counters, 'served_at:' .. class))
      local level = class - math.floor(math.max(now - since, 0) / tunables.AGEING_S)
      if not best or level < best_level or (level == best_level and since < best_since) then
        best, best_level, best_since = class, level, since
      end
    end
  end
  return best
end

local function has_room(id)
  local is_first = args.idle and #claimed == 0
  return is_first or num_samples + redis.call('HGET', jobs.key(id), 'num_samples') <= args.max_samples
end

-- Move the turn on to other users, tenants and classes.
local function end_turn(turn)
  local users = lanes.users(queue, turn.place, turn.tenant)
  local pass = redis.call('ZSCORE', lanes.tenants(queue, turn.place), turn.tenant)
  redis.call('HSET', queue.counters, 'served_at:' .. turn.class, clock.stamp(now))
  redis.call('ZADD', queue.passes, pass, turn.tenant)
  redis.call('ZADD', users, redis.call('HINCRBY', queue.counters, 'turn', 1), redis.call('ZRANGE', users, 0, 0)[1])
end

-- Lease a job; `waiter_id` is it or the follower whose turn it is.
local function lease(id, waiter_id)
  local job, waiter = jobs.key(id), jobs.key(waiter_id)
  lanes.add_usage(queue, waiter, 1)
  queueing.dequeue(queue, job, id)
  redis.call('ZADD', queue.leases, clock.stamp(now + args.lease_s), id)
  redis.call('HSET', job, 'state', states.RUNNING, 'worker', args.worker, 'claimed_at', clock.stamp(now))
  redis.call('HINCRBY', job, 'attempt', 1)
  local samples, cost = unpack(redis.call('HMGET', job, 'num_samples', 'cost'))
  num_samples, num_steps = num_samples + samples, num_steps + cost
  if waiter_id ~= id then
    lanes.leave(queue, waiter, waiter_id)
    redis.call('HSET', job, 'charged_to', waiter_id, 'served_as', waiter_id)
  end
  claimed[#claimed + 1] = redis.call('HGETALL', job)
  terms[#terms + 1] = redis.call('HGET', waiter, 'terms')
end

local function count_end(job)
  num_ended = num_ended + 1 + redis.call('LLEN', job .. keys.FOLLOWERS)
end

-- End a queued job if it is too late to run it. Return whether it was.
local function expire_late(id)
  local job = jobs.key(id)
  local deadline_at, least_s = unpack(redis.call('HMGET', job, 'deadline_at', 'least_s'))
  if not deadline_at or now + least_s <= tonumber(deadline_at) then
    return false
  end
  count_end(job)
  queueing.dequeue(queue, job, id)
  lifecycle.fail(queue, job, id, states.EXPIRED, args.expired, now, args.ttl_s)
  num_expired = num_expired + 1
  return true
end

-- End a queued job whose result was made by an identical one. Return whether it was.
local function reuse_result(id)
  local job = jobs.key(id)
  local share = redis.call('HGET', job, 'share')
  local source_id = share and redis.call('GET', share)
  if not source_id or source_id == id or redis.call('HGET', jobs.key(source_id), 'state') ~= states.SUCCEEDED then
    return false
  end
  count_end(job)
  lifecycle.finish_from(queue, job, id, source_id, now, args.ttl_s)
  return true
end

-- Serve a running job as the follower whose turn it is, if that is better.
local function raise(leader, leader_id, follower, follower_id)
  local worker, served_as = unpack(redis.call('HMGET', leader, 'worker', 'served_as'))
  local current = redis.call('HMGET', served_as and jobs.key(served_as) or leader, 'priority_class', 'weight', 'tenant')
  local class, weight, tenant = unpack(redis.call('HMGET', follower, 'priority_class', 'weight', 'tenant'))
  local level = tonumber(current[1] or class)
  local is_higher = tonumber(class) < level
  local is_better = tonumber(class) == level and tenant ~= current[3] and tonumber(weight) >= tonumber(current[2] or 0)
  if is_higher or is_better then
    redis.call('HSET', leader, 'served_as', follower_id)
    streams.notify_raised(worker, leader_id, redis.call('HGET', follower, 'terms'))
  end
end

-- Return the job to lease when it is the turn of an entry: itself, or the job that it follows. Entries without a job to
-- lease are dropped, and nil returned.
local function leasable(id)
  local job = jobs.key(id)
  local leader_id = redis.call('HGET', job, 'leader')
  if leader_id then
    local leader = jobs.key(leader_id)
    local state, is_suspect = unpack(redis.call('HMGET', leader, 'state', 'is_suspect'))
    if state == states.RUNNING or is_suspect then
      lanes.leave(queue, job, id)
      num_dropped = num_dropped + 1
      if state == states.RUNNING then
        raise(leader, leader_id, job, id)
      end
      return
    end
  end
  if expire_late(id) or (leader_id and expire_late(leader_id)) or reuse_result(leader_id or id) then
    return
  end
  return leader_id or id
end

local function first_suspect()
  for _, fingerprint in ipairs(own_fingerprints) do
    local id = redis.call('ZRANGE', fingerprints.qualify(queue.suspects, fingerprint), 0, 0)[1]
    if id then
      return id
    end
  end
end

-- Suspects run alone: the first worker to see one takes nothing more, and takes it when it holds nothing else.
local function serve_suspect()
  local suspect = first_suspect()
  local reserved = suspect and waking.reserved_worker(queue, now)
  if not suspect or (reserved and reserved ~= args.worker) then
    return
  end
  redis.call('HSET', queue.counters, 'alone_worker', args.worker, 'alone_until', clock.stamp(now + args.lease_s))
  alone = 1
  if args.idle then
    redis.call('HDEL', queue.counters, 'alone_worker', 'alone_until')
    if not expire_late(suspect) then
      lease(suspect, suspect)
    end
  end
end

-- Return whether this call has done enough.
local function is_exhausted()
  return #claimed + num_dropped >= tunables.MAX_CLAIMED_JOBS or num_ended >= tunables.MAX_ENDED_JOBS
end

-- Lease the jobs whose turn it is. Return what keeps the worker from more.
local function serve_turns()
  while num_steps < args.budget_steps do
    local turns = {}
    for _, class in ipairs(priority_classes) do
      turns[class] = turns_of(class, 1, {}, 0)
    end
    local class = next_class(turns)
    if not class or is_exhausted() then
      return 'work'
    end
    local turn = turns[class][1]
    local waiter_id = lanes.first(queue, turn.place, turn.tenant)
    local id = leasable(waiter_id)
    if id then
      if not has_room(id) then
        return 'room'
      end
      lanes.advance(queue, turn.pass)
      end_turn(turn)
      lease(id, waiter_id)
      hold(class, turn.tenant)
    end
  end
  return 'budget'
end

-- Lease the first job of a lane, if it fits.
local function serve_newcomer(turn)
  local waiter_id = lanes.first(queue, turn.place, turn.tenant)
  while waiter_id and not is_exhausted() do
    local id = leasable(waiter_id)
    if id then
      if has_room(id) then
        end_turn(turn)
        lease(id, waiter_id)
        hold(turn.class, turn.tenant)
      end
      return
    end
    waiter_id = lanes.first(queue, turn.place, turn.tenant)
  end
end

-- Lease one job of each lane of which the worker holds nothing. Return whether this call could see to all of them.
local function serve_newcomers()
  local turns, max_claimed = {}, #claimed + tunables.MAX_NEWCOMERS
  for _, class in ipairs(priority_classes) do
    turns[class] = turns_of(class, tunables.MAX_NEWCOMERS + 1, held, num_held[class])
  end
  for _, class in ipairs(args.full_classes) do
    turns[class] = {}
  end
  local class = next_class(turns)
  while class do
    if #claimed == max_claimed or is_exhausted() then
      return false
    end
    local turn = table.remove(turns[class], 1)
    if not held[lanes.name(class, turn.tenant)] then
      serve_newcomer(turn)
    end
    class = next_class(turns)
  end
  return true
end

local limit, is_full, has_all_newcomers = 'room', false, true
if args.max_samples > 0 then
  serve_suspect()
  if alone == 0 then
    limit = serve_turns()
    is_full = limit ~= 'work'
    has_all_newcomers = not is_full or serve_newcomers()
  elseif args.idle then
    limit = 'work'
  end
end
lanes.forget_passes(queue)

for _, fingerprint in ipairs(own_fingerprints) do
  if not waking.wake_if_work(queue, fingerprint, now) then
    redis.call('DEL', fingerprints.qualify(queue.wake, fingerprint))
  end
  waking.set_full(queue, fingerprint, args.waiter, is_full, now)
end
if not has_all_newcomers then
  waking.announce_newcomers(queue, args.waiter)
end
return {'alone', alone, 'limit', limit, 'num_expired', num_expired, 'jobs', claimed, 'terms', terms}
