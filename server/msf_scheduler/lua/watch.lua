-- Tell a server what becomes of a job from now on, and its worker that somebody watches. → its state, nil: no such job
local function watch(id)
  local job = JOB_PREFIX .. id
  local found = redis.call('HMGET', job, 'state', 'worker', 'watched', 'leader')
  local state, worker, watched, leader = found[1], found[2], found[3], found[4]
  if not state or is_terminal(state) then
    return state
  end
  redis.call('SADD', job .. ':watchers', args.reply_to)
  if watched ~= '1' then
    redis.call('HSET', job, 'watched', 1)
    if worker then
      tell(WATCHES_PREFIX .. worker, MAX_NOTICES, 'job', id)
    end
  end
  if leader then
    watch(leader)  -- whose work is also this one's
  end
  return state
end

return watch(args.id)
