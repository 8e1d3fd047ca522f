-- Put a job back where it was in its queue, not held against it. → 1, or 0 when the lease was lost
local job = JOB_PREFIX .. args.id

if not owns(job, args.worker, args.attempt) then
  return 0
end
requeue(job, args.id)
return 1
