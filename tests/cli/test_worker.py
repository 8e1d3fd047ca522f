"""`msf worker` alone, against an external Redis."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from bench.local_stack import TIMEOUT_S, Msf, free_port
from msf_scheduler.jobs import JobSpec, JobState
from msf_scheduler.queue import JobQueue, new_job_id
from msf_scheduler.registry import Registry
from tests.cli.support import msf


@pytest.mark.slow
async def test_it_serves_an_external_redis_and_finishes_its_jobs_before_it_exits(
    redis: Redis, redis_url: str, settings: dict[str, str], tmp_path: Path
) -> None:
    spec = JobSpec(model="tiny", version="1", label=0, num_samples=64, seed=7, num_steps=50, guidance_scale=2.0)
    queue, registry, port = JobQueue(redis), Registry(redis), free_port()
    job_id = (await queue.admit(spec, job_id=new_job_id(), reply_to=None)).id
    settings |= {"MSF_REDIS_URL": redis_url, "MSF_WORKER_METRICS_PORT": str(port), "MSF_SLOTS": "8"}
    settings["MSF_BACKEND"] = "noop"  # starts without torch
    with msf("worker", settings=settings, log=tmp_path / "log") as worker:
        await until_begun(port, worker)
        [info] = await registry.workers()
        assert (info.pid, info.num_slots, [model.name for model in info.models]) == (worker.process.pid, 8, ["tiny"])
        worker.process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(worker.wait) == 0, worker.output
        assert "Traceback" not in worker.output
    job = await queue.get(job_id)
    assert job is not None
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    assert len(await queue.images(job)) == 64
    assert await registry.workers() == []


async def until_begun(port: int, worker: Msf) -> None:
    """Wait until the worker's metrics count a step."""
    async with httpx.AsyncClient() as client, asyncio.timeout(TIMEOUT_S):
        while True:
            assert worker.process.poll() is None, worker.output
            try:
                text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
                samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
                if any(sample.name == "msf_steps_total" and sample.value > 0 for sample in samples):
                    return
            except httpx.ConnectError:
                pass
            await asyncio.sleep(0.02)
