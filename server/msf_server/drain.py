"""Shutdown of one server: new jobs are refused, accepted requests are answered, those that take too long with 503."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from msf_scheduler.errors import ServerStopping


class Drain:
    """State of a shutdown, from `begin` over `cut_short` to the end of the process."""

    def __init__(self) -> None:
        self.has_begun = False
        self.is_cut_short = False
        self._unanswered: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """Refuse new jobs, and end streams of events that another server can resume."""
        self.has_begun = True

    def cut_short(self) -> None:
        """End all requests that have no answer yet; called again, also what they clean up."""
        self.has_begun = self.is_cut_short = True
        for task in self._unanswered:
            task.cancel()

    @contextmanager
    def awaiting_answer(self, task: asyncio.Task[None]) -> Iterator[None]:
        """Let `cut_short` cancel a request's task."""
        self._unanswered.add(task)
        try:
            yield
        finally:
            self._unanswered.discard(task)

    def answered(self, task: asyncio.Task[None]) -> None:
        """Let a request whose answer has begun end by itself."""
        self._unanswered.discard(task)

    def check_begun(self) -> None:
        """Raise ServerStopping once the shutdown has begun: for streams that another server can resume."""
        if self.has_begun:
            raise ServerStopping

    def check_cut_short(self) -> None:
        """Raise ServerStopping once the shutdown is cut short."""
        if self.is_cut_short:
            raise ServerStopping
