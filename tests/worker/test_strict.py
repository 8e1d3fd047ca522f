"""Strict jobs: the same bytes whatever else is in the batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from redis.asyncio import Redis

from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion
from msf_scheduler.jobs import Provenance
from msf_worker.perfetto import Trace
from tests.worker.support import SPEC, running


async def test_strict_images_are_the_same_bytes_alone_and_in_any_company(
    redis: Redis, version: ModelVersion, plans: ModelPlans
) -> None:
    strict = SPEC.model_copy(update={"reproducibility": "strict", "num_samples": 3})
    third = strict.model_copy(update={"num_samples": 1, "first_index": 2})
    async with running(redis, version, plans, num_slots=16) as worker:
        alone = await worker.admit(strict)
        await worker.end_of(alone)
        company = [await worker.admit(SPEC.model_copy(update={"seed": 8 + n, "num_steps": 4 + n})) for n in range(6)]
        again, only_third = await worker.admit(strict), await worker.admit(third)
        for job_id in (*company, again, only_third):
            await worker.end_of(job_id)
        assert await worker.images(again) == await worker.images(alone)
        assert await worker.images(only_third) == (await worker.images(alone))[2:]
        made = (await worker.job(alone)).provenance
        assert made == Provenance(fingerprint=worker.runner.fingerprint, reproducibility="strict")


async def test_strict_batches_take_strict_buckets_only(
    redis: Redis, version: ModelVersion, plans: ModelPlans, tmp_path: Path
) -> None:
    narrow = replace(plans, strict=dict.fromkeys(plans.strict, (2, 4)))
    trace = Trace(tmp_path / "trace", "worker")
    async with running(redis, version, narrow, num_slots=16, trace=trace) as worker:
        spec = SPEC.model_copy(update={"reproducibility": "strict", "num_samples": 7})
        strict = await worker.admit(spec)
        await worker.end_of(strict)
        await worker.end_of(await worker.admit(SPEC))
    [file] = (tmp_path / "trace").iterdir()
    batches = [event["args"] for event in json.loads(f"{file.read_text()}{{}}]")[:-1]]
    is_strict = [strict in {rider["job"] for rider in batch["riders"]} for batch in batches]
    assert {batch["bucket"] for batch, it_is in zip(batches, is_strict, strict=True) if it_is} <= {2, 4}
    assert {batch["bucket"] for batch, it_is in zip(batches, is_strict, strict=True) if not it_is} == {1}
