"""Sends planned requests to a server and notes when each was due, sent and answered."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from msf_cli.load.connections import Connections
from msf_cli.load.mix import Kind, PlannedRequest
from msf_cli.load.results import LoadTally, RequestOutcome, RequestResult

PATH = "/v1/images/generations"
CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S = 10.0, 600.0
OUTCOMES = {200: RequestOutcome.SUCCEEDED, 429: RequestOutcome.REFUSED, 504: RequestOutcome.EXPIRED}


class LoadError(Exception):
    """The server cannot be loaded as asked: it does not answer, or refuses a request as invalid."""


class LoadClient:
    """Requests to the server at `url`, each with `body` besides what is planned.

    `max_connections` None: as many as there are requests in flight. `body` must leave `cache` out or false, or
    results that exist already would be counted as made.
    """

    def __init__(
        self,
        url: str,
        *,
        body: Mapping[str, Any] | None = None,
        max_connections: int | None = None,
        api_key: str | None = None,
    ) -> None:
        self._body = {"cache": False, **(body or {})}
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            transport=Connections(max_connections),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def num_labels(self) -> int:
        """Of the model that `body` names, or of the first. Raises LoadError."""
        try:
            answer = (await self._http.get("/v1/models")).raise_for_status()
            models = answer.json()["data"]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            raise LoadError(f"{self._http.base_url} lists no models: {error or type(error).__name__}") from error
        wanted = self._body.get("model")
        for model in models:
            if wanted in (None, model["id"], model["name"]):
                return len(model["labels"])
        known = ", ".join(model["id"] for model in models)
        raise LoadError(f"model {wanted!r} is not served; allowed: {known or 'none, there are no models'}")

    async def send(self, request: PlannedRequest, started_at: float, tally: LoadTally) -> None:
        """One request to its end. `started_at`: the load's start on the event loop's clock."""
        clock = asyncio.get_running_loop().time
        sent_s = clock() - started_at
        tally.num_sent += 1

        def ended(outcome: RequestOutcome, **more: Any) -> None:
            ended_s = clock() - started_at
            tally.results.append(RequestResult(request.kind, request.due_s, sent_s, ended_s, outcome, **more))

        try:
            answer = await self._http.post(PATH, json=_fields(request) | self._body)
        except asyncio.CancelledError:
            ended(RequestOutcome.UNFINISHED)
            raise
        except httpx.TransportError as error:
            ended(RequestOutcome.UNREACHED, error=type(error).__name__)
            return
        outcome = OUTCOMES.get(answer.status_code, RequestOutcome.FAILED)
        if outcome is RequestOutcome.SUCCEEDED:
            # The same timings as in the body, without reading megabytes of base64.
            ended(outcome, status=200, timings_ms=_server_timing(answer.headers.get("Server-Timing", "")))
        else:
            ended(outcome, status=answer.status_code, error=_error_text(answer))


async def open_loop(client: LoadClient, requests: Iterable[PlannedRequest], tally: LoadTally) -> None:
    """Send each request at its intended time, whatever became of the others, and wait for all answers.

    Latency counts from the intended time. A generator that waits for answers before it sends more, or that starts the
    clock only when it gets round to sending, leaves out the very requests that a stalled server would have kept
    waiting ("coordinated omission"); here a stall shows in every request that was due meanwhile.
    """
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    async with asyncio.TaskGroup() as sending:
        for request in requests:
            await asyncio.sleep(started_at + request.due_s - loop.time())
            sending.create_task(client.send(request, started_at, tally))


async def closed_loop(
    client: LoadClient, requests: Iterable[PlannedRequest], num_in_flight: int, tally: LoadTally
) -> None:
    """Send all requests, whenever they are due, with `num_in_flight` of them under way, and wait for all answers.

    This finds capacity, the results' requests per second. It ends after so many requests, not after some time, or a
    server that answers cheap ones first would seem faster than it is. Latencies of a closed loop say nothing.
    """
    started_at = asyncio.get_running_loop().time()
    waiting = iter(requests)

    async def keep_sending() -> None:
        for request in waiting:
            await client.send(request, started_at, tally)

    async with asyncio.TaskGroup() as senders:
        for _ in range(num_in_flight):
            senders.create_task(keep_sending())


async def measure_alone(client: LoadClient, kinds: Sequence[Kind], num_runs: int) -> list[RequestResult]:
    """Every kind `num_runs` times with nothing beside it, after one run that does not count.

    Raises LoadError when one does not succeed: a load of such requests would measure nothing.
    """
    results = []
    for kind, run in itertools.product(kinds, range(num_runs + 1)):
        tally = LoadTally()
        await client.send(PlannedRequest(0.0, kind, label=0, seed=run), asyncio.get_running_loop().time(), tally)
        (result,) = tally.results
        if result.outcome is not RequestOutcome.SUCCEEDED:
            raise LoadError(f"a request of {kind.name} alone {result.outcome}: {result.error}")
        results += [result] if run else []
    return results


def _fields(request: PlannedRequest) -> dict[str, Any]:
    kind = request.kind
    fields = {
        "prompt": str(request.label),
        "n": kind.num_samples,
        "seed": request.seed,
        "num_steps": kind.num_steps,
        "guidance_scale": kind.guidance_scale,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _server_timing(header: str) -> dict[str, float]:
    """Milliseconds by name, of `queue;dur=1.2, base;dur=30`."""
    timings = {}
    for part in header.split(","):
        name, found, duration = part.partition(";dur=")
        if found:
            timings[name.strip()] = float(duration)
    return timings


def _error_text(answer: httpx.Response) -> str:
    """OpenAI's error object in one line, or the status of an answer that has none."""
    try:
        error = answer.json()["error"]
        return f"{answer.status_code} {error['code']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
