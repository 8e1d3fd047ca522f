"""Jobs under load: submitted until they are accepted, followed until they end, and counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

TIMEOUT_S = 400.0
RETRY_S, FOLLOW_S = 0.2, 0.1
TERMINAL = ("succeeded", "failed", "cancelled", "expired")


@dataclass
class JobLoad:
    """A client of the servers at `urls` that outlives their outages; jobs are sent to them in turn.

    `name` distinguishes its idempotency keys. A job is lost if it never ends, is no longer known, or has fewer images
    than requested; it is duplicated if it has more.
    """

    urls: Sequence[str]
    name: str
    num_accepted: int = 0
    num_succeeded: int = 0
    num_lost: int = 0
    num_duplicated: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by error code
    refused: Counter[int] = field(default_factory=Counter)  # by HTTP status; 0: no connection
    _pending: dict[str, int] = field(default_factory=dict)  # job id -> images requested

    async def send(self, bodies: Iterable[dict[str, Any]], interval_s: float) -> None:
        """Submit one job after the other, each until a server accepts it."""
        async with httpx.AsyncClient(timeout=30) as client:
            for number, body in enumerate(bodies):
                url = f"{self.urls[number % len(self.urls)]}/v1/jobs"
                async with asyncio.timeout(TIMEOUT_S):
                    await self._submit(client, url, body, {"Idempotency-Key": f"{self.name}-{number}"})
                await asyncio.sleep(interval_s)

    async def _submit(self, client: httpx.AsyncClient, url: str, body: dict[str, Any], headers: dict[str, str]) -> None:
        while True:
            status = 0
            with suppress(httpx.TransportError):
                answer = await client.post(url, json=body, headers=headers)
                status = answer.status_code
            if status == httpx.codes.ACCEPTED:
                self.num_accepted += 1
                self._pending[answer.json()["id"]] = body["n"]
                return
            self.refused[status] += 1
            await asyncio.sleep(RETRY_S)

    async def follow(self, sender: asyncio.Task[None]) -> None:
        """Count the ends of accepted jobs until `sender` is done and no job is pending."""
        async with httpx.AsyncClient(timeout=30) as client:
            while not sender.done():
                await self._look_up(client)
            with suppress(TimeoutError):
                async with asyncio.timeout(TIMEOUT_S):
                    while self._pending:
                        await self._look_up(client)
        self.num_lost += len(self._pending)

    async def _look_up(self, client: httpx.AsyncClient) -> None:
        for job_id, num_images in list(self._pending.items()):
            with suppress(httpx.TransportError):
                self._count(await client.get(f"{self.urls[0]}/v1/jobs/{job_id}"), job_id, num_images)
        await asyncio.sleep(FOLLOW_S)

    def _count(self, answer: httpx.Response, job_id: str, num_images: int) -> None:
        job = answer.json() if answer.is_success else None
        if answer.status_code == httpx.codes.NOT_FOUND:
            self.num_lost += 1
        elif job is None or job["status"] not in TERMINAL:
            return
        elif job["status"] == "succeeded":
            num_files = len(job["data"] or [])
            self.num_succeeded += num_files == num_images
            self.num_duplicated += num_files > num_images
            self.num_lost += num_files < num_images
        else:
            self.failed[(job["error"] or {"code": job["status"]})["code"]] += 1
        del self._pending[job_id]
