"""Soak test: memory, keys, open files and tasks under an hour of mixed load.

    python -m bench.faults.soak [--minutes 60]

starts `msf serve` with results that live for a minute, keeps a dozen callers busy (one image and many, few steps and
many, deadlines, cancelled jobs, connections closed early, invalid requests), samples every process, and prints a row
for each measure. Keys in Redis are counted by kind, per stored job that has ended, as their number follows the rate of
requests.
A measure has grown if its median in the last quarter exceeds that of the second quarter by more than its tolerance;
then the test fails. It fails, too, if more than a few keys are left once the load has ended and the last result has
expired: the number of keys under load follows the rate of requests, and cannot tell a leak from a faster minute.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from statistics import median

import httpx
from tabulate import tabulate

from bench.local_stack import (
    MODEL,
    LocalService,
    embedded_redis_url,
    free_port,
    local_service,
    read_metric,
    resident_mb,
)
from msf_scheduler.connection import RedisClient, connect
from msf_scheduler.keys import PREFIX, QueueKeys

NUM_CALLERS = 12
NUM_SAMPLES = 120
MIN_PERIOD_S = 1.0
RESULT_TTL_S = 60
SETTLE_S = 30.0  # after the last result has expired
MAX_KEYS_AT_REST = 24  # those of servers, workers and queues, whatever was requested
TOLERANCE = {
    "MB": (0.05, 8.0),
    "files": (0.0, 6.0),
    "tasks": (0.0, 8.0),
    "restarts": (0.0, 0.0),
    "keys per job": (0.25, 0.2),
}  # relative, absolute
KEY_KIND = re.compile(rf"{PREFIX}(?P<kind>\w+)(?::(?P<name>[^:]*)(?::(?P<part>[a-z_]+))?)?")
RESTARTING = "restarting it"  # in the service's log
BEHAVIOURS = ("wait", "wait", "wait", "leave", "cancel", "deadline", "invalid", "idempotent")
Samples = dict[tuple[str, str], list[float]]  # (process, measure) -> values


async def keep_calling(url: str, seed: int, outcomes: Counter[str]) -> None:
    """Send one random request after the other, and count how they end."""
    rng = random.Random(seed)
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while True:
            body = {
                "prompt": str(rng.randrange(10)),
                "n": rng.choice([1, 1, 1, 4, 12]),
                "num_steps": rng.choice([4, 20, 50]),
                "seed": rng.randrange(200),
                "priority": rng.choice(["high", "normal", "low"]),
                "user": str(rng.randrange(1000)),
            }
            with suppress(httpx.TransportError):
                outcomes[await _call(client, body, rng)] += 1


async def _call(client: httpx.AsyncClient, body: dict[str, object], rng: random.Random) -> str:
    behaviour = rng.choice(BEHAVIOURS)
    if behaviour == "leave":
        try:
            await client.post("/v1/images/generations", json=body, timeout=rng.uniform(0.01, 0.3))
        except httpx.TimeoutException:
            return "left"
        return "answered before leaving"
    if behaviour == "cancel":
        job = (await client.post("/v1/jobs", json=body)).json()
        await asyncio.sleep(rng.uniform(0, 0.3))
        return str((await client.delete(f"/v1/jobs/{job.get('id')}")).json().get("status"))
    headers = {"Idempotency-Key": str(rng.randrange(10**6))} if behaviour == "idempotent" else {}
    body |= {"timeout_s": rng.uniform(0.05, 1)} if behaviour == "deadline" else {}
    body |= {"num_stepz": 1} if behaviour == "invalid" else {}
    answer = await client.post("/v1/images/generations", json=body, headers=headers)
    return f"status {answer.status_code}"


async def count_keys(redis: RedisClient) -> Counter[str]:
    """Return the number of keys by kind: "job", "job images", "queue lane", "idempotency" and so on."""
    counts: Counter[str] = Counter()
    async for key in redis.scan_iter(count=1000):
        match = KEY_KIND.match(key.decode())
        counts[" ".join(filter(None, match.group("kind", "part"))) if match else key.decode()] += 1
    return counts


async def count_keys_at_rest(redis_url: str) -> Counter[str]:
    """Return what `count_keys` does once all results have expired."""
    await asyncio.sleep(RESULT_TTL_S + SETTLE_S)
    async with connect(redis_url) as redis:
        return await count_keys(redis)


async def soak(service: LocalService, redis_url: str, worker_url: str, minutes: float) -> Samples:
    samples: Samples = defaultdict(list)
    outcomes: Counter[str] = Counter()
    callers = [asyncio.create_task(keep_calling(service.url, seed, outcomes)) for seed in range(NUM_CALLERS)]
    started_at = time.monotonic()
    async with connect(redis_url) as redis:
        while (elapsed_s := time.monotonic() - started_at) < 60 * minutes:
            for role, process in service.msf.processes().items():
                samples[role, "MB"].append(resident_mb(process))
                samples[role, "files"].append(process.num_fds())
            num_jobs = await redis.zcard(f"{QueueKeys.of(MODEL, '1').prefix}ends")
            num_keys = await count_keys(redis)
            num_keys["all keys"] = num_keys.total()
            for kind in num_keys.keys() | {kind for kind, measure in samples if measure == "keys per job"}:
                samples[kind, "keys per job"].append(num_keys[kind] / max(num_jobs, 1))
            samples["all keys", "keys"].append(num_keys["all keys"])
            samples["ended jobs", "keys"].append(num_jobs)
            for role, url in (("server", service.url), ("worker", worker_url)):
                with suppress(httpx.TransportError):  # while a worker is restarted
                    samples[role, "tasks"].append(await asyncio.to_thread(read_metric, url, "msf_asyncio_tasks"))
            samples["worker", "restarts"].append(service.msf.output.count(RESTARTING))
            print(f"{elapsed_s:6.0f} s  {dict(outcomes)}", file=sys.stderr)
            await asyncio.sleep(max(60 * minutes / NUM_SAMPLES, MIN_PERIOD_S))
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    return samples


def assess(samples: Samples) -> list[list[object]]:
    """Return a row for each measure; the last cell is its verdict."""
    rows: list[list[object]] = []
    for (role, measure), values in sorted(samples.items()):
        quarter = max(len(values) // 4, 1)
        early, late = median(values[quarter : 2 * quarter] or values), median(values[-quarter:])
        verdict = "follows the load"
        if measure in TOLERANCE:
            relative, absolute = TOLERANCE[measure]
            verdict = "GROWN" if late - early > max(relative * early, absolute) else "steady"
        rows.append([role, measure, early, late, max(values), verdict])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    arguments = parser.parse_args()
    port = free_port()
    settings = {"MSF_WORKER_METRICS_PORT": str(port), "MSF_RESULT_TTL_S": str(RESULT_TTL_S)}
    with tempfile.TemporaryDirectory(prefix="msf-") as folder, local_service(Path(folder), **settings) as service:
        redis_url = embedded_redis_url(Path(folder))
        rows = assess(asyncio.run(soak(service, redis_url, f"http://127.0.0.1:{port}", arguments.minutes)))
        at_rest = asyncio.run(count_keys_at_rest(redis_url))
    head = ["process", "measure", "second quarter", "last quarter", "maximum", "verdict"]
    print(tabulate(rows, head, tablefmt="github", floatfmt=".3g"))
    print(f"{at_rest.total()} keys at rest (at most {MAX_KEYS_AT_REST}): {dict(sorted(at_rest.items()))}")
    sys.exit(any(row[-1] == "GROWN" for row in rows) or at_rest.total() > MAX_KEYS_AT_REST)


if __name__ == "__main__":
    main()
