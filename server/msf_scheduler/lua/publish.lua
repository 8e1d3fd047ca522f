-- Store a job's progress, or a preview of one of its samples, and notify its watchers.
-- KEYS: job, previews
-- ARGV: id, worker, attempt, progress; or sequence and preview, then the encoded image
-- → 1, or 0 if the lease was lost
local jobs = require 'jobs'
local streams = require 'streams'

local key, args = require 'arguments'(KEYS, ARGV)

if not jobs.is_leased_to(key.job, args.worker, args.attempt) then
  return 0
end
if args.progress then
  redis.call('HSET', key.job, 'progress', args.progress)
end
if args.preview then
  local entry_id = args.attempt .. '-' .. args.sequence
  redis.call('XADD', key.previews, entry_id, 'preview', args.preview, 'file', ARGV[2])
end
streams.notify_watchers(key.job, args.id)
return 1
