"""Strict jobs: the same bytes in any batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from redis.asyncio import Redis

from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion
from msf_scheduler.jobs import Provenance
from tests.worker.support import SPEC, running, trace_events


async def test_strict_images_have_the_same_bytes_alone_and_in_mixed_batches(
    redis: Redis, version: ModelVersion, plans: ModelPlans
) -> None:
    strict = SPEC.model_copy(update={"reproducibility": "strict", "num_samples": 3})
    third = strict.model_copy(update={"num_samples": 1, "first_index": 2})
    async with running(redis, version, plans, slots=16) as worker:
        alone = await worker.admit(strict)
        await worker.end_of(alone)
        others = [await worker.admit(SPEC.model_copy(update={"seed": 8 + n, "num_steps": 4 + n})) for n in range(6)]
        again, only_third = await worker.admit(strict), await worker.admit(third)
        for job_id in (*others, again, only_third):
            await worker.end_of(job_id)
        assert await worker.images(again) == await worker.images(alone)
        assert await worker.images(only_third) == (await worker.images(alone))[2:]
        provenance = (await worker.job(alone)).provenance
        assert provenance == Provenance(fingerprint=worker.runner.fingerprint, reproducibility="strict")


async def test_strict_batches_use_only_strict_buckets(
    redis: Redis, version: ModelVersion, plans: ModelPlans, tmp_path: Path
) -> None:
    narrow = replace(plans, strict=dict.fromkeys(plans.strict, (2, 4)))
    async with running(redis, version, narrow, slots=16, trace_dir=tmp_path) as worker:
        spec = SPEC.model_copy(update={"reproducibility": "strict", "num_samples": 7})
        strict = await worker.admit(spec)
        await worker.end_of(strict)
        await worker.end_of(await worker.admit(SPEC))
    strict_buckets: set[int] = set()
    other_buckets: set[int] = set()
    for batch in trace_events(tmp_path):
        is_strict = strict in batch["args"]["jobs"]
        (strict_buckets if is_strict else other_buckets).add(batch["args"]["bucket"])
    assert strict_buckets <= {2, 4}
    assert other_buckets == {2, 1}  # of two rows per sample; of the decode
