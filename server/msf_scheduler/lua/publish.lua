-- Store how far a job is, or a preview of a sample, and tell who watches. → 1, or 0 when the lease was lost
local job = JOB_PREFIX .. args.id

if not owns(job, args.worker, args.attempt) then
  return 0
end
if args.progress then
  redis.call('HSET', job, 'progress', args.progress)
end
if args.preview then
  redis.call('XADD', job .. ':previews', args.attempt .. '-' .. args.sequence, 'preview', args.preview, 'file', ARGV[2])
end
tell_watchers(job, args.id)
return 1
