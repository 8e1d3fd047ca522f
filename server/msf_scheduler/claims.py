"""Claims of jobs by workers, and what comes of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, field

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.jobs import JobError, JobRecord, JobState, ModelKey, Priority, Provenance, Timings
from msf_scheduler.keys import QueueKeys

EXPIRED = JobError(code=ErrorCode.DEADLINE, message="the job could not end within its timeout_s")
GONE = JobError(
    code=ErrorCode.FINGERPRINT_GONE,
    message="no worker can produce the promised bytes any more; repeat the request for another fingerprint",
)
POISONED = JobError(code=ErrorCode.POISONED, message="every worker that ran this job died; it will not be run again")


@dataclass(frozen=True)
class Claim:
    """A job leased to a worker; `job.attempt` is the fencing token.

    `job.terms` are those of the waiter whose turn it was, if identical jobs wait for this one's result.
    """

    job: JobRecord
    worker_id: str

    @property
    def queue(self) -> QueueKeys:
        """Keys of the job's queue."""
        return QueueKeys.of(self.job.spec.model, self.job.spec.version)

    @property
    def token(self) -> dict[str, str | int]:
        """Arguments by which scripts check the lease."""
        return {"id": self.job.id, "worker": self.worker_id, "attempt": self.job.attempt}


@dataclass(frozen=True)
class ClaimResult:
    """Jobs that a worker may run now. `alone`: a suspect waits or was claimed, so the worker must hold nothing else.

    `num_expired` jobs ended because their deadlines could not be met any more. `lacks_room`: the next job did not fit
    into `max_samples`.
    """

    claims: tuple[Claim, ...] = ()
    alone: bool = False
    num_expired: int = 0
    lacks_room: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class ClaimRequest:
    """Bounds of a claim from one model version.

    Jobs are leased whole and in turn, while they cost less than `budget_steps` sample steps; the last may exceed it.
    Then, whatever the budget, one job of each priority class and tenant of which the worker holds nothing: `held` are
    those of its jobs; a class of which there are more than MAX_HELD_LANES gets none. All have at most `max_samples`
    samples, except that an idle worker gets a first job of any size.
    """

    model: ModelKey
    budget_steps: int
    held: Collection[tuple[Priority, str]]
    max_samples: int


@dataclass(frozen=True)
class JobEnd:
    """End of a leased job; `images` are the encoded files in the order of the samples."""

    claim: Claim
    state: JobState
    result: Timings | JobError
    images: Sequence[bytes] = ()
    provenance: Provenance | None = None


@dataclass(frozen=True)
class SweepResult:
    """Numbers of jobs taken back from workers, failed as poisoned, and ended past their deadline."""

    num_requeued: int = 0
    num_poisoned: int = 0
    num_expired: int = 0

    def __add__(self, other: SweepResult) -> SweepResult:
        return SweepResult(*map(sum, zip(astuple(self), astuple(other), strict=True)))
