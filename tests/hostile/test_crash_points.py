"""`kill -9` at every point: each write to Redis of a worker's and a server's life, each change of the plan cache.

After each kill, what was accepted reaches exactly one final state, counts agree with it, and models come back.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, get_args

import pytest
from redis.exceptions import RedisError

from bench.local_stack import TIMEOUT_S, start_valkey
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_version
from msf_engine.repository import read_version
from msf_scheduler import keys
from msf_scheduler.connection import RedisClient, call, connect
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import JobSpec, JobState
from msf_scheduler.model_control import ModelControl
from msf_scheduler.queue import JobQueue
from msf_scheduler.registry import Registry
from msf_worker.settings import WorkerSettings
from tests.hostile.conftest import Attempts
from tests.hostile.crash_points import CrashPoint, Moment, build_plans, serve_models, submit, submit_job
from tests.models import tiny_repository
from tests.polling import eventually

MOMENTS: tuple[Moment, ...] = get_args(Moment)
NO_CRASH = CrashPoint(0)
NUM_LANES = 4  # attempts at once: most of the time is spent waiting for leases to expire
MAX_POINTS = 500
REPLIES = f"{keys.REPLIES}test"
BODY = {"prompt": "star", "model": "tiny", "n": 2, "num_steps": 2}

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["__main__", "tests.hostile.crash_points"])


def spec(version: str, num_samples: int = 1, seed: int = 7) -> JobSpec:
    return JobSpec(
        model="tiny", version=version, label=0, num_samples=num_samples, seed=seed, num_steps=2, guidance_scale=2.0
    )


@dataclass
class CrashLane:
    """A Valkey, and what one attempt at a time does with it."""

    folder: Path
    settings: WorkerSettings
    valkey: subprocess.Popen[bytes] = field(init=False)
    redis: RedisClient = field(init=False)
    worker: BaseProcess | None = None
    num_mended: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.valkey = start_valkey(self.folder)
        self.redis = connect(self.url)

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/valkey.sock"

    def start_worker(self, point: CrashPoint) -> None:
        self.worker = processes.Process(target=serve_models, args=(point, self.url, self.settings), daemon=True)
        self.worker.start()

    def stop_worker(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.join()

    def mend(self) -> bool:
        """Start what has been killed again; return whether anything was."""
        is_valkey_dead = self.valkey.poll() is not None
        is_worker_dead = self.worker is not None and not self.worker.is_alive()
        if is_valkey_dead:
            self.valkey = start_valkey(self.folder)
        if is_worker_dead:
            self.start_worker(NO_CRASH)
        self.num_mended += is_valkey_dead or is_worker_dead
        return is_valkey_dead or is_worker_dead

    async def clear(self) -> None:
        """Forget what was before."""
        self.num_mended = 0

        async def is_empty() -> bool:
            return bool(await self.redis.flushall())

        await eventually(lambda: _answered(is_empty()), TIMEOUT_S)

    async def reach(self, jobs: dict[str, JobSpec], versions: tuple[str, ...], *, served: set[str]) -> None:
        """Admit jobs and select versions, both idempotent; wait until the jobs have ended and `served` are."""
        control, queue, registry = ModelControl(self.redis), JobQueue(self.redis), Registry(self.redis, worker_ttl_s=1)
        is_set = False

        async def is_reached() -> bool:
            nonlocal is_set
            if self.mend():
                return False
            if not is_set:
                for job_id, job in jobs.items():
                    await queue.admit(job, job_id=job_id, reply_to=REPLIES, result_bytes=10, fingerprint="noop")
                await control.set_versions("tiny", versions)
                is_set = True
            workers = await registry.workers()
            if {model.version for worker in workers for model in worker.models} != served or not workers:
                return False
            records = [await queue.get(job_id) for job_id in jobs]
            return all(record is not None and record.state.is_terminal for record in records)

        await eventually(lambda: _answered(is_reached()), TIMEOUT_S)

    async def check(self, jobs: dict[str, JobSpec]) -> None:
        """Check that each job has succeeded once, and that nothing is still counted."""
        queue = JobQueue(self.redis)
        for job_id, job in jobs.items():
            record = await queue.get(job_id)
            assert record is not None
            assert record.state is JobState.SUCCEEDED, (job_id, record.state, record.error)
            assert len(await queue.images(record)) == job.num_samples
        replies = await call(self.redis, "XRANGE", REPLIES, "-", "+")
        ends = Counter(entry[b"job"].decode() for _, entry in replies)
        assert ends == dict.fromkeys(jobs, 1)
        assert await self.open_work() == {}

    async def open_work(self) -> dict[str, float]:
        """Return what is still counted of jobs that have not ended."""
        depths = [await JobQueue(self.redis).depth("tiny", version) for version in ("1", "2")]
        steps = await call(self.redis, "HVALS", keys.OPEN_STEPS)
        counts = {
            "queued": sum(depth.num_jobs_queued for depth in depths),
            "running": sum(depth.num_jobs_running for depth in depths),
            "samples": sum(depth.num_samples for depth in depths),
            "bytes": int(await call(self.redis, "GET", keys.RESERVED) or 0),
            "steps": sum(map(float, steps)),
        }
        return {name: count for name, count in counts.items() if count}

    async def num_jobs(self) -> int:
        names = [name.decode() for name in await call(self.redis, "KEYS", f"{keys.JOB}*")]
        return sum(":" not in name.removeprefix(keys.JOB) for name in names)


async def _answered(condition: Any) -> bool:
    with suppress(QueueUnavailable, RedisError, OSError):
        return bool(await condition)
    return False


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> WorkerSettings:
    """Settings of workers that compute nothing, whose models are cached and the same."""
    folder = tmp_path_factory.mktemp("crash")
    version = tiny_repository(folder / "models")
    shutil.copytree(version.folder, version.folder.with_name("2"))
    settings = WorkerSettings(
        model_repo=folder / "models",
        cache_dir=folder / "cache",
        backend="noop",
        buckets=(1, 4),
        threads=1,
        lease_s=1,
        slots=8,
    )
    load_version(version, "noop", None, 1, PlanCache(folder / "cache" / "plans"), (1, 4))
    return settings


@pytest.fixture
async def lanes(settings: WorkerSettings, tmp_path: Path) -> AsyncIterator[list[CrashLane]]:
    lanes = [CrashLane(tmp_path / str(number), settings) for number in range(NUM_LANES)]
    yield lanes
    for lane in lanes:
        lane.stop_worker()
        await lane.redis.aclose()
        lane.valkey.kill()
        lane.valkey.wait()


async def load_and_unload(lane: CrashLane, point: CrashPoint) -> bool:
    """Load a version, serve jobs, load another, unload the first; return whether the crash point was reached."""
    await lane.clear()
    lane.start_worker(point)
    try:
        jobs = {"a": spec("1", 2), "b": spec("1", 2), "c": spec("1", seed=8)}  # b shares a's work
        await lane.reach(jobs, ("1",), served={"1"})
        jobs["d"] = spec("2")
        await lane.reach(jobs, ("1", "2"), served={"1", "2"})
        jobs["e"] = spec("1", seed=9)  # admitted by a server that does not know yet
        await lane.reach(jobs, ("2",), served={"2"})
        await lane.check(jobs)
    finally:
        lane.stop_worker()
    return lane.num_mended > 0


async def try_every_point(
    lanes: list[CrashLane], attempts: Attempts, moments: Sequence[Moment], victim: Callable[[CrashLane], int]
) -> None:
    """Try each write at each moment, until a run is not hit any more."""

    async def run(lane: CrashLane, moment: Moment, numbers: Iterator[int]) -> None:
        for number in numbers:
            is_reached = True
            with attempts.attempt(f"{moment} write {number}"):
                is_reached = await load_and_unload(lane, CrashPoint(number, moment, victim(lane)))
            if not is_reached:
                for _ in numbers:  # nor would a later one be
                    pass

    for moment in moments:
        numbers = iter(range(1, MAX_POINTS))
        await asyncio.gather(*(run(lane, moment, numbers) for lane in lanes))


@pytest.mark.timeout(2 * TIMEOUT_S)
async def test_a_worker_is_killed_at_every_write(lanes: list[CrashLane], attempts: Attempts) -> None:
    """Worker killed at each write to Redis of load, claim, finish and unload."""
    await try_every_point(lanes, attempts, MOMENTS, lambda lane: 0)


@pytest.mark.timeout(2 * TIMEOUT_S)
async def test_valkey_is_killed_at_every_write(lanes: list[CrashLane], attempts: Attempts) -> None:
    """Valkey killed at each write of a worker."""
    await try_every_point(lanes, attempts, ("before", "after"), lambda lane: lane.valkey.pid)


@pytest.mark.timeout(2 * TIMEOUT_S)
async def test_a_server_is_killed_at_every_write_of_an_admission(lanes: list[CrashLane], attempts: Attempts) -> None:
    """Server killed at each write to Redis of an admission."""
    [lane, *_] = lanes

    async def is_idle(num_jobs: int) -> bool:
        return await lane.num_jobs() == num_jobs and not await lane.open_work()

    await lane.clear()
    lane.start_worker(NO_CRASH)
    await lane.reach({}, ("1",), served={"1"})
    num_jobs = 0
    for moment in MOMENTS:
        for number in range(1, MAX_POINTS):
            num_jobs += 1
            key, body = f"order-{num_jobs}", BODY | {"seed": num_jobs}
            process = processes.Process(target=submit_job, args=(CrashPoint(number, moment), lane.url, body, key))
            process.start()
            await asyncio.to_thread(process.join)
            with attempts.attempt(f"{moment} write {number}"):
                assert await submit(lane.url, body, key) == 202

                await eventually(partial(is_idle, num_jobs), TIMEOUT_S)
            if process.exitcode == 0:
                break
    lane.stop_worker()


@pytest.mark.timeout(600)
def test_the_plan_cache_is_whole_after_a_kill_at_every_change(
    settings: WorkerSettings, tmp_path: Path, attempts: Attempts
) -> None:
    """Compiler killed at each change of a file in the plan cache."""
    for number in range(1, MAX_POINTS):
        cache = tmp_path / str(number)
        process = processes.Process(target=build_plans, args=(number, settings.model_repo, cache))
        process.start()
        process.join()
        with attempts.attempt(f"change {number}"):
            version = read_version(settings.model_repo, "tiny", "1")
            plans = [load_version(version, "noop", None, 1, PlanCache(cache), (1, 4))[1] for _ in range(2)]
            assert plans[1].num_built == 0
            assert plans[0].fingerprint == plans[1].fingerprint
            assert len(PlanCache(cache).records()) == 3
            assert not [entry.name for entry in cache.iterdir() if entry.name.startswith(".partial")]
        if process.exitcode == 0:
            return
