from __future__ import annotations

from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.jobs import JobSpec, ModelInfo, Terms, WorkerInfo
from msf_scheduler.queue import JobQueue
from tests.scheduler.support import admit, spec


async def test_unknown_fields_of_a_newer_release_are_ignored(redis: Redis) -> None:
    queue = JobQueue(redis)
    job = await admit(queue)
    newer = '{"a_field_of_the_future": 1, ' + spec().model_dump_json()[1:]
    await redis.hset(keys.job(job.id), mapping={"spec": newer, "a_future_field": "x"})
    record = await queue.get(job.id)
    assert record is not None
    assert record.spec == spec()


def test_fields_missing_from_an_older_release_have_defaults() -> None:
    old_spec = (
        '{"model": "m", "version": "1", "label": 1, "num_samples": 1, "seed": 1, "num_steps": 4, "guidance_scale": 1.0}'
    )
    assert JobSpec.model_validate_json(old_spec).first_index == 0
    assert Terms.model_validate_json("{}").traceparent is None
    old_model = (
        '{"name": "m", "version": "1", "labels": ["a"], "image_size": 8, "image_channels": 1, "default_num_steps": 4, '
        '"max_num_steps": 8, "default_guidance_scale": 1, "max_guidance_scale": 2}'
    )
    assert ModelInfo.model_validate_json(old_model).strict_cost is None
    old_worker = f'{{"id": "w", "host": "h", "pid": 1, "backend": "b", "num_slots": 4, "models": [{old_model}]}}'
    assert WorkerInfo.model_validate_json(old_worker).models[0].fingerprint == ""
