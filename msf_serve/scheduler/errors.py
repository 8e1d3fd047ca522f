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
