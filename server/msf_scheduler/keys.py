"""Redis keys of the scheduler, for Python and, as the module `keys`, for the Lua scripts.

Every key carries the hash tag `{msf}`, so all of them lie in one slot of a Redis Cluster. Scripts declare the keys that
their caller knows; others they compute from data (the lane of a tenant, the servers that wait for a job), which a
cluster allows within a slot. A cluster thus adds availability, not capacity: one of its nodes holds all jobs.
"""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "{msf}:"

JOB = f"{PREFIX}job:"  # hash: the record; see job_codec.py
# Suffixes of a job's key.
IMAGES = ":images"  # list: encoded files in the order of the samples
PREVIEWS = ":previews"  # stream: encoded previews of the latest attempt, by attempt and sequence
WAITERS = ":waiters"  # set: reply streams of the servers that wait for the end
WATCHERS = ":watchers"  # set: reply streams of the servers that watch every change
FOLLOWERS = ":followers"  # list: ids of identical jobs that share the result

REPLIES = f"{PREFIX}replies:"  # stream, by server: ends of the jobs it waits for, changes of those it watches
NOTICES = f"{PREFIX}notices:"  # stream, by worker: those of its jobs that were cancelled, or whose terms change
WATCHES = f"{PREFIX}watches:"  # stream, by worker: those of its jobs that are being watched
IDEMPOTENCY = f"{PREFIX}idempotency:"  # hash: job that a caller's key stands for, and the digest of its body
SHARE = f"{PREFIX}share:"  # id of the job that does, or did, some deterministic work
USAGE = f"{PREFIX}usage:"  # hash, by API key: what it has used, and the state of its limits
TENANT_JOBS = f"{PREFIX}tenant_jobs:"  # sorted set, by tenant: ids of its jobs by time of admission
REPORT = f"{PREFIX}report:"  # WorkerReport, by worker
WEBHOOK = f"{PREFIX}webhook:"  # message of one webhook until it is delivered

QUEUES = f"{PREFIX}queues"  # set: "model/version" of every queue that ever held a job
WORKERS = f"{PREFIX}workers"  # hash: worker id → WorkerInfo
HEARTBEATS = f"{PREFIX}heartbeats"  # sorted set: worker ids by time of the last heartbeat
LOADS = f"{PREFIX}loads"  # hash: worker id → WorkerLoad
LAST_SEEN = f"{PREFIX}last_seen"  # time of the last heartbeat of any worker
MODELS = f"{PREFIX}models"  # hash: "model/version" → ModelInfo
WEBHOOKS = f"{PREFIX}webhooks:tenants"  # sorted set: tenants with webhooks by the time at which to look at them
WEBHOOK_HOSTS = f"{PREFIX}webhooks:hosts:"  # sorted set, by tenant: its receivers by the same
WEBHOOK_JOBS = f"{PREFIX}webhooks:jobs:"  # sorted set, by tenant and host: ids of jobs by the time at which each is due
WEBHOOK_COUNTS = f"{PREFIX}webhooks:counts"  # hash: number of webhooks that are not settled, by tenant
URL_SECRET = f"{PREFIX}url_secret"  # signs the URLs of images
CLOCK = f"{PREFIX}clock"  # hash: Redis's time when last read, and the offset that keeps ours from jumping
DESIRED = f"{PREFIX}desired"  # hash: model name → DesiredVersions
REVISION = f"{PREFIX}desired:revision"  # of the latest change to `DESIRED`
ALIASES = f"{PREFIX}aliases"  # hash: alias → its versions' weights
OPEN_STEPS = f"{PREFIX}open_steps"  # hash: sample steps of the queued and running jobs, by tenant
RESERVED = f"{PREFIX}reserved"  # bytes set aside for the results of accepted jobs

QUEUE = f"{PREFIX}queue:"
# Parts of a queue, after its prefix; "@fingerprint" is appended where a part is kept by fingerprint.
QUEUE_PARTS = (
    "waiting",  # sorted set: queued job ids by admission number
    "suspects",  # sorted set: those of them that must run alone; by fingerprint
    "fingerprints",  # sorted set: fingerprints of workers by the time at which a worker last had it
    "deadlines",  # sorted set: job ids by the time at which they must have started
    "leases",  # sorted set: running job ids by expiry of the lease
    "ends",  # sorted set: ended job ids by the time at which they are forgotten
    "dead_letters",  # sorted set: failed job ids by the time of their end
    "counters",  # hash: samples of jobs and followers, queued steps, admission number, virtual time, turns, throughput
    "wake",  # list: one token while there is work, which wakes one waiting worker; by fingerprint
    "full",  # sorted set: workers that wait for newcomers alone by the time of their last claim; by fingerprint
    "newcomers",  # sorted set: lanes (priority class and tenant) by the time of their first job; by fingerprint
    "newcomer_token",  # list, by worker: one token while there may be newcomers that it has not seen
    "passes",  # sorted set: tenants by the virtual time up to which they have been served
    # By place: the priority class, qualified by fingerprint.
    "tenants",  # sorted set, by place: tenants with queued jobs by virtual time
    "users",  # sorted set, by place and tenant: its users with queued jobs by turn
    "lane",  # sorted set, by place, tenant and user: their queued job ids by admission number
)

SCRIPT_CONSTANTS = {
    name: value for name, value in globals().items() if name.isupper() and isinstance(value, str) and name != "PREFIX"
}


@dataclass(frozen=True)
class QueueKeys:
    """Keys of one model version's queue; `name` is "model/version"."""

    name: str

    @classmethod
    def of(cls, model: str, version: str) -> QueueKeys:
        """Return the keys of a model version's queue."""
        return cls(f"{model}/{version}")

    @property
    def prefix(self) -> str:
        """Prefix of all parts; scripts get it as their key `queue`."""
        return f"{QUEUE}{self.name}:"

    @property
    def waiting(self) -> str:
        """Ids of the queued jobs."""
        return f"{self.prefix}waiting"

    @property
    def dead_letters(self) -> str:
        """Ids of the failed jobs."""
        return f"{self.prefix}dead_letters"

    def newcomer_token(self, waiter: str) -> str:
        """Return the list that wakes a full worker."""
        return f"{self.prefix}newcomer_token{waiter}"

    def wake(self, fingerprint: str = "") -> str:
        """Return the list that wakes workers for jobs bound to the fingerprint, or for jobs that any worker may run."""
        return f"{self.prefix}wake@{fingerprint}" if fingerprint else f"{self.prefix}wake"


def job(job_id: str) -> str:
    """Return the key of a job's record."""
    return f"{JOB}{job_id}"


def images(job_id: str) -> str:
    """Return the key of a job's encoded files."""
    return f"{JOB}{job_id}{IMAGES}"


def previews(job_id: str) -> str:
    """Return the key of a job's encoded previews."""
    return f"{JOB}{job_id}{PREVIEWS}"
