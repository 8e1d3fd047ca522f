"""What can go wrong with the queue, as its callers see it."""

from __future__ import annotations


class SchedulerError(Exception):
    """Base of everything that this package raises on purpose."""


class QueueUnavailable(SchedulerError):
    """Redis cannot be used now: it is unreachable, loading, read-only or out of memory."""


class QueueFull(SchedulerError):
    """Admission was refused; nothing was stored.

    `num_samples` counts the samples that are queued or running; `retry_after_s` says when to expect room.
    """

    def __init__(self, model: str, *, num_samples: int, limit: int, retry_after_s: float) -> None:
        super().__init__(
            f"the queue of model {model!r} holds {num_samples} of at most {limit} samples;"
            f" try again in {retry_after_s:.0f} s"
        )
        self.model = model
        self.num_samples = num_samples
        self.limit = limit
        self.retry_after_s = retry_after_s


class MemoryFull(SchedulerError):
    """Admission was refused because Redis might not hold the result; nothing was stored."""

    def __init__(self, used_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"Redis may run out of memory: results need {used_bytes / 2**20:.0f} of {limit_bytes / 2**20:.0f} MiB"
        )


class DeadlineTooShort(SchedulerError):
    """Admission was refused: not even the fastest worker could be done in `timeout_s`; nothing was stored."""

    def __init__(self, timeout_s: float, least_s: float) -> None:
        super().__init__(f"this takes {least_s:.3g} s at the least, and timeout_s is {timeout_s:g}")


class IdempotencyConflict(SchedulerError):
    """The caller's idempotency key stands for another request; nothing was stored."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"this idempotency key was used for another request, job {job_id}")


class LimitExceeded(SchedulerError):
    """One of an API key's own limits is used up; nothing was stored. `retry_after_s` says until when."""

    def __init__(self, name: str, limit: int, retry_after_s: float) -> None:
        super().__init__(f"this API key's {name} of {limit} is used up; try again in {retry_after_s:.0f} s")
        self.name = name
        self.limit = limit
        self.retry_after_s = retry_after_s
