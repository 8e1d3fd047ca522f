"""Loads that every server gets in its turn, and the speed of the plans with no server around them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from PIL import Image

from bench.mixed_load import MIX
from bench.peers.client import PeerClient, closed_loop, open_loop
from bench.peers.pipeline import PipelineOptions
from msf_cli.load.arrivals import poisson
from msf_cli.load.mix import Kind, PlannedRequest, plan_load
from msf_cli.load.results import RequestOutcome, RequestResult

NOOP_KIND = Kind(num_steps=16)
CALLERS, NOOP_CALLERS = (1, 16, 64), (1, 64)
FRACTIONS = (0.4, 0.7, 0.9, 1.2)  # offered rates over what the plans alone complete of the mix
WARMUP_S = 1.5
NUM_ALONE = 5  # requests of each kind of the mix


class LoadName(StrEnum):
    """Load on a server; `ALONE`: one request of the mix at a time."""

    CLOSED = "closed"
    NOOP = "noop"
    ALONE = "alone"
    MIXED = "mixed"


@dataclass(frozen=True)
class LoadRun:
    """Results of one load. `level`: number of callers, or requests offered per second."""

    contender: str
    round_number: int
    load: LoadName
    level: float
    duration_s: float
    client_cores: float  # CPU time of the client per second
    results: Sequence[RequestResult]  # of a closed loop, what was answered after the warm-up

    @property
    def succeeded(self) -> list[RequestResult]:
        return [result for result in self.results if result.outcome is RequestOutcome.SUCCEEDED]


@dataclass(frozen=True)
class PlansAlone:
    """Speed of the plans without a server: images/s by batch size at the defaults, requests/s of the mixed load."""

    images_per_s: Mapping[int, float]
    mixed_requests_per_s: float


@dataclass(frozen=True)
class Turn:
    """A server that is up, and its part of a round."""

    contender: str
    round_number: int
    client: PeerClient
    duration_s: float

    def pixels(self) -> str:
        """Return a digest of the pixels for a request that is the same for all servers."""
        return asyncio.run(self._pixels())

    def closed(self, num_callers: int) -> LoadRun:
        """Measure the model's default request with a number of callers."""
        return self._run(LoadName.CLOSED, num_callers, self._closed_loop(Kind(), num_callers))

    def noop(self, num_callers: int) -> LoadRun:
        """Measure requests of 16 steps; the server must have the engine that computes nothing."""
        return self._run(LoadName.NOOP, num_callers, self._closed_loop(NOOP_KIND, num_callers))

    def alone(self) -> LoadRun:
        """Measure each kind of the mix on the idle server."""
        return self._run(LoadName.ALONE, 1, self._one_at_a_time())

    def mixed(self, rate_per_s: float, num_labels: int) -> LoadRun:
        """Measure the mixed load at a rate. All servers of a round get the same requests."""
        requests = plan_load(poisson, rate_per_s, self.duration_s, MIX, num_labels, seed=self.round_number)
        return self._run(LoadName.MIXED, rate_per_s, self._open_loop(requests))

    def _run(self, load: LoadName, level: float, results: Coroutine[None, None, list[RequestResult]]) -> LoadRun:
        started_at, cpu_started_at = time.monotonic(), time.process_time()
        answered = asyncio.run(results)
        client_cores = (time.process_time() - cpu_started_at) / (time.monotonic() - started_at)
        return LoadRun(self.contender, self.round_number, load, level, self.duration_s, client_cores, answered)

    async def _pixels(self) -> str:
        async with self.client:
            _, content = await self.client.post(PlannedRequest(0.0, Kind(), label=0, seed=0))
        return pixels_digest(content)

    async def _closed_loop(self, kind: Kind, num_callers: int) -> list[RequestResult]:
        end_s = WARMUP_S + self.duration_s
        async with self.client:
            return answered_between(await closed_loop(self.client, kind, num_callers, end_s), WARMUP_S, end_s)

    async def _open_loop(self, requests: Iterable[PlannedRequest]) -> list[RequestResult]:
        async with self.client:
            return await open_loop(self.client, requests)

    async def _one_at_a_time(self) -> list[RequestResult]:
        clock = asyncio.get_running_loop().time
        results = []
        async with self.client:
            for kind in MIX.kinds:
                requests = [PlannedRequest(0.0, kind, label=0, seed=seed) for seed in range(NUM_ALONE + 1)]
                answers = [await self.client.send(request, clock()) for request in requests]
                results += answers[1:]  # the first warms up
        return results


def answered_between(results: Iterable[RequestResult], start_s: float, end_s: float) -> list[RequestResult]:
    """Return what was answered in an interval: neither the start of a load nor its end, when callers stop."""
    return [result for result in results if start_s <= result.ended_s < end_s]


def pixels_digest(content: bytes) -> str:
    """Return the SHA-256 of the first image's pixels in an answer, or in a list of answers."""
    answer = json.loads(content)
    (image, *_) = (answer[0] if isinstance(answer, list) else answer)["data"]
    pixels = Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).tobytes()
    return hashlib.sha256(pixels).hexdigest()


def measure_plans(options: PipelineOptions, duration_s: float) -> PlansAlone:
    """Run the plans in a process of their own, and compile those that are not cached."""
    command = [sys.executable, "-m", "bench.peers.plans_alone", f"{duration_s:g}"]
    environment = {**os.environ, **options.environment()}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
    fields = json.loads(output.splitlines()[-1])
    rates = {int(size): rate for size, rate in fields["images_per_s"].items()}
    return PlansAlone(rates, fields["mixed_requests_per_s"])
