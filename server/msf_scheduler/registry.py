"""Which workers are alive and which models were ever offered."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.connection import call, guarded
from msf_scheduler.jobs import ModelInfo, WorkerInfo, WorkerLoad
from msf_scheduler.keys import QueueKeys
from msf_scheduler.scripts import Script
from msf_scheduler.tunables import LEASE_S


class Registry:
    """A worker is alive for `worker_ttl_s` after a heartbeat. Every method may raise `QueueUnavailable`."""

    def __init__(self, redis: Redis, *, worker_ttl_s: float = LEASE_S) -> None:
        self._redis = redis
        self._worker_ttl_s = worker_ttl_s
        self._registered: dict[str, WorkerInfo] = {}
        self._writing = asyncio.Lock()
        self._heartbeat = Script(redis, "heartbeat")
        self._clock = Script(redis, "now")

    async def register(self, worker: WorkerInfo) -> None:
        """Announce a worker and its models; the models stay known when it goes, so that admission goes on."""
        self._registered[worker.id] = worker
        await self._announce(worker.id)

    async def heartbeat(self, worker_id: str, load: WorkerLoad | None = None) -> None:
        """Keep a worker alive that was registered here; registers it again if Redis has lost it."""
        if not await self._beat(worker_id, load):
            await self._announce(worker_id)

    async def _announce(self, worker_id: str) -> None:
        """What is written for a worker is written in turn: an older list of its models must not arrive last."""
        async with self._writing, self._redis.pipeline(transaction=True) as pipeline:
            worker = self._registered.get(worker_id)
            if worker is None:  # unregistered meanwhile
                return
            pipeline.hset(keys.WORKERS, worker.id, worker.model_dump_json())
            for model in worker.models:
                name = QueueKeys.of(model.name, model.version).name
                pipeline.hset(keys.MODELS, name, model.model_dump_json())
            await guarded(self._redis, pipeline.execute())
            await self._beat(worker.id)

    async def _beat(self, worker_id: str, load: WorkerLoad | None = None) -> bool:
        told = load and load.model_dump_json()
        return bool(await self._heartbeat("msf:", worker=worker_id, load=told, ttl_s=self._worker_ttl_s))

    async def unregister(self, worker_id: str) -> None:
        self._registered.pop(worker_id, None)
        async with self._writing, self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hdel(keys.WORKERS, worker_id)
            pipeline.hdel(keys.LOADS, worker_id)
            pipeline.zrem(keys.HEARTBEATS, worker_id)
            await guarded(self._redis, pipeline.execute())

    async def loads(self) -> list[WorkerLoad]:
        """Of the workers that are alive; those that have not told yet have only their slots."""
        workers = await self.workers()
        told = await call(self._redis, "HMGET", keys.LOADS, *(worker.id for worker in workers)) if workers else []
        return [
            WorkerLoad.model_validate_json(load)
            if load
            else WorkerLoad(num_slots=worker.num_slots * len(worker.models), num_slots_in_use=0)
            for worker, load in zip(workers, told, strict=True)
        ]

    async def workers(self) -> list[WorkerInfo]:
        """Alive now, ordered by id."""
        alive_since = await self._now() - self._worker_ttl_s
        ids = await call(self._redis, "ZRANGEBYSCORE", keys.HEARTBEATS, alive_since, "+inf")
        stored = await call(self._redis, "HMGET", keys.WORKERS, *ids) if ids else []
        workers = [WorkerInfo.model_validate_json(info) for info in stored if info is not None]
        return sorted(workers, key=lambda worker: worker.id)

    async def models(self) -> list[ModelInfo]:
        """Every model version that a worker ever offered, ordered by name and version."""
        stored = await call(self._redis, "HVALS", keys.MODELS)
        models = [ModelInfo.model_validate_json(info) for info in stored]
        return sorted(models, key=lambda model: (model.name, model.version))

    async def last_seen_s(self) -> float | None:
        """Seconds since any worker's heartbeat; None: never."""
        last_seen = await call(self._redis, "GET", keys.LAST_SEEN)
        return None if last_seen is None else max(await self._now() - float(last_seen), 0.0)

    async def _now(self) -> float:
        return float(await self._clock("msf:"))
