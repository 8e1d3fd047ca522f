from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.jobs import ModelInfo, WorkerInfo
from msf_scheduler.registry import Registry
from tests.polling import eventually


def model(name: str, description: str = "") -> ModelInfo:
    return ModelInfo(
        name=name,
        version="1",
        labels=("circle", "square"),
        image_size=64,
        image_channels=3,
        default_num_steps=20,
        max_num_steps=100,
        default_guidance_scale=2.0,
        max_guidance_scale=8.0,
        description=description,
    )


def worker(worker_id: str, *models: ModelInfo) -> WorkerInfo:
    return WorkerInfo(id=worker_id, host="here", pid=1, backend="eager", num_slots=8, models=models)


async def test_registered_workers_and_models_are_visible_to_others(redis: Redis) -> None:
    first, second = worker("a", model("shapes")), worker("b", model("shapes"), model("letters"))
    await Registry(redis).register(second)
    await Registry(redis).register(first)
    assert await Registry(redis).workers() == [first, second]
    assert await Registry(redis).models() == [model("letters"), model("shapes")]


async def test_an_empty_registry_has_no_workers_models_or_heartbeats(redis: Redis) -> None:
    registry = Registry(redis)
    assert await registry.workers() == []
    assert await registry.models() == []
    assert await registry.last_seen_s() is None


async def test_models_outlive_their_workers(redis: Redis) -> None:
    registry = Registry(redis)
    await registry.register(worker("a", model("shapes")))
    await registry.unregister("a")
    assert await registry.workers() == []
    assert await registry.models() == [model("shapes")]
    last_seen_s = await registry.last_seen_s()
    assert last_seen_s is not None
    assert 0 <= last_seen_s < 60


async def test_a_new_description_replaces_the_old(redis: Redis) -> None:
    registry = Registry(redis)
    await registry.register(worker("a", model("shapes", "old")))
    await registry.register(worker("a", model("shapes", "new")))
    assert await registry.models() == [model("shapes", "new")]


async def test_the_newest_list_of_models_stays(redis: Redis) -> None:
    registry = Registry(redis)
    lists = [worker("a", *(model(name) for name in names)) for names in ("x", "xy", "xyz", "y")]
    await asyncio.gather(*map(registry.register, lists))
    assert await registry.workers() == [lists[-1]]


async def test_unregistering_wins_over_concurrent_registrations(redis: Redis) -> None:
    registry = Registry(redis)
    info = worker("a", model("shapes"))
    await asyncio.gather(registry.register(info), registry.register(info), registry.unregister("a"))
    await registry.heartbeat("a")
    assert await registry.workers() == []


async def test_a_silent_worker_is_dead_and_can_return(redis: Redis) -> None:
    silent, lively = Registry(redis, worker_ttl_s=0.05), Registry(redis)
    await silent.register(worker("silent", model("shapes")))

    async def is_gone() -> bool:
        return await silent.workers() == []

    await eventually(is_gone)
    await lively.register(worker("lively", model("shapes")))
    await silent.heartbeat("silent")
    assert [info.id for info in await lively.workers()] == ["lively", "silent"]


async def test_a_heartbeat_registers_again_when_redis_lost_everything(redis: Redis) -> None:
    registry = Registry(redis)
    await registry.register(worker("a", model("shapes")))
    await redis.flushall()
    await registry.heartbeat("a")
    assert [info.id for info in await registry.workers()] == ["a"]
    assert await registry.models() == [model("shapes")]


async def test_dead_workers_are_forgotten(redis: Redis) -> None:
    brief = Registry(redis, worker_ttl_s=0.05)
    await brief.register(worker("dead", model("shapes")))
    await brief.register(worker("alive", model("shapes")))

    async def only_one_is_stored() -> bool:
        await brief.heartbeat("alive")
        return await redis.hlen(keys.WORKERS) == 1

    await eventually(only_one_is_stored)
    assert await redis.hkeys(keys.WORKERS) == [b"alive"]
