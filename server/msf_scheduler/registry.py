"""Workers that are alive, and models that a worker ever offered."""

from __future__ import annotations

import asyncio

from msf_scheduler import keys
from msf_scheduler.connection import RedisClient, call
from msf_scheduler.jobs import ModelInfo, WorkerInfo, WorkerLoad
from msf_scheduler.keys import QueueKeys
from msf_scheduler.scripts import Script
from msf_scheduler.tunables import LEASE_S


class Registry:
    """A worker is alive for `worker_ttl_s` after a heartbeat. Every method may raise `QueueUnavailable`."""

    def __init__(self, redis: RedisClient, *, worker_ttl_s: float = LEASE_S) -> None:
        self._redis = redis
        self._worker_ttl_s = worker_ttl_s
        self._registered: dict[str, WorkerInfo] = {}
        self._write_lock = asyncio.Lock()  # an older list of a worker's models must not arrive last
        self._register = Script(redis, "register")
        self._heartbeat = Script(redis, "heartbeat")
        self._clock = Script(redis, "now")

    async def register(self, worker: WorkerInfo) -> None:
        """Announce a worker and its models. Models stay known without workers, so that jobs are still admitted."""
        self._registered[worker.id] = worker
        await self._announce(worker.id)

    async def heartbeat(self, worker_id: str, load: WorkerLoad | None = None) -> None:
        """Keep a worker alive that was registered here; register it again if Redis has lost it."""
        if not await self._beat(worker_id, load):
            await self._announce(worker_id)

    async def _announce(self, worker_id: str) -> None:
        async with self._write_lock:
            worker = self._registered.get(worker_id)
            if worker is None:  # unregistered in the meantime
                return
            await self._register(
                {"workers": keys.WORKERS, "models": keys.MODELS},
                worker=worker.id,
                info=worker.model_dump_json(),
                models=[
                    (QueueKeys.of(model.name, model.version).name, model.model_dump_json()) for model in worker.models
                ],
            )
            await self._beat(worker.id)  # last: the heartbeat makes the worker visible

    async def _beat(self, worker_id: str, load: WorkerLoad | None = None) -> bool:
        is_registered = await self._heartbeat(
            {
                "workers": keys.WORKERS,
                "loads": keys.LOADS,
                "heartbeats": keys.HEARTBEATS,
                "last_seen": keys.LAST_SEEN,
            },
            worker=worker_id,
            load=load and load.model_dump_json(),
            ttl_s=self._worker_ttl_s,
        )
        return bool(is_registered)

    async def unregister(self, worker_id: str) -> None:
        """Remove a worker; its models stay known."""
        self._registered.pop(worker_id, None)
        async with self._write_lock:
            await call(self._redis, "HDEL", keys.WORKERS, worker_id)
            await call(self._redis, "HDEL", keys.LOADS, worker_id)
            await call(self._redis, "ZREM", keys.HEARTBEATS, worker_id)  # last: sweeps follow this index

    async def loads(self) -> list[WorkerLoad]:
        """Return the loads of the workers that are alive; those that have not reported one have only their slots."""
        workers = await self.workers()
        reports = await call(self._redis, "HMGET", keys.LOADS, *(worker.id for worker in workers)) if workers else []
        return [
            WorkerLoad.model_validate_json(report)
            if report
            else WorkerLoad(num_slots=worker.num_slots * len(worker.models), num_slots_in_use=0)
            for worker, report in zip(workers, reports, strict=True)
        ]

    async def workers(self) -> list[WorkerInfo]:
        """Return the workers that are alive, ordered by id."""
        alive_since = await self._now() - self._worker_ttl_s
        ids = await call(self._redis, "ZRANGEBYSCORE", keys.HEARTBEATS, alive_since, "+inf")
        infos = await call(self._redis, "HMGET", keys.WORKERS, *ids) if ids else []
        workers = [WorkerInfo.model_validate_json(info) for info in infos if info is not None]
        return sorted(workers, key=lambda worker: worker.id)

    async def models(self) -> list[ModelInfo]:
        """Return every model version that a worker ever offered, ordered by name and version."""
        infos = await call(self._redis, "HVALS", keys.MODELS)
        models = [ModelInfo.model_validate_json(info) for info in infos]
        return sorted(models, key=lambda model: (model.name, model.version))

    async def last_seen_s(self) -> float | None:
        """Return the seconds since the last heartbeat of any worker, or None if there was none."""
        last_seen = await call(self._redis, "GET", keys.LAST_SEEN)
        return None if last_seen is None else max(await self._now() - float(last_seen), 0.0)

    async def _now(self) -> float:
        now, _ = await self._clock({"clock": keys.CLOCK})
        return float(now)
