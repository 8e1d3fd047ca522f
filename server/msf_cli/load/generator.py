"""Send planned requests to a server; record when each was due, sent and answered."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp

from msf_cli.load.mix import Kind, PlannedRequest
from msf_cli.load.results import LoadTally, RequestOutcome, RequestResult

PATH = "/v1/images/generations"
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=600)
# Below the 5 s after which servers such as uvicorn close an idle connection: a request must not meet a closing one.
KEEPALIVE_S = 2.0
OUTCOMES = {200: RequestOutcome.SUCCEEDED, 429: RequestOutcome.REFUSED, 504: RequestOutcome.EXPIRED}


class LoadError(Exception):
    """The server does not answer, or refuses a request as invalid."""


class LoadClient:
    """Sends requests to the server at `url`, each with the fields of `body` in addition to the planned ones.

    `max_connections` None: one connection per request in flight. `body` must leave `cache` out or false; otherwise
    cached results would count as generated.
    """

    def __init__(
        self,
        url: str,
        *,
        body: Mapping[str, Any] | None = None,
        max_connections: int | None = None,
        api_key: str | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._body = {"cache": False, **(body or {})}
        self._max_connections = max_connections or 0
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            headers=self._headers,
            timeout=TIMEOUT,
            connector=aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=KEEPALIVE_S),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.close()

    async def num_labels(self) -> int:
        """Return the number of classes of the model in `body`, or of the first model. Raises LoadError."""
        try:
            async with self._http.get(f"{self._url}/v1/models", raise_for_status=True) as response:
                models = json.loads(await response.read())["data"]
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise LoadError(f"Cannot list the models of {self._url}: {error or type(error).__name__}") from error
        name = self._body.get("model")
        for model in models:
            if name in (None, model["id"], model["name"]):
                return len(model["labels"])
        allowed = ", ".join(model["id"] for model in models)
        raise LoadError(f"Unknown model {name!r}. Allowed: {allowed or 'none, the server has no model'}")

    async def send(self, request: PlannedRequest, started_at: float, tally: LoadTally) -> None:
        """Send one request and record its result. `started_at`: the load's start on the event loop's clock."""
        clock = asyncio.get_running_loop().time
        sent_s = clock() - started_at
        tally.num_sent += 1

        def record(outcome: RequestOutcome, **fields: Any) -> None:
            ended_s = clock() - started_at
            fields["slo_s"] = request.slo_s
            tally.results.append(RequestResult(request.kind, request.due_s, sent_s, ended_s, outcome, **fields))

        try:
            async with self._http.post(self._url + PATH, json=_fields(request) | self._body) as response:
                content = await response.read()
        except asyncio.CancelledError:
            record(RequestOutcome.UNFINISHED)
            raise
        except (aiohttp.ClientError, TimeoutError) as error:
            record(RequestOutcome.UNREACHED, error=type(error).__name__)
            return
        outcome = OUTCOMES.get(response.status, RequestOutcome.FAILED)
        if outcome is RequestOutcome.SUCCEEDED:
            # The header repeats the body's timings, without megabytes of base64 to parse.
            record(outcome, status=200, timings_ms=_server_timing(response.headers.get("Server-Timing", "")))
        else:
            record(outcome, status=response.status, error=_error_text(response.status, content))


async def open_loop(client: LoadClient, requests: Iterable[PlannedRequest], tally: LoadTally) -> None:
    """Send each request at its intended time, whatever became of the others, and wait for all answers.

    Latency counts from the intended time. A generator that waits for answers before it sends more, or that starts the
    clock only when it sends, omits the very requests that a stalled server would have delayed ("coordinated
    omission"). Here a stall shows in every request that was due while it lasted.
    """
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    async with asyncio.TaskGroup() as senders:
        for request in requests:
            await asyncio.sleep(started_at + request.due_s - loop.time())
            senders.create_task(client.send(request, started_at, tally))


async def closed_loop(
    client: LoadClient, requests: Iterable[PlannedRequest], num_in_flight: int, tally: LoadTally
) -> None:
    """Send all requests with `num_in_flight` of them in flight, whenever they are due, and wait for all answers.

    The results' requests per second are the server's capacity. The loop ends after a number of requests, not after a
    time: otherwise a server that answers cheap requests first would seem faster. Ignore the latencies of a closed loop.
    """
    started_at = asyncio.get_running_loop().time()
    remaining = iter(requests)

    async def send_remaining() -> None:
        for request in remaining:
            await client.send(request, started_at, tally)

    async with asyncio.TaskGroup() as senders:
        for _ in range(num_in_flight):
            senders.create_task(send_remaining())


async def measure_alone(client: LoadClient, kinds: Sequence[Kind], num_runs: int) -> list[RequestResult]:
    """Send every kind `num_runs` times on an idle server, after one warm-up each.

    Raises LoadError when one does not succeed: a load of such requests would measure nothing.
    """
    results = []
    for kind, run in itertools.product(kinds, range(num_runs + 1)):
        tally = LoadTally()
        await client.send(PlannedRequest(0.0, kind, label=0, seed=run), asyncio.get_running_loop().time(), tally)
        (result,) = tally.results
        if result.outcome is not RequestOutcome.SUCCEEDED:
            raise LoadError(f"A request alone ({kind.name}) {result.outcome}: {result.error}")
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
    """Parse `queue;dur=1.2, base;dur=30` into milliseconds by name."""
    timings = {}
    for part in header.split(","):
        name, separator, duration = part.partition(";dur=")
        if separator:
            timings[name.strip()] = float(duration)
    return timings


def _error_text(status: int, content: bytes) -> str:
    """Return OpenAI's error object in one line, or the status of an answer that has none."""
    try:
        error = json.loads(content)["error"]
        return f"{status} {error['code']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return f"status {status}"
