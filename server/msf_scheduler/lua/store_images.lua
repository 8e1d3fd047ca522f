-- Store some of the images of a job that is about to end. Nobody sees them before.
-- KEYS: job, images
-- ARGV: id, worker, attempt, is_first (no images were stored before); then the encoded images
-- → 1, or 0 if the lease was lost
local jobs = require 'jobs'
local lifecycle = require 'lifecycle'

local key, args = require 'arguments'(KEYS, ARGV)

if not jobs.is_leased_to(key.job, args.worker, args.attempt) then
  return 0
end
lifecycle.store_images(key.images, args.is_first, ARGV)
return 1
