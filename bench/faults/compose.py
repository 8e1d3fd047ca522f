"""Compose test: the containers of docker-compose.yml under load, while they are killed and replaced.

    python -m bench.faults.compose

needs Docker with its Compose plugin. Prints image sizes, the time until images are returned again after each
disturbance, and the ends of all accepted jobs; fails if a job does not succeed, or if Prometheus misses a process.
Logs each event as it ends. On a slow machine, a file that Compose reads after docker-compose.yml can spare the time
that compiling takes: `COMPOSE_FILE=docker-compose.yml:quick.yml`, with `MSF_BACKEND: noop` for the worker.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import httpx
from tabulate import tabulate

from bench.faults.job_load import TIMEOUT_S, JobLoad
from bench.local_stack import MODEL, until

URL = "http://127.0.0.1:8000"
PROMETHEUS = "http://127.0.0.1:9090"
SERVICES = ("redis", "server", "worker", "prometheus")
IMAGES = ("server", "worker")
MODELS = (MODEL, "emoji")
JOB = {"n": 2, "num_steps": 12}
NUM_RECOVERED = 5  # jobs that succeed after a disturbance before the next one


def start_stack(services: list[str]) -> list[tuple[str, str]]:
    """Build and start the containers; return rows for the report."""
    started_at = time.monotonic()
    compose("up", "--build", "--detach", "--wait", *services)
    rows = [event("up, with images built", f"{time.monotonic() - started_at:.0f} s")]
    for image in IMAGES:
        size = docker("image", "inspect", "--format", "{{.Size}}", f"msf-serve/{image}")
        rows.append(event(f"image {image}", f"{int(size) / 1e6:.0f} MB"))
    # A worker is healthy with its first model.
    until(lambda: all(httpx.get(f"{URL}/v2/models/{model}/ready").is_success for model in MODELS))
    for model in MODELS:
        body = {"model": model, "prompt": "0"}
        httpx.post(f"{URL}/v1/images/generations", json=body, timeout=TIMEOUT_S).raise_for_status()
    return [*rows, event("first image of each model", f"{time.monotonic() - started_at:.0f} s")]


async def disturb_under_load(load: JobLoad, rate_per_s: float) -> list[tuple[str, str]]:
    """Apply every disturbance, each once jobs succeed again after the one before; return rows for the report."""
    rows = []
    is_over = asyncio.Event()
    numbers = itertools.takewhile(lambda _: not is_over.is_set(), itertools.count())
    bodies = (
        {"model": MODELS[number % len(MODELS)], "prompt": str(number % 10), "seed": number, **JOB} for number in numbers
    )
    sender = asyncio.create_task(load.send(bodies, 1 / rate_per_s))
    follower = asyncio.create_task(load.follow(sender))
    for name, disturb in DISTURBANCES.items():
        started_at, goal = time.monotonic(), load.num_succeeded + NUM_RECOVERED
        await asyncio.to_thread(disturb)
        async with asyncio.timeout(TIMEOUT_S):
            while load.num_succeeded < goal:  # noqa: ASYNC110  the containers decide
                await asyncio.sleep(0.2)
        rows.append(event(name, f"images again after {time.monotonic() - started_at:.0f} s"))
    is_over.set()
    await sender
    await follower
    ends = {"succeeded": load.num_succeeded, "lost": load.num_lost, "duplicated": load.num_duplicated, **load.failed}
    return [*rows, event("jobs", f"{load.num_accepted} accepted: {ends}")]


def event(name: str, result: str) -> tuple[str, str]:
    """Log an event; return its row of the report."""
    print(f"{name}: {result}", file=sys.stderr, flush=True)
    return name, result


def all_are_scraped() -> bool:
    """Tell whether Prometheus finds every container of a server or worker by DNS and reaches it."""
    answer = httpx.get(f"{PROMETHEUS}/api/v1/query", params={"query": "sum(up) by (job)"}).json()
    num_up = {row["metric"]["job"]: int(row["value"][1]) for row in answer["data"]["result"]}
    return num_up == {job: len(containers(job)) for job in ("server", "worker")}


def all_rules_are_evaluated() -> bool:
    groups = httpx.get(f"{PROMETHEUS}/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    return bool(rules) and all(rule["health"] == "ok" for rule in rules)


def kill(service: str) -> None:
    """Kill the process as the kernel would, so that Docker's restart policy has to notice."""
    pid = docker("inspect", "--format", "{{.State.Pid}}", containers(service)[0])
    os.kill(int(pid), signal.SIGKILL)


def roll() -> None:
    """Start a worker from a new image next to the old ones, then stop those."""
    old = containers("worker")
    docker("build", "--quiet", "--tag", "msf-serve/worker", "-", stdin="FROM msf-serve/worker\nLABEL release=next\n")
    compose("up", "--detach", "--no-deps", "--no-recreate", "--wait", "--scale", f"worker={len(old) + 1}", "worker")
    docker("stop", "--time", "40", *old)
    docker("rm", *old)
    compose("up", "--detach", "--no-deps", "--wait", "server")


DISTURBANCES: dict[str, Callable[[], object]] = {
    "kill -9 of the worker": lambda: kill("worker"),
    "kill -9 of the server": lambda: kill("server"),
    "restart of redis": lambda: compose("restart", "redis"),
    "kill -9 of redis": lambda: kill("redis"),
    "three workers": lambda: compose("up", "--detach", "--no-deps", "--wait", "--scale", "worker=3", "worker"),
    "roll to a new image": roll,
}


def containers(service: str) -> list[str]:
    return compose("ps", "--quiet", service).splitlines()


def compose(*arguments: str) -> str:
    return docker("compose", *arguments)


def docker(*arguments: str, stdin: str | None = None) -> str:
    process = subprocess.run(("docker", *arguments), input=stdin, capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(f"docker {' '.join(arguments)}: {process.stderr[-3000:]}")
    return process.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", default=",".join(SERVICES), help="services of docker-compose.yml to start")
    parser.add_argument("--rate", type=float, default=2.0, help="jobs per second (default: 2)")
    parser.add_argument("--keep", action="store_true", help="leave the containers running")
    arguments = parser.parse_args()
    services = arguments.services.split(",")
    load = JobLoad([URL], "compose")
    try:
        rows = start_stack(services) + asyncio.run(disturb_under_load(load, arguments.rate))
        if "prometheus" in services:
            until(all_are_scraped)
            until(all_rules_are_evaluated)
            rows.append(event("Prometheus", "scrapes every process, evaluates every rule"))
    finally:
        if not arguments.keep:
            compose("down", "--volumes", "--timeout", "5")
    print(tabulate(rows, ["event", "result"], tablefmt="github"))
    if load.num_succeeded != load.num_accepted:
        sys.exit("an accepted job did not succeed")


if __name__ == "__main__":
    main()
