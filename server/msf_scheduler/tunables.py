"""Limits and times of the scheduler: defaults of settings, and constants. The Lua scripts get all of them."""

LEASE_S = 15.0  # a worker that is silent for this long is dead
MAX_LEASE_S = 3600.0
DRAIN_TIMEOUT_S = 25.0
MAX_DRAIN_TIMEOUT_S = 86400.0
RESULT_TTL_S = 600.0
MAX_RESULT_TTL_S = 365 * 86400.0
MAX_QUEUED_SAMPLES = 4096  # of one model version
MAX_SAMPLE_STEPS = 16_384  # of one request
MAX_STORED_JOBS = 100_000  # of one tenant
MAX_PENDING_WEBHOOKS = 10_000  # of one tenant

DEAD_LETTER_TTL_S = 7 * 86400.0
MAX_DEAD_LETTERS = 1000  # of one model version
MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0
THROUGHPUT_WINDOW_S = 60.0  # busy time over which samples per second are averaged

HELD_S = 2.0  # device seconds of work that a worker claims in advance; less leaves large batches unfilled
AGEING_S = 5.0  # a waiting priority class rises by one level each time this long passes without service
MAX_CLAIMED_JOBS = 8  # by one call, so that no script runs long
MAX_ENDED_JOBS = 8  # by one claim, followers included
MAX_FOLLOWERS = 16  # of one job: a script that ends it ends them all
MAX_NEWCOMERS = 8  # jobs beyond its budget that a worker gets by one call
MAX_HELD_LANES = 128  # tenants of one class of which a worker holds jobs; with more, newcomers wait for their turn
FULL_TTL_S = 30.0  # a full worker that has not claimed for this long is not woken any more
SUSPECT_AFTER = 2  # lost workers before a job runs alone
POISONED_AFTER = 3  # workers lost to a job that ran alone before it fails
GONE_AFTER_S = 60.0  # a strict job fails when no worker has had its fingerprint for this long
MAX_CLOCK_GAP_S = 60.0  # sweeps run every second: a longer gap means that Redis's clock was set

MAX_WEBHOOKS_OF_TENANT = 32  # that one server delivers at once
MAX_WEBHOOKS_OF_HOST = 8  # of those, to one host
MAX_WEBHOOKS_TAKEN = 32  # by one call
WEBHOOK_BUSY_S = 1.0  # a tenant or host with that many is looked at again after this
WEBHOOK_LEASE_S = 60.0  # another server repeats a delivery whose server died after this
WEBHOOK_CHECK_S = 60.0  # a job's webhook is looked at this often before the job ends
WEBHOOK_TTL_S = 4 * 86400  # longer than any delivery is repeated

STREAM_TTL_S = 86400.0
MAX_REPLIES = 100_000  # entries kept for a server that does not read
MAX_NOTICES = 10_000  # entries kept for a worker that does not read
MAX_FORGOTTEN = 64  # tenants that one claim forgets: more than it can serve
MAX_SWEPT = 8  # jobs that one script ends, requeues or forgets, but for followers of the last; it is called again
MAX_LEASES_READ = 256  # by one call that looks for a worker's
MAX_LEASES_RENEWED = 64  # by one call
MAX_ANNOUNCED = 64  # full workers that one script wakes
MAX_SUBSCRIBERS = 64  # servers that one job notifies; further ones see its changes when they look themselves
MAX_STORED_BYTES = 2**20  # of images that one script stores, unless a single one is larger
