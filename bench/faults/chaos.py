"""What becomes of accepted jobs when things die: real processes under load, one fault after the other.

    python -m bench.faults.chaos [--only NAME ...]

Each scenario starts a Valkey, two servers and two workers (or one `msf serve` with its embedded Valkey), sends jobs to
`/v1/jobs`, does its fault in their midst, and waits until every accepted job has ended. It passes when none was lost
and none has more files than it asked for, and when what failed, failed for the reason that the fault gives.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from redis.asyncio import Redis

from bench.local_stack import repository_of_one
from msf_scheduler.connection import connect
from msf_scheduler.embedded_valkey import find_server
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.registry import Registry

START_TIMEOUT_S = 300.0
END_TIMEOUT_S = 400.0
LEASE_S = 3.0
FATAL_SEED, HANGING_SEED = 666, 777
TERMINAL = ("succeeded", "failed", "cancelled", "expired")


@dataclass
class Tally:
    """What the client counted."""

    accepted: dict[str, int] = field(default_factory=dict)  # job id -> images asked for
    refused: Counter[int] = field(default_factory=Counter)  # by status; 0: no connection
    succeeded: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by reason
    lost: int = 0
    twice: int = 0


@dataclass
class Cluster:
    """Processes of one scenario; `urls` are of its servers."""

    folder: Path
    environment: dict[str, str]
    valkey: subprocess.Popen[bytes] | None = None
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    clock: Path | None = None  # what the Valkey takes for an offset of its clock, in libfaketime's format

    @property
    def redis_url(self) -> str:
        return f"unix://{self.folder}/valkey.sock"

    def start_valkey(self) -> None:
        config = self.folder / "valkey.conf"
        config.write_text(
            f'port 0\nunixsocket "{self.folder}/valkey.sock"\ndir "{self.folder}"\nappendonly yes\n'
            'appendfsync everysec\nsave ""\nlogfile valkey.log\nmaxmemory 512mb\nmaxmemory-policy noeviction\n'
        )
        environment = dict(os.environ)
        if self.clock and (library := find_faketime()):
            environment |= {
                "LD_PRELOAD": library,
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_NO_CACHE": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }
        self.valkey = subprocess.Popen([find_server(), config], env=environment, stdout=subprocess.DEVNULL)

    def start_server(self, place: int, **settings: str) -> None:
        """`msf serve`, new or again after it was killed, on a port that stays its own."""
        while place >= len(self.urls):
            self.urls.append(f"http://127.0.0.1:{_free_port()}")
        log = (self.folder / f"server-{place}.log").open("ab")
        environment = {**os.environ, **self.environment, "MSF_PORT": self.urls[place].rpartition(":")[2], **settings}
        process = subprocess.Popen(
            [sys.executable, "-m", "msf_cli.main", "serve"], env=environment, stdout=log, stderr=log
        )
        self.servers[place : place + 1] = [process]

    async def workers(self) -> list[int]:
        """The pids of the live workers, as they register themselves."""
        async with connect(self.redis_url) as redis:
            with suppress(QueueUnavailable):
                return [worker.pid for worker in await Registry(redis).workers()]
        return []

    async def ready(self, num_workers: int) -> None:
        async def is_ready() -> bool:
            async with httpx.AsyncClient() as client:
                try:
                    answers = [await client.get(f"{url}/v2/health/ready") for url in self.urls]
                except httpx.TransportError:
                    return False
            if not all(answer.is_success for answer in answers):
                return False
            return not self.valkey or len(await self.workers()) >= num_workers

        await _until(is_ready, START_TIMEOUT_S)

    def stop(self) -> None:
        processes = [process for process in (*self.servers, self.valkey) if process is not None]
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()


Fault = Callable[[Cluster], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """`expected`: reasons for which jobs may fail; `special_seed`: the seed of one job in the midst."""

    name: str
    fault: Fault
    settings: Mapping[str, str] = field(default_factory=dict)
    embedded: bool = False
    expected: tuple[str, ...] = ()
    special_seed: int | None = None
    num_jobs: int = 60
    wants_clock: bool = False


async def kill_worker(cluster: Cluster) -> None:
    os.kill((await cluster.workers())[0], signal.SIGKILL)


async def drain_worker(cluster: Cluster) -> None:
    os.kill((await cluster.workers())[0], signal.SIGTERM)


async def pause_worker(cluster: Cluster) -> None:
    pid = (await cluster.workers())[0]
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(3 * LEASE_S)
    os.kill(pid, signal.SIGCONT)


async def kill_server(cluster: Cluster) -> None:
    """The second, which has no workers: the first keeps on serving its jobs."""
    cluster.servers[1].kill()
    cluster.servers[1].wait()
    await asyncio.sleep(2)
    cluster.start_server(1, MSF_WORKERS="0")


async def kill_everything(cluster: Cluster) -> None:
    """`msf serve`, and with it the embedded Valkey and the workers; all start again from the data folder."""
    cluster.servers[0].kill()
    cluster.servers[0].wait()
    cluster.start_server(0)


async def kill_redis(cluster: Cluster) -> None:
    assert cluster.valkey is not None
    cluster.valkey.kill()
    cluster.valkey.wait()
    cluster.start_valkey()


def redis_outage(seconds: float) -> Fault:
    async def outage(cluster: Cluster) -> None:
        assert cluster.valkey is not None
        cluster.valkey.terminate()
        cluster.valkey.wait()
        async with httpx.AsyncClient(base_url=cluster.urls[0], timeout=30) as client:
            answer = await client.post("/v1/jobs", json={"prompt": "0"})
        print(f"    without Redis a request gets {answer.status_code}", file=sys.stderr)
        await asyncio.sleep(seconds)
        cluster.start_valkey()

    return outage


async def fill_redis(cluster: Cluster) -> None:
    """No more memory than is in use; freed again when some refusals were seen."""
    async with connect(cluster.redis_url) as redis:
        used = (await redis.info("memory"))["used_memory"]
        await redis.config_set("maxmemory", used)
        await asyncio.sleep(6)
        await redis.config_set("maxmemory", "512mb")


async def jump_clock(cluster: Cluster) -> None:
    """An hour ahead, then an hour behind."""
    assert cluster.clock is not None
    for offset in ("+3600", "-3600", "+0"):
        cluster.clock.write_text(offset)
        await asyncio.sleep(2 * LEASE_S)


async def nothing(_: Cluster) -> None:
    """The fault is in a job."""


def scenarios(outage_s: float) -> list[Scenario]:
    return [
        Scenario("worker SIGKILL", kill_worker),
        Scenario("worker SIGTERM (drain)", drain_worker, {"MSF_DRAIN_TIMEOUT_S": "1"}),
        Scenario("worker SIGSTOP past its lease", pause_worker),
        Scenario("server SIGKILL", kill_server),
        Scenario("all SIGKILL (embedded)", kill_everything, embedded=True),
        Scenario("Redis SIGKILL (AOF)", kill_redis),
        Scenario(f"Redis gone for {outage_s:g} s", redis_outage(outage_s)),
        Scenario("Redis full", fill_redis, num_jobs=120),
        Scenario("clock jumps", jump_clock, wants_clock=True, expected=("deadline",)),
        Scenario("a step hangs", nothing, {"MSF_STEP_TIMEOUT_S": "4", "MSF_HANGING_SEED": str(HANGING_SEED)},
                 expected=("poisoned",), special_seed=HANGING_SEED, num_jobs=50),
        Scenario("a poison job", nothing, {"MSF_FATAL_SEED": str(FATAL_SEED)},
                 expected=("poisoned",), special_seed=FATAL_SEED, num_jobs=50),
    ]  # fmt: skip


@asynccontextmanager
async def running(scenario: Scenario) -> AsyncIterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="msf-"))
    environment = {
        "MSF_MODEL_REPO": str(repository_of_one(folder)),
        "MSF_THREADS": "1",
        "MSF_LEASE_S": str(LEASE_S),
        "MSF_LOG_LEVEL": "info",
        **scenario.settings,
    }
    cluster = Cluster(folder, environment)
    try:
        if scenario.embedded:
            environment["MSF_DATA_DIR"] = str(folder / "data")
            cluster.start_server(0)
        else:
            environment["MSF_REDIS_URL"] = cluster.redis_url
            if scenario.wants_clock:
                cluster.clock = folder / "clock"
                cluster.clock.write_text("+0")
            cluster.start_valkey()
            cluster.start_server(0, MSF_WORKERS="2")
            cluster.start_server(1, MSF_WORKERS="0")
        await cluster.ready(num_workers=2)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def send_jobs(cluster: Cluster, scenario: Scenario, tally: Tally) -> None:
    """One after the other, as fast as answers come; what meets no server or no room is tried again."""
    dice = random.Random(scenario.name)
    async with httpx.AsyncClient(timeout=30) as client:
        for number in range(scenario.num_jobs):
            special = scenario.special_seed is not None and number == scenario.num_jobs // 3
            num_images = 1 if special else dice.choice([1, 1, 1, 4])
            body = {
                "prompt": str(dice.randrange(10)),
                "n": num_images,
                "num_steps": dice.choice([4, 20, 40]),
                "seed": scenario.special_seed if special else number,
                "cache": False,
            }
            headers = {"Idempotency-Key": f"{scenario.name} {number}".encode("ascii", "replace").decode()}
            deadline = time.monotonic() + END_TIMEOUT_S
            while time.monotonic() < deadline:
                status = 0
                with suppress(httpx.TransportError):
                    url = cluster.urls[number % len(cluster.urls)]
                    answer = await client.post(f"{url}/v1/jobs", json=body, headers=headers)
                    status = answer.status_code
                if status == httpx.codes.ACCEPTED:
                    tally.accepted[answer.json()["id"]] = num_images
                    break
                tally.refused[status] += 1
                await asyncio.sleep(0.2)
            await asyncio.sleep(0.05)


async def count_ends(cluster: Cluster, tally: Tally) -> None:
    """Wait for the end of every accepted job; what does not end, or is not known any more, is lost."""
    deadline = time.monotonic() + END_TIMEOUT_S
    async with httpx.AsyncClient(timeout=30) as client:
        for job_id, num_images in tally.accepted.items():
            job = await _end_of(client, cluster, job_id, deadline)
            if job is None:
                tally.lost += 1
            elif job["status"] == "succeeded":
                tally.succeeded += len(job["data"] or []) == num_images
                tally.twice += len(job["data"] or []) > num_images
                tally.lost += len(job["data"] or []) < num_images
            else:
                tally.failed[(job["error"] or {"code": job["status"]})["code"]] += 1


async def _end_of(client: httpx.AsyncClient, cluster: Cluster, job_id: str, deadline: float) -> Any:
    """The job's last answer; None when it is not known or does not end."""
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            answer = await client.get(f"{cluster.urls[0]}/v1/jobs/{job_id}")
            if answer.status_code == httpx.codes.NOT_FOUND:
                return None
            if answer.is_success and answer.json()["status"] in TERMINAL:
                return answer.json()
        await asyncio.sleep(0.1)
    return None


async def play(scenario: Scenario) -> Tally:
    tally = Tally()
    async with running(scenario) as cluster:
        sending = asyncio.create_task(send_jobs(cluster, scenario, tally))
        await _until(lambda: _has(tally, scenario.num_jobs // 3), END_TIMEOUT_S)
        await scenario.fault(cluster)
        await sending
        await count_ends(cluster, tally)
        if cluster.valkey is not None:
            await _check_nothing_is_left(cluster.redis_url)
    return tally


async def _check_nothing_is_left(redis_url: str) -> None:
    async with connect(redis_url) as redis:
        assert isinstance(redis, Redis)
        reserved = int(await redis.get("msf:reserved") or 0)
    if reserved:
        print(f"    {reserved} bytes are still reserved", file=sys.stderr)


async def _has(tally: Tally, num_jobs: int) -> bool:
    return len(tally.accepted) >= num_jobs


async def _until(condition: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110  other processes decide
            await asyncio.sleep(0.1)


def find_faketime() -> str | None:
    """libfaketime, which Debian's package `faketime` brings."""
    for folder in ("/usr/lib", "/usr/local/lib"):
        for library in Path(folder).glob("**/faketime/libfaketimeMT.so.1"):
            return str(library)
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="scenarios whose name contains one of these")
    parser.add_argument("--outage-s", type=float, default=60.0, help="how long Redis is gone in that scenario")
    arguments = parser.parse_args()
    print("| fault | accepted | succeeded | failed, with reason | lost | twice | refused, by status | verdict |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    verdicts = []
    for scenario in scenarios(arguments.outage_s):
        if arguments.only and not any(part in scenario.name for part in arguments.only):
            continue
        if scenario.wants_clock and find_faketime() is None:
            print(f"| {scenario.name} | | | | | | | not run: needs libfaketime |", flush=True)
            continue
        tally = asyncio.run(play(scenario))
        special = scenario.special_seed is not None
        verdicts.append(
            not tally.lost
            and not tally.twice
            and set(tally.failed) <= set(scenario.expected)
            and (not special or sum(tally.failed.values()) == 1)
        )
        failed = ", ".join(f"{count} {reason}" for reason, count in tally.failed.items()) or "0"
        refused = ", ".join(f"{count} × {status or 'no connection'}" for status, count in tally.refused.items())
        print(
            f"| {scenario.name} | {len(tally.accepted)} | {tally.succeeded} | {failed} | {tally.lost} | "
            f"{tally.twice} | {refused} | {'ok' if verdicts[-1] else 'FAILED'} |",
            flush=True,
        )
    sys.exit(0 if all(verdicts) else 1)


if __name__ == "__main__":
    main()
