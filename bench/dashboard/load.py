"""Load of the dashboard's check: requests of two models and keys that succeed, stream, fail, expire or are refused."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from msf_cli.load.arrivals import bursty
from msf_cli.load.generator import OUTCOMES, PATH, LoadClient, open_loop
from msf_cli.load.mix import Kind, Mix, PlannedRequest, Weighted, plan_load
from msf_cli.load.results import LoadTally, RequestOutcome, RequestResult
from msf_server.api_keys import digest

MIX = Mix(num_steps=Weighted(((4, 3.0), (20, 5.0))), num_samples=Weighted(((1, 4.0), (4, 1.0))))
HOPELESS = Kind(num_steps=100, num_samples=8)  # cannot end within DEADLINE_S under this load
STREAMED = Kind(num_steps=20, num_samples=1)
DEADLINE_S = 2.0
BURST_SIZE = 40  # requests of 4 samples at once: more than the queue's limit
NUM_LABELS = 10
KEYS = {"emoji": ("studio", 4.0), "fashion-mnist": ("intern", 1.0)}  # name and weight, by model

Results = Mapping[str, Sequence[RequestResult]]  # by model


def write_keys(folder: Path) -> Path:
    """Write the file of API keys, one for each model."""
    file = folder / "keys.toml"
    tables = [
        f'[[keys]]\nname = "{name}"\nweight = {weight}\nsha256 = "{digest(_secret(name))}"\n'
        for name, weight in KEYS.values()
    ]
    file.write_text("\n".join(tables))
    return file


async def send_load(urls: Sequence[str], duration_s: float, rate_per_s: Mapping[str, float]) -> Results:
    """Send all kinds of requests for each model at the same time, to the servers in turn."""
    tallies: defaultdict[str, LoadTally] = defaultdict(LoadTally)

    async def send(model: str, body: dict[str, object], requests: Sequence[PlannedRequest], url: str) -> None:
        async with LoadClient(url, body={"model": model, **body}, api_key=_secret(KEYS[model][0])) as client:
            await open_loop(client, requests, tallies[model])

    async with asyncio.TaskGroup() as group:
        for number, (model, rate) in enumerate(rate_per_s.items()):
            mixed = plan_load(bursty, rate, duration_s, MIX, NUM_LABELS, seed=number)
            hopeless = [PlannedRequest(due_s, HOPELESS, 0, int(due_s)) for due_s in range(5, int(duration_s), 10)]
            invalid = [PlannedRequest(due_s + 0.5, Kind(num_steps=5), 0, 0) for due_s in range(0, int(duration_s), 4)]
            burst = [
                PlannedRequest(duration_s, Kind(num_steps=20, num_samples=4), 0, seed) for seed in range(BURST_SIZE)
            ]
            streams: list[tuple[dict[str, object], list[PlannedRequest]]] = [
                ({"priority": "high" if number else "normal"}, mixed + burst),
                ({"timeout_s": DEADLINE_S}, hopeless),
                ({"num_stepz": 1}, invalid),
            ]
            for body, requests in streams:
                for place, url in enumerate(urls):
                    group.create_task(send(model, body, requests[place :: len(urls)], url))
            group.create_task(_send_streams(urls, model, duration_s, tallies[model]))
        group.create_task(_send_unknown_keys(urls[0], duration_s))
    return {model: tally.results for model, tally in tallies.items()}


async def _send_streams(urls: Sequence[str], model: str, duration_s: float, tally: LoadTally) -> None:
    """Stream an image with a preview every few seconds; the last event has the timings."""
    headers = {"Authorization": f"Bearer {_secret(KEYS[model][0])}"}
    clock = asyncio.get_running_loop().time
    started_at = clock()
    async with httpx.AsyncClient(timeout=600, headers=headers) as client:
        for number in range(int(duration_s / 4)):
            await asyncio.sleep(started_at + 4 * number - clock())
            body = {"model": model, "prompt": "1", "num_steps": STREAMED.num_steps, "seed": number, "cache": False}
            sent_s = clock() - started_at
            answer = await client.post(
                urls[number % len(urls)] + PATH, json={**body, "stream": True, "partial_images": 1}
            )
            events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
            timings = events[-1].get("timings", {}) if events else {}
            timings = {name.removesuffix("_ms"): value for name, value in timings.items()}
            outcome = OUTCOMES.get(answer.status_code, RequestOutcome.FAILED)
            tally.results.append(
                RequestResult(STREAMED, sent_s, sent_s, clock() - started_at, outcome, timings_ms=timings)
            )


async def _send_unknown_keys(url: str, duration_s: float) -> None:
    async with httpx.AsyncClient(headers={"Authorization": "Bearer guessed"}) as client:
        for _ in range(int(duration_s / 10)):
            await client.post(url + PATH, json={"prompt": "1"})
            await asyncio.sleep(10)


def num_unknown_keys(duration_s: float) -> int:
    """Return how many requests had a key that does not exist."""
    return int(duration_s / 10)


def _secret(name: str) -> str:
    return f"msf_{name:_<43}"
