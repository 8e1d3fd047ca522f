"""Whether a service grows: memory, keys, open files and tasks under an hour of mixed load with callers that leave.

    python -m bench.faults.soak [--minutes 60]

starts `msf serve` with results that live for a minute, keeps some dozen callers busy (one image and many, few steps and
many, deadlines, cancelled jobs, connections closed early, refused bodies), and samples every process. A measure has
grown when its median in the last quarter is above that of the second quarter by more than its tolerance.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median

import httpx

from bench.local_stack import running_service
from msf_scheduler.connection import connect

CALLERS = 12
TOLERANCE = {"MB": (0.05, 8.0), "files": (0.0, 6.0), "tasks": (0.0, 8.0), "keys": (0.25, 100.0)}  # share, absolute
Samples = dict[tuple[str, str], list[float]]  # (process, measure) -> values


async def call_for_ever(url: str, seed: int, outcomes: Counter[str]) -> None:
    """One caller after the other, of every kind."""
    dice = random.Random(seed)
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while True:
            body = {
                "prompt": str(dice.randrange(10)),
                "n": dice.choice([1, 1, 1, 4, 12]),
                "num_steps": dice.choice([4, 20, 50]),
                "seed": dice.randrange(200),
                "priority": dice.choice(["high", "normal", "low"]),
                "user": str(dice.randrange(1000)),
            }
            with suppress(httpx.TransportError):
                outcomes[await _call(client, body, dice)] += 1


async def _call(client: httpx.AsyncClient, body: dict[str, object], dice: random.Random) -> str:
    kind = dice.choice(["wait", "wait", "wait", "leave", "cancel", "deadline", "invalid", "once"])
    if kind == "leave":
        try:
            await client.post("/v1/images/generations", json=body, timeout=dice.uniform(0.01, 0.3))
        except httpx.TimeoutException:
            return "left"
        return "answered before it left"
    if kind == "cancel":
        job = (await client.post("/v1/jobs", json=body)).json()
        await asyncio.sleep(dice.uniform(0, 0.3))
        return str((await client.delete(f"/v1/jobs/{job.get('id')}")).json().get("status"))
    headers = {"Idempotency-Key": str(dice.randrange(10**6))} if kind == "once" else {}
    body |= {"timeout_s": dice.uniform(0.05, 1)} if kind == "deadline" else {}
    body |= {"num_stepz": 1} if kind == "invalid" else {}
    answer = await client.post("/v1/images/generations", json=body, headers=headers)
    return f"status {answer.status_code}"


async def soak(service_url: str, pid: int, data_dir: Path, worker_metrics: str, minutes: float) -> Samples:
    samples: Samples = defaultdict(list)
    outcomes: Counter[str] = Counter()
    callers = [asyncio.create_task(call_for_ever(service_url, seed, outcomes)) for seed in range(CALLERS)]
    every_s = max(minutes * 60 / 120, 1.0)
    ends_at = time.monotonic() + 60 * minutes
    async with httpx.AsyncClient(timeout=30) as client, connect((data_dir / "owner").read_text()) as redis:
        while time.monotonic() < ends_at:
            await asyncio.sleep(every_s)
            for name, process in family(pid).items():
                samples[name, "MB"].append(_resident_mb(process))
                samples[name, "files"].append(len(os.listdir(f"/proc/{process}/fd")))
            samples["valkey", "keys"].append(await redis.dbsize())
            for name, url in (("server", f"{service_url}/metrics"), ("worker", worker_metrics)):
                found = re.search(r"^msf_asyncio_tasks (\S+)", (await client.get(url)).text, re.MULTILINE)
                samples[name, "tasks"].append(float(found[1]) if found else 0.0)
            print(f"{time.monotonic() - ends_at + 60 * minutes:6.0f} s  {dict(outcomes)}", file=sys.stderr)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    return samples


def family(root: int) -> dict[str, int]:
    """The service's processes by name."""
    found = {"server": root}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
            if b"valkey-server" in command:
                found["valkey"] = int(folder.name)
            elif parent == root and command.startswith(b"msf worker"):
                found["worker"] = int(folder.name)
    return found


def _resident_mb(pid: int) -> float:
    found = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def report(samples: Samples, show: Callable[[str], None]) -> bool:
    """Print a table; whether nothing has grown."""
    show("| process | measure | second quarter | last quarter | most | verdict |\n|---|---|---|---|---|---|")
    steady = True
    for (process, measure), values in sorted(samples.items()):
        quarter = max(len(values) // 4, 1)
        early, late = median(values[quarter : 2 * quarter] or values), median(values[-quarter:])
        share, absolute = TOLERANCE[measure]
        has_grown = late - early > max(share * early, absolute)
        steady &= not has_grown
        show(
            f"| {process} | {measure} | {early:.0f} | {late:.0f} | {max(values):.0f} | "
            f"{'GROWN' if has_grown else 'steady'} |"
        )
    return steady


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    arguments = parser.parse_args()
    port = 20000 + os.getpid() % 10000
    settings = {"MSF_WORKER_METRICS_PORT": str(port), "MSF_RESULT_TTL_S": "60"}
    with tempfile.TemporaryDirectory(prefix="msf-") as folder, running_service(Path(folder), **settings) as service:
        metrics = f"http://127.0.0.1:{port}/metrics"
        samples = asyncio.run(soak(service.url, service.pid, Path(folder), metrics, arguments.minutes))
        steady = report(samples, print)
    sys.exit(0 if steady else 1)


if __name__ == "__main__":
    main()
