"""Results of jobs that succeed: images, their metadata and timings."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace

from PIL import Image
from redis.asyncio import Redis

from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion
from msf_scheduler.jobs import JobState
from msf_scheduler.queue import JobQueue
from tests.worker.support import SPEC, RunningWorker, admit, assert_same, generated_alone, pixels, running

MIXED_JOBS = [
    SPEC.model_copy(update=changes)
    for changes in (
        {"num_samples": 1},
        {"num_samples": 3, "guidance_scale": 1.0, "label": 1},
        {"num_samples": 2, "num_steps": 2, "output_format": "webp"},
        {"num_samples": 5, "num_steps": 15, "seed": 2**53 - 1, "label": 2},
        {"num_samples": 2, "num_steps": 9, "guidance_scale": 1.0, "output_format": "jpeg"},
        {"num_samples": 1, "guidance_scale": 0.0, "seed": 0},
        {"num_samples": 4, "guidance_scale": 3.5, "num_steps": 3, "label": 1},
        {"num_samples": 1},
    )
]


async def test_concurrent_jobs_of_all_kinds_get_their_own_images(worker: RunningWorker, plans: ModelPlans) -> None:
    job_ids = [await worker.admit(spec) for spec in MIXED_JOBS]
    for job_id, spec in zip(job_ids, MIXED_JOBS, strict=True):
        job = await worker.end_of(job_id)
        assert (job.state, job.error, job.attempt) == (JobState.SUCCEEDED, None, 1)
        files = await worker.images(job_id)
        assert len(files) == spec.num_samples
        for file, alone in zip(files, generated_alone(plans, spec), strict=True):
            image = Image.open(io.BytesIO(file))
            assert (image.format, image.size, image.mode) == (
                spec.output_format.upper(),
                (16, 16),
                "RGB" if spec.output_format == "webp" else "L",
            )
            if spec.output_format != "jpeg":
                assert_same(pixels(file)[..., :1] if image.mode == "RGB" else pixels(file), alone)
    assert worker.is_idle()


async def test_more_images_than_slots_are_complete_and_in_order(
    redis: Redis, version: ModelVersion, plans: ModelPlans
) -> None:
    spec = SPEC.model_copy(update={"num_samples": 11})
    async with running(redis, version, plans, slots=3) as worker:
        job_id = await worker.admit(spec)
        after = await worker.admit(SPEC)
        assert (await worker.end_of(job_id)).state is JobState.SUCCEEDED
        for file, alone in zip(await worker.images(job_id), generated_alone(plans, spec), strict=True):
            assert_same(pixels(file), alone)
        assert (await worker.end_of(after)).state is JobState.SUCCEEDED


async def test_the_same_job_alone_gives_the_same_bytes(worker: RunningWorker) -> None:
    async def files() -> list[bytes]:
        job_id = await worker.admit(SPEC)
        await worker.end_of(job_id)
        return await worker.images(job_id)

    first = await files()
    assert first != []
    assert await files() == first


async def test_a_png_has_the_parameters_to_regenerate_it(worker: RunningWorker) -> None:
    spec = SPEC.model_copy(update={"num_samples": 2, "label": 2, "reproducibility": "fast"})
    job_id = await worker.admit(spec)
    await worker.end_of(job_id)
    for index, file in enumerate(await worker.images(job_id)):
        image = Image.open(io.BytesIO(file))
        assert list(image.info) == ["msf:parameters"]
        assert json.loads(image.info["msf:parameters"]) == {
            "model": "tiny",
            "version": "1",
            "label": 2,
            "seed": 7,
            "index": index,
            "num_steps": 6,
            "guidance_scale": 2.0,
            "fingerprint": worker.runner.fingerprint,
            "reproducibility": "fast",
        }


async def test_timings_add_up(redis: Redis, version: ModelVersion, plans: ModelPlans) -> None:
    waiting = await admit(JobQueue(redis), SPEC)
    async with running(redis, version, plans) as worker:
        job_ids = [waiting, *(await asyncio.gather(*(worker.admit(spec) for spec in MIXED_JOBS)))]
        jobs = [await worker.end_of(job_id) for job_id in job_ids]
    for job in jobs:
        assert job.timings is not None
        assert job.claimed_at is not None
        assert job.timings.denoise_ms == 0  # of models of one stage
        stages = job.timings.model_dump(exclude={"total_ms", "denoise_ms"})
        assert all(duration_ms > 0 for duration_ms in stages.values()), stages
        assert job.timings.total_ms >= sum(stages.values()) - 1e-3
        assert job.timings.queue_ms >= 1000 * (job.claimed_at - job.admitted_at)


async def test_one_worker_serves_several_versions(redis: Redis, version: ModelVersion, plans: ModelPlans) -> None:
    async with running(redis, version, plans, also=[replace(version, version="2")]) as worker:
        job_ids = [await worker.admit(SPEC.model_copy(update={"version": number})) for number in ("1", "2")]
        assert [(await worker.end_of(job_id)).state for job_id in job_ids] == [JobState.SUCCEEDED] * 2
        for number in ("1", "2"):
            assert worker.count("msf_steps_total", version=number, stage="decode") == 1
