"""Every Redis key of the scheduler.

What belongs to one model version carries the same hash tag (the braces). Jobs do not, because they are found
by id alone: a clustered Redis would need the tag in the id, which only this file and `new_job_id` would notice.
"""

from __future__ import annotations

from dataclasses import dataclass

JOB_PREFIX = "msf:job:"

QUEUES = "msf:queues"  # set of "model/version" where a job was ever claimed: where reclaim looks
WORKERS = "msf:workers"  # hash, worker id → WorkerInfo
HEARTBEATS = "msf:heartbeats"  # sorted set, worker id by the time of its last heartbeat
LAST_SEEN = "msf:last_seen"  # time of any worker's last heartbeat
MODELS = "msf:models"  # hash, "model/version" → ModelInfo


@dataclass(frozen=True)
class QueueKeys:
    """The keys of one model version's queue; `name` is "model/version"."""

    name: str

    @classmethod
    def of(cls, model: str, version: str) -> QueueKeys:
        return cls(f"{model}/{version}")

    @property
    def waiting(self) -> str:
        """Sorted set: queued job ids by admission number."""
        return f"msf:{{{self.name}}}:waiting"

    @property
    def leases(self) -> str:
        """Sorted set: running job ids by the time at which their lease runs out."""
        return f"msf:{{{self.name}}}:leases"

    @property
    def counters(self) -> str:
        """Hash: samples queued or running, the last admission number, and the measured service rate."""
        return f"msf:{{{self.name}}}:counters"

    @property
    def wake(self) -> str:
        """Stream of length one: grows whenever the queue stops being empty."""
        return f"msf:{{{self.name}}}:wake"


def job(job_id: str) -> str:
    """Hash: the job's record."""
    return f"{JOB_PREFIX}{job_id}"


def images(job_id: str) -> str:
    """List: the job's encoded files, in the order of its samples."""
    return f"{JOB_PREFIX}{job_id}:images"


def replies(server_id: str) -> str:
    """Stream: the ends of the jobs that one server process waits for."""
    return f"msf:replies:{server_id}"
