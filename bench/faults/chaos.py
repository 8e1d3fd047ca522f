"""Chaos test: real processes under load, one fault at a time, every accepted job counted.

    python -m bench.faults.chaos [--only NAME ...]

Each scenario starts a Valkey, two servers and two workers (or one `msf serve` with its embedded Valkey), sends jobs to
`/v1/jobs`, injects its fault after a third of them, and waits until every accepted job has ended. It passes if no job
is lost or duplicated, and jobs fail only for the reason that the fault gives. Prints a table with a row per scenario.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from tabulate import tabulate

from bench.faults.chaos_stack import LEASE_S, ChaosStack, chaos_stack, find_faketime
from bench.faults.job_load import TIMEOUT_S, JobLoad
from msf_scheduler.keys import RESERVED

INTERVAL_S = 0.05
FATAL_SEED, HANGING_SEED = 666, 777
MAX_MEMORY = "512mb"

Fault = Callable[[ChaosStack], None]


def kill_worker(stack: ChaosStack) -> None:
    stack.worker().kill()


def drain_worker(stack: ChaosStack) -> None:
    stack.worker().terminate()


def pause_worker(stack: ChaosStack) -> None:
    worker = stack.worker()
    worker.suspend()
    time.sleep(3 * LEASE_S)
    worker.resume()


def kill_server(stack: ChaosStack) -> None:
    """Kill the server without workers; the other one keeps serving its jobs."""
    stack.kill_server(1)
    time.sleep(2)
    stack.start_server(1)


def kill_all(stack: ChaosStack) -> None:
    """Kill `msf serve`, and with it the embedded Valkey and the workers; restart all from the data folder."""
    stack.kill_server(0)
    stack.start_server(0)


def kill_redis(stack: ChaosStack) -> None:
    stack.stop_valkey(signal.SIGKILL)
    stack.start_valkey()


def redis_outage(duration_s: float) -> Fault:
    def stop_redis(stack: ChaosStack) -> None:
        stack.stop_valkey(signal.SIGTERM)
        answer = httpx.post(f"{stack.urls[0]}/v1/jobs", json={"prompt": "0"}, timeout=30)
        print(f"    without Redis, a request is answered {answer.status_code}", file=sys.stderr)
        time.sleep(duration_s)
        stack.start_valkey()

    return stop_redis


def fill_redis(stack: ChaosStack) -> None:
    """Limit the memory to what is in use; lift the limit after some refusals."""
    with stack.redis() as redis:
        redis.config_set("maxmemory", redis.info("memory")["used_memory"])
        time.sleep(6)
        redis.config_set("maxmemory", MAX_MEMORY)


def shift_clock(stack: ChaosStack) -> None:
    """Move Valkey's clock an hour ahead, then an hour behind."""
    for offset_s in ("+3600", "-3600", "+0"):
        stack.clock.write_text(offset_s)
        time.sleep(2 * LEASE_S)


def no_fault(_: ChaosStack) -> None:
    """Do nothing: the fault is in a job."""


@dataclass(frozen=True)
class Scenario:
    """`error_codes`: with which jobs may fail; `bad_seed`: the seed of one job, which must fail."""

    name: str
    fault: Fault
    settings: Mapping[str, str] = field(default_factory=dict)
    embedded: bool = False
    error_codes: tuple[str, ...] = ()
    bad_seed: int | None = None
    num_jobs: int = 60
    needs_faketime: bool = False

    def bodies(self) -> Iterator[dict[str, Any]]:
        rng = random.Random(self.name)
        for number in range(self.num_jobs):
            is_bad = self.bad_seed is not None and number == self.num_jobs // 3
            num_images = 1 if is_bad else rng.choice([1, 1, 1, 4])
            yield {
                "prompt": str(rng.randrange(10)),
                "n": num_images,
                "num_steps": rng.choice([4, 20, 40]),
                "seed": self.bad_seed if is_bad else number,
                "cache": False,
            }

    def accepts(self, load: JobLoad) -> bool:
        num_failed = sum(load.failed.values())
        return (
            not load.num_lost
            and not load.num_duplicated
            and set(load.failed) <= set(self.error_codes)
            and (self.bad_seed is None or num_failed == 1)
        )


def scenarios(outage_s: float) -> list[Scenario]:
    hang = {"MSF_STEP_TIMEOUT_S": "4", "MSF_HANGING_SEED": str(HANGING_SEED)}
    crash = {"MSF_FATAL_SEED": str(FATAL_SEED)}
    return [
        Scenario("worker SIGKILL", kill_worker),
        Scenario("worker SIGTERM (drain)", drain_worker, {"MSF_DRAIN_TIMEOUT_S": "1"}),
        Scenario("worker SIGSTOP past its lease", pause_worker),
        Scenario("server SIGKILL", kill_server),
        Scenario("all SIGKILL (embedded)", kill_all, embedded=True),
        Scenario("Redis SIGKILL (AOF)", kill_redis),
        Scenario(f"Redis down for {outage_s:g} s", redis_outage(outage_s)),
        Scenario("Redis full", fill_redis, num_jobs=120),
        Scenario("clock jumps", shift_clock, needs_faketime=True, error_codes=("deadline",)),
        Scenario("hanging step", no_fault, hang, error_codes=("poisoned",), bad_seed=HANGING_SEED, num_jobs=50),
        Scenario("poison job", no_fault, crash, error_codes=("poisoned",), bad_seed=FATAL_SEED, num_jobs=50),
    ]


async def play(scenario: Scenario, stack: ChaosStack) -> JobLoad:
    load = JobLoad(stack.urls, scenario.name.replace(" ", "-"))
    sender = asyncio.create_task(load.send(scenario.bodies(), INTERVAL_S))
    async with asyncio.timeout(TIMEOUT_S):
        while load.num_accepted < scenario.num_jobs // 3:  # noqa: ASYNC110  the servers decide
            await asyncio.sleep(INTERVAL_S)
    await asyncio.to_thread(scenario.fault, stack)
    await sender
    await load.follow(sender)
    return load


def run(scenario: Scenario) -> list[Any]:
    """Return the scenario's row of the table; the last cell is its verdict."""
    if scenario.needs_faketime and find_faketime() is None:
        return [scenario.name, *[""] * 6, "not run: needs libfaketime"]
    with chaos_stack(scenario.settings, embedded=scenario.embedded) as stack:
        load = asyncio.run(play(scenario, stack))
        if not scenario.embedded:
            with stack.redis() as redis:
                if num_bytes := int(redis.get(RESERVED) or 0):
                    print(f"    {num_bytes} bytes are still reserved", file=sys.stderr)
    failed = ", ".join(f"{count} {code}" for code, count in load.failed.items()) or "0"
    refused = ", ".join(f"{count} × {status or 'no connection'}" for status, count in load.refused.items())
    verdict = "ok" if scenario.accepts(load) else "FAILED"
    counts = [load.num_accepted, load.num_succeeded, failed, load.num_lost, load.num_duplicated]
    return [scenario.name, *counts, refused, verdict]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="scenarios whose name contains one of these")
    parser.add_argument("--outage-s", type=float, default=60.0, help="seconds without Redis (default: 60)")
    arguments = parser.parse_args()
    rows = []
    for scenario in scenarios(arguments.outage_s):
        if not arguments.only or any(part in scenario.name for part in arguments.only):
            rows.append(run(scenario))
            print(f"{scenario.name}: {rows[-1][-1]}", file=sys.stderr, flush=True)
    head = ["fault", "accepted", "succeeded", "failed, by code", "lost", "duplicated", "refused, by status", "verdict"]
    print(tabulate(rows, head, tablefmt="github"))
    sys.exit(any(row[-1] == "FAILED" for row in rows))


if __name__ == "__main__":
    main()
