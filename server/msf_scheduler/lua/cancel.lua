-- End a job that has not ended; the worker that runs it is told. → the state that the job is left in
local job = JOB_PREFIX .. args.id

local found = redis.call('HMGET', job, 'state', 'worker')
local state, worker = found[1], found[2]
if not state or is_terminal(state) then
  return state
end
if state == 'queued' then
  dequeue(job, args.id)
else
  redis.call('ZREM', leases, args.id)
  tell(NOTICES_PREFIX .. worker, MAX_NOTICES, 'job', args.id)
end
if args.error then
  redis.call('HSET', job, 'error', args.error)
end
finish(job, args.id, args.state, clock(), args.ttl_s)
return args.state
