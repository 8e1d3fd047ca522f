"""Replies that a server gets about its jobs, through one blocking read per process for any number of requests."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from msf_scheduler import keys
from msf_scheduler.connection import MAX_BLOCK_S, RedisClient, call_all, call_blocking
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import JobState

MIN_RETRY_DELAY_S = 0.05
MAX_RETRY_DELAY_S = 2.0
CHECK_INTERVAL_S = 30.0
LOST_AFTER_S = 30.0  # longer than any admission can take
MAX_ENTRIES_PER_READ = 1024

_START = b"0-0"


@dataclass
class _Awaited:
    futures: list[asyncio.Future[JobState]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)


class ReplyReader:
    """Resolves the futures of jobs that were admitted with `reply_to=reader.stream`.

    Reading does not consume entries, so an interrupted read loses nothing. Job records are authoritative: they are
    checked after every outage and every CHECK_INTERVAL_S.
    """

    def __init__(self, redis: RedisClient, server_id: str) -> None:
        self._redis = redis
        self.stream = f"{keys.REPLIES}{server_id}"
        self._last_id = _START
        self._awaited: dict[str, _Awaited] = {}
        self._listeners: defaultdict[str, list[asyncio.Event]] = defaultdict(list)

    @contextmanager
    def listening(self, *job_ids: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever one of these jobs, which this server watches, may have changed."""
        changed = asyncio.Event()
        for job_id in job_ids:
            self._listeners[job_id].append(changed)
        try:
            yield changed
        finally:
            for job_id in job_ids:
                self._listeners[job_id].remove(changed)
                if not self._listeners[job_id]:
                    del self._listeners[job_id]

    def expect(self, job_id: str) -> asyncio.Future[JobState]:
        """Return a future of the job's terminal state. Call before `admit`; `forget` it when it no longer matters.

        The future fails with `QueueUnavailable` if Redis lost the job. Each call returns another future.
        """
        future: asyncio.Future[JobState] = asyncio.get_running_loop().create_future()
        self._awaited.setdefault(job_id, _Awaited()).futures.append(future)
        return future

    def forget(self, job_id: str, future: asyncio.Future[JobState]) -> None:
        """Cancel a future that `expect` returned."""
        future.cancel()
        awaited = self._awaited.get(job_id)
        if awaited is not None and future in awaited.futures:
            awaited.futures.remove(future)
            if not awaited.futures:
                del self._awaited[job_id]

    async def run(self) -> None:
        """Read without end, also across outages of Redis. Cancel to stop, run again to resume."""
        delay_s = MIN_RETRY_DELAY_S
        next_check = 0.0
        while True:
            try:
                if time.monotonic() >= next_check:
                    await self._check_records()
                    for job_id in list(self._listeners):
                        self._notify(job_id)
                    next_check = time.monotonic() + CHECK_INTERVAL_S
                await self._read()
                delay_s = MIN_RETRY_DELAY_S
            except QueueUnavailable:
                # Redis may return with another stream or none: start over; known ends do no harm.
                self._last_id = _START
                next_check = 0.0
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, MAX_RETRY_DELAY_S)

    async def _read(self) -> None:
        options = ("COUNT", MAX_ENTRIES_PER_READ, "BLOCK", round(MAX_BLOCK_S * 1000))
        streams = await call_blocking(self._redis, "XREAD", *options, "STREAMS", self.stream, self._last_id)
        for _, entries in streams:
            for entry_id, entry in entries:
                if b"changed" in entry:
                    self._notify(entry[b"changed"].decode())
                else:
                    self._resolve(entry[b"job"].decode(), JobState(entry[b"state"].decode()))
                self._last_id = entry_id

    def _notify(self, job_id: str) -> None:
        for changed in self._listeners.get(job_id, ()):
            changed.set()

    async def _check_records(self) -> None:
        job_ids = list(self._awaited)
        if not job_ids:
            return
        states = await call_all(self._redis, *(("HGET", keys.job(job_id), "state") for job_id in job_ids))
        for job_id, state in zip(job_ids, states, strict=True):
            if state is None:
                self._give_up(job_id)
            elif JobState(state.decode()).is_terminal:
                self._resolve(job_id, JobState(state.decode()))

    def _resolve(self, job_id: str, state: JobState) -> None:
        awaited = self._awaited.pop(job_id, None)
        for future in awaited.futures if awaited else ():
            if not future.done():
                future.set_result(state)

    def _give_up(self, job_id: str) -> None:
        awaited = self._awaited.get(job_id)
        if awaited is None or time.monotonic() - awaited.since < LOST_AFTER_S:
            return  # forgotten in the meantime, or perhaps not admitted yet
        del self._awaited[job_id]
        for future in awaited.futures:
            if not future.done():
                future.set_exception(QueueUnavailable(f"Redis no longer stores job {job_id}"))
