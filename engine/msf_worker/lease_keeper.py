"""Leases of one worker: heartbeats, renewals, notices of cancelled jobs, and a watchdog for steps that hang."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from msf_scheduler.claims import Claim
from msf_scheduler.connection import RedisClient
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import JobRecord, ModelKey, Priority, Terms
from msf_scheduler.leases import Leases
from msf_scheduler.notices import notices
from msf_worker.device_loop import DeviceLoop
from msf_worker.errors import StepTimeout
from msf_worker.metrics import WorkerMetrics
from msf_worker.served_models import ServedModels
from msf_worker.settings import WorkerSettings
from msf_worker.waiting import RETRY_S

logger = logging.getLogger(__name__)

HEARTBEATS_PER_LEASE = 3


@dataclass
class LeaseKeeper:
    """Claims whose leases this worker holds, by job id, and the two loops that keep them.

    A job may come back under a new claim, so claims are compared by identity.
    """

    settings: WorkerSettings
    models: ServedModels
    leases: Leases
    redis: RedisClient
    metrics: WorkerMetrics
    device: DeviceLoop
    claims: dict[str, Claim] = field(default_factory=dict)
    overtaking_terms: dict[str, Terms] = field(default_factory=dict)  # of jobs whose claim may still be on its way
    is_short_of_room: bool = False  # the last claim left work for which too many samples were held
    work_wanted: asyncio.Event = field(default_factory=asyncio.Event)  # wakes the claiming loop
    nothing_held: asyncio.Event = field(default_factory=asyncio.Event)

    def hold(self, claims: Sequence[Claim]) -> list[Claim]:
        """Add the new claims of one call, and return them under the terms that they have by now."""
        current = [self._under_latest_terms(claim) for claim in claims]
        for claim in current:
            self.claims[claim.job.id] = claim
            if claim.job.is_watched:
                self._watch({claim.job.id})
            self.nothing_held.clear()
        return current

    def _under_latest_terms(self, claim: Claim) -> Claim:
        terms = self.overtaking_terms.get(claim.job.id)
        if terms is None:
            return claim
        return replace(claim, job=claim.job.model_copy(update={"terms": claim.job.terms.served_as(terms)}))

    def held_terms(self, model: ModelKey) -> set[tuple[Priority, str]]:
        """Return the priority and tenant of every job of a model that is held."""
        return {(job.terms.priority, job.terms.tenant) for job in self._jobs(model)}

    def num_samples(self, model: ModelKey) -> int:
        """Return the samples of the jobs of a model that are held."""
        return sum(job.spec.num_samples for job in self._jobs(model))

    def let_go(self, claim: Claim) -> bool:
        """Forget a claim. Returns False if it is not held, even if its job is held under another claim."""
        if self.claims.get(claim.job.id) is not claim:
            return False
        del self.claims[claim.job.id]
        if claim.job.id in self.device.watched:
            self.device.watched = self.device.watched - {claim.job.id}
        if not self.claims:
            self.nothing_held.set()
        if not self.claims or self.is_short_of_room:
            self.work_wanted.set()
        return True

    async def release(self, *claims: Claim) -> None:
        """Hand jobs back to the queue; if Redis is unavailable their leases expire instead."""
        for claim in claims:
            self.device.drop(claim.job.id)
            self.let_go(claim)
            try:
                await self.leases.release(claim)
            except QueueUnavailable as error:
                logger.warning("cannot hand back job %s, its lease will expire: %s", claim.job.id, error)

    async def renew_forever(self) -> None:
        """Renew all leases on a timer, and sweep those of dead workers. Raises StepTimeout if a step hangs."""
        while True:
            await asyncio.sleep(self.settings.lease_s / HEARTBEATS_PER_LEASE)
            self._check_step()
            self.models.measure_capacity()
            try:
                await self._renew()
            except QueueUnavailable as error:
                logger.warning("cannot renew leases: %s", error)

    async def heed_notices(self) -> None:
        """Lose jobs as soon as they are cancelled, and note which are watched."""
        while True:
            try:
                async for notice in notices(self.redis, self.models.info.id):
                    self._watch(notice.watched)  # the claim may still be on its way
                    for claim in [self.claims[job_id] for job_id in notice.cancelled if job_id in self.claims]:
                        self._lose(claim)
                    for job_id, terms in notice.raised.items():
                        if job_id in self.claims:
                            self.device.raise_terms(job_id, terms)
                        else:
                            self.overtaking_terms[job_id] = terms
            except QueueUnavailable as error:
                logger.warning("cannot read which jobs are cancelled and watched: %s", error)
                await asyncio.sleep(RETRY_S)

    def _watch(self, job_ids: Iterable[str]) -> None:
        """Publish the progress of these jobs; the device's thread reads the set, so it is replaced."""
        self.device.watched = self.device.watched | set(job_ids)

    def _jobs(self, model: ModelKey) -> Iterator[JobRecord]:
        jobs = (claim.job for claim in self.claims.values())
        return (job for job in jobs if (job.spec.model, job.spec.version) == model)

    def _check_step(self) -> None:
        """Raise StepTimeout if a step hangs: only the end of the process ends it, and lets others take its jobs."""
        timeout_s, started_at = self.settings.step_timeout_s, self.device.busy_since
        if started_at is not None and time.monotonic() - started_at > timeout_s:
            raise StepTimeout(f"a step batch did not end within MSF_STEP_TIMEOUT_S={timeout_s:g}")

    async def _renew(self) -> None:
        claims = list(self.claims.values())
        await self.models.heartbeat()
        lost = await self.leases.renew(self.models.info.id, claims)
        swept = await self.leases.sweep()
        for claim in claims:
            if claim.job.id in lost:
                self._lose(claim)
        self.device.watched = self.device.watched & self.claims.keys()
        self.metrics.observe_sweep(swept)
        if swept.num_requeued or swept.num_poisoned:
            logger.warning("requeued %d jobs of dead workers, failed %d", swept.num_requeued, swept.num_poisoned)

    def _lose(self, claim: Claim) -> None:
        if self.let_go(claim):
            self.device.drop(claim.job.id)
            self.metrics.jobs.labels(claim.job.spec.model, claim.job.spec.version, "lost").inc()
