"""Every Redis key of the scheduler, for Python and (through `LUA_NAMES`) for the scripts.

What belongs to one model version carries the same hash tag (the braces). Jobs do not, because they are found
by id alone: a clustered Redis would need the tag in the id, which only this file and `new_job_id` would notice.
"""

from __future__ import annotations

from dataclasses import dataclass

# Hash, the record; with ":images" list of files, ":previews" stream of files by attempt and sequence, ":waiters" and
# ":watchers" sets of servers' streams, ":followers" list of ids.
JOB_PREFIX = "msf:job:"
REPLIES_PREFIX = "msf:replies:"  # stream: of one server: ends of jobs it waits for, news of jobs it watches
NOTICES_PREFIX = "msf:notices:"  # stream: the jobs of one worker that were cancelled
WATCHES_PREFIX = "msf:watches:"  # stream: the jobs of one worker that somebody began to watch
IDEMPOTENCY_PREFIX = "msf:idempotency:"  # hash: the job that a caller's key stands for, and the digest of its body
USAGE_PREFIX = "msf:usage:"  # hash: what one API key has used, and what its limits remember
TENANT_JOBS_PREFIX = "msf:tenant_jobs:"  # sorted set: ids of one tenant's jobs by the time of their admission
SHARE_PREFIX = "msf:share:"  # id of the job that does, or did, a certain deterministic work

QUEUES = "msf:queues"  # set of "model/version" where a job was ever admitted: where sweeps look
WORKERS = "msf:workers"  # hash, worker id → WorkerInfo
HEARTBEATS = "msf:heartbeats"  # sorted set, worker id by the time of its last heartbeat
LOADS = "msf:loads"  # hash, worker id → WorkerLoad
LAST_SEEN = "msf:last_seen"  # time of any worker's last heartbeat
MODELS = "msf:models"  # hash, "model/version" → ModelInfo
WEBHOOKS = "msf:webhooks"  # sorted set: jobs whose callers are to be told of their end, by when that is due
WEBHOOK_PREFIX = "msf:webhook:"  # what one of them is told, while it is not delivered
URL_SECRET = "msf:url_secret"  # what the addresses of images are signed with
CLOCK = "msf:clock"  # hash: Redis's time when last seen, and what to add so that it never jumps
DESIRED = "msf:desired"  # hash, model name → Desired: which of its versions are to be served
REVISION = "msf:desired:revision"  # of the latest change to it
REPORT_PREFIX = "msf:report:"  # WorkerReport: what one worker has in its model repository, and serves
RESERVED = "msf:reserved"  # bytes that the results of accepted jobs may still take

_QUEUE_KEYS = (
    "waiting",  # sorted set: queued job ids by admission number
    "suspects",  # sorted set: those of them that must run alone; with "@fingerprint" those that are bound to it
    "fingerprints",  # sorted set: fingerprints of workers by the time at which one last showed it
    "deadlines",  # sorted set: job ids by the time at which they must have begun
    "leases",  # sorted set: running job ids by the time at which their lease runs out
    "ends",  # sorted set: ended job ids by the time at which they are forgotten
    "dead",  # sorted set: failed job ids by the time of their end
    "counters",  # hash: samples queued or running, admission number, virtual time, turns, service rate
    "wake",  # list: one token while there is work, which wakes one of the workers that wait; "@fingerprint" as above
    "passes",  # sorted set: tenants by the virtual time up to which they have been served
    # By place: the band, with "@fingerprint" for jobs that are bound to it.
    "tenants",  # prefix, by place; sorted set: tenants with queued jobs by virtual time
    "users",  # prefix, by place and tenant; sorted set: its users with queued jobs by turn
    "lane",  # prefix, by place, tenant and user; sorted set: their queued job ids by admission number
)

_SHARED_KEYS = (
    *("JOB_PREFIX", "TENANT_JOBS_PREFIX", "NOTICES_PREFIX", "WATCHES_PREFIX"),
    *("WEBHOOKS", "WEBHOOK_PREFIX", "QUEUES", "WORKERS", "HEARTBEATS", "LAST_SEEN", "CLOCK", "RESERVED"),
    *("DESIRED", "REVISION", "LOADS"),
)

LUA_NAMES = "\n".join(
    [
        *(f"local {name} = '{globals()[name]}'" for name in _SHARED_KEYS),
        *(f"local {key} = KEYS[1] .. '{key}'" for key in _QUEUE_KEYS),
    ]
)


@dataclass(frozen=True)
class QueueKeys:
    """The keys of one model version's queue; `name` is "model/version"."""

    name: str

    @classmethod
    def of(cls, model: str, version: str) -> QueueKeys:
        return cls(f"{model}/{version}")

    @property
    def prefix(self) -> str:
        """What the scripts are given as their key."""
        return f"msf:{{{self.name}}}:"

    @property
    def waiting(self) -> str:
        return f"{self.prefix}waiting"

    @property
    def leases(self) -> str:
        return f"{self.prefix}leases"

    def wake(self, fingerprint: str = "") -> str:
        """Where a worker waits for jobs that any may run, or for those bound to a fingerprint."""
        return f"{self.prefix}wake@{fingerprint}" if fingerprint else f"{self.prefix}wake"

    @property
    def dead(self) -> str:
        return f"{self.prefix}dead"


def job(job_id: str) -> str:
    return f"{JOB_PREFIX}{job_id}"


def images(job_id: str) -> str:
    """The job's encoded files, in the order of its samples."""
    return f"{JOB_PREFIX}{job_id}:images"


def previews(job_id: str) -> str:
    """Of the job's latest attempt."""
    return f"{JOB_PREFIX}{job_id}:previews"


def replies(server_id: str) -> str:
    return f"{REPLIES_PREFIX}{server_id}"


def usage(name: str) -> str:
    return f"{USAGE_PREFIX}{name}"


def tenant_jobs(tenant: str) -> str:
    return f"{TENANT_JOBS_PREFIX}{tenant}"


def webhook(job_id: str) -> str:
    return f"{WEBHOOK_PREFIX}{job_id}"


def report(worker_id: str) -> str:
    return f"{REPORT_PREFIX}{worker_id}"


def notices(worker_id: str) -> str:
    return f"{NOTICES_PREFIX}{worker_id}"


def watches(worker_id: str) -> str:
    return f"{WATCHES_PREFIX}{worker_id}"
