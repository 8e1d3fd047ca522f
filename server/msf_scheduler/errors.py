"""Errors of the scheduler, as its callers see them."""

from __future__ import annotations

from collections.abc import Sequence

MAX_LISTED = 50  # names in a message


class SchedulerError(Exception):
    """Base of this package's exceptions."""


class QueueUnavailable(SchedulerError):
    """Redis cannot be used now: it is unreachable, loading, read-only or out of memory."""


class ServerStopping(SchedulerError):
    """This server stops before the job ends; another server can tell its end."""

    def __init__(self) -> None:
        super().__init__("This server is shutting down.")


class QueueFull(SchedulerError):
    """Admission was refused; nothing was stored.

    `num_samples` are queued or running; capacity is expected after `retry_after_s`.
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
    """Admission was refused: not even the fastest worker could finish in `timeout_s`; nothing was stored."""

    def __init__(self, timeout_s: float, least_s: float) -> None:
        super().__init__(f"timeout_s is {timeout_s:g}, and the job takes at least {least_s:.3g} s")


class IdempotencyConflict(SchedulerError):
    """The caller has used the idempotency key for another request; nothing was stored."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"this idempotency key was used for another request, job {job_id}")


class LimitExceeded(SchedulerError):
    """A limit of the API key or tenant is used up for `retry_after_s`; nothing was stored."""

    def __init__(self, name: str, limit: int, retry_after_s: float) -> None:
        super().__init__(f"the caller's {name} of {limit} is used up; try again in {retry_after_s:.0f} s")
        self.name = name
        self.limit = limit
        self.retry_after_s = retry_after_s


def listed(names: Sequence[str]) -> str:
    """Join what is allowed for a message, which callers must not make longer by adding names."""
    others = f" and {len(names) - MAX_LISTED} others" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + others
