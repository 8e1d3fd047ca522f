"""One model version in a worker: its jobs, the slots their samples ride in, and what a step costs there."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msf_engine.executor import Executor, SampleRequest, StepResult
from msf_engine.repository import ModelVersion
from msf_scheduler.jobs import JobSpec, LeastSeconds, ModelInfo, ModelKey, Preview, Progress, Provenance
from msf_scheduler.leases import Claim
from msf_scheduler.stage import Stage
from msf_scheduler.step_batching import ActiveWork, Candidate, StepBatch
from msf_scheduler.step_costs import StepCosts
from msf_worker.active_job import ActiveJob, work_of
from msf_worker.image_encoder import runtime_fingerprint

WARM_UP_ROUNDS = 3
CHEAP = 0.05  # strict is the default where it takes no larger share more


@dataclass(frozen=True)
class Executed:
    """What a step batch led to, the time that it took, and the previews that were made after it."""

    result: StepResult
    seconds: float
    previews: list[tuple[ActiveJob, Preview, NDArray[np.uint8]]]


class ModelRunner:
    """Owned by the worker's event loop; only `execute` runs in the device's thread, and nothing else meanwhile."""

    def __init__(self, model: ModelVersion, executor: Executor) -> None:
        self.model = model
        self.executor = executor
        self.costs = StepCosts(executor.plans.buckets, strict=executor.plans.strict)
        self.fingerprint = runtime_fingerprint(executor.plans.fingerprint)
        self.strict_cost: float | None = None
        self.jobs: dict[str, ActiveJob] = {}
        self._riders: dict[int, tuple[ActiveJob, int]] = {}  # slot -> job, sample index
        self._ridden_at: dict[int, float] = {}  # slot -> when its sample last rode, or joined

    @property
    def key(self) -> ModelKey:
        return self.model.name, self.model.version

    def num_slots_in_use(self) -> int:
        return len(self._riders)

    @property
    def room(self) -> int:
        """Samples that a further claim may bring: free slots that no claimed sample waits for."""
        return max(self.executor.num_free_slots - sum(len(job.waiting) for job in self.jobs.values()), 0)

    def info(self) -> ModelInfo:
        """What the server must know of this model."""
        config = self.model.config
        return ModelInfo(
            name=self.model.name,
            version=self.model.version,
            labels=self.model.labels,
            image_size=config.image.size,
            image_channels=config.image.channels,
            default_num_steps=config.default_num_steps,
            max_num_steps=config.sampling.max_num_steps,
            default_guidance_scale=config.sampling.default_guidance_scale,
            max_guidance_scale=config.sampling.max_guidance_scale,
            description=config.description,
            created=int((self.model.folder / "SHA256SUMS").stat().st_mtime),
            least=self._least(),
            fingerprint=self.fingerprint,
            strict_cost=self.strict_cost,
        )

    def _least(self) -> LeastSeconds:
        steps = [cost for cost in self.costs if cost.stage is not Stage.DECODE]
        decodes = [cost.least_s for cost in self.costs if cost.stage is Stage.DECODE]
        return LeastSeconds(
            step_s=min((cost.least_s for cost in steps), default=0.0),
            sample_step_s=min((cost.least_s / cost.bucket for cost in steps), default=0.0),
            decode_s=min(decodes, default=0.0),
        )

    def steps_per_s(self) -> float:
        """Sample steps, decodes with them, of default requests that full batches would make; 0 before any is timed."""
        config = self.model.config
        work_s = self.costs.work_s(work_of(config, config.default_num_steps, config.sampling.default_guidance_scale))
        return (config.default_num_steps + 1) / work_s if work_s else 0.0

    def add(self, claim: Claim) -> None:
        """Take a job in. One that was lost and came back before its slots were freed goes on under its new claim."""
        job = self.jobs.setdefault(claim.job.id, ActiveJob(claim, self.model.config, self._provenance(claim.job.spec)))
        job.hold_by(claim)

    def _provenance(self, spec: JobSpec) -> Provenance:
        """Strict where the job says so, or says nothing and it costs little here."""
        is_cheap = self.strict_cost is not None and self.strict_cost <= CHEAP
        return Provenance(
            fingerprint=self.fingerprint, reproducibility=spec.reproducibility or ("strict" if is_cheap else "fast")
        )

    def drop(self, job_id: str) -> None:
        """Forget a job and free its slots at once; its batch-mates do not notice."""
        job = self.jobs.pop(job_id, None)
        for slot in [slot for slot, (rider, _) in self._riders.items() if rider is job]:
            self._leave(slot)
            self.executor.leave(slot)

    def _leave(self, slot: int) -> tuple[ActiveJob, int]:
        del self._ridden_at[slot]
        return self._riders.pop(slot)

    def fill_slots(self) -> None:
        """Let waiting samples join, oldest claim first, while slots are free."""
        for job in self.jobs.values():
            while job.waiting and self.executor.num_free_slots:
                sample = job.next_sample()
                slot = self.executor.join(sample)
                self._riders[slot] = job, sample.index
                self._ridden_at[slot] = time.monotonic()

    def candidates(self, shares: Mapping[str, float]) -> list[Candidate]:
        """What the batching policy may choose from; `shares` as of `policy.active_shares`."""
        slots = self.executor.slots
        left_s = {
            job.id: len(job.waiting) * self.costs.work_s(job.work) if job.waiting else 0.0 for job in self.jobs.values()
        }
        for slot, (job, _) in self._riders.items():
            left_s[job.id] += self.costs.work_s(job.work_left(*slots[slot].steps_left))
        jobs = {job.id: self._active_work(job, left_s[job.id], shares) for job in self.jobs.values()}
        return [
            Candidate(
                slot=slot,
                index=index,
                job=jobs[job.id],
                model=self.key,
                stage=slots[slot].stage,
                guided=slots[slot].guided,
                ridden_at=self._ridden_at[slot],
                strict=job.is_strict,
            )
            for slot, (job, index) in self._riders.items()
        ]

    def _active_work(self, job: ActiveJob, left_s: float, shares: Mapping[str, float]) -> ActiveWork:
        record = job.claim.job
        return ActiveWork(
            id=job.id,
            arrived_at=job.arrived_at,
            whole_s=record.spec.num_samples * self.costs.work_s(job.work),
            left_s=left_s,
            priority=record.terms.priority,
            deadline=job.deadline,
            share=shares[record.terms.tenant],
        )

    def late_jobs(self) -> list[ActiveJob]:
        """Jobs whose deadline cannot be met any more, however fast they go."""
        now = time.monotonic()
        close = {job.id: job for job in self.jobs.values() if job.is_late(job.work, self.costs, now)}
        if not close:
            return []
        slots = self.executor.slots
        late = {job.id: job for job in close.values() if job.waiting}
        for slot, (job, _) in self._riders.items():
            left = job.work_left(*slots[slot].steps_left)
            if job.id in close and job.is_late(left, self.costs, now):
                late[job.id] = job
        return list(late.values())

    def execute(self, batch: StepBatch) -> Executed:
        started_at = time.monotonic()
        result = self.executor.step(batch.slots, batch.bucket)
        seconds = time.monotonic() - started_at
        due = {slot: number for slot in batch.slots if (number := self._due_preview(slot)) is not None}
        pixels = self.executor.preview(tuple(due))
        return Executed(result, seconds, [self._shown(slot, due[slot], image) for slot, image in pixels.items()])

    def _due_preview(self, slot: int) -> int | None:
        """Which preview this step has led to: the base as soon as it is made, the others evenly over the residual."""
        state = self.executor.slots.get(slot)
        wanted = self._riders[slot][0].claim.job.terms.num_previews
        if not wanted or state is None or state.stage is not Stage.RESIDUAL:
            return None
        num_steps = state.request.num_residual_steps
        at = {math.ceil(number * num_steps / wanted): number for number in range(wanted)}
        return at.get(state.step)

    def _shown(self, slot: int, number: int, pixels: NDArray[np.uint8]) -> tuple[ActiveJob, Preview, NDArray[np.uint8]]:
        job, index = self._riders[slot]
        return job, Preview(index=index, number=number), pixels

    def progress(self, job: ActiveJob) -> Progress:
        slots = [self.executor.slots[slot] for slot, (rider, _) in self._riders.items() if rider is job]
        per_sample, num_samples = job.claim.job.spec.num_steps + 1, job.claim.job.spec.num_samples
        steps_left = per_sample * len(job.waiting) + sum(sum(slot.steps_left) + 1 for slot in slots)
        stages = {Stage.BASE} if job.waiting else {slot.stage for slot in slots}
        return Progress(
            stage=next((stage for stage in Stage if stage in stages), Stage.DECODE),
            steps_done=per_sample * num_samples - steps_left,
            num_steps=per_sample * num_samples,
            samples_done=len(job.images),
        )

    def jobs_in(self, batch: StepBatch) -> list[ActiveJob]:
        """The jobs that ride in a step batch, each once."""
        return list({job.id: job for job, _ in (self._riders[slot] for slot in batch.slots)}.values())

    def riders(self, batch: StepBatch) -> list[dict[str, str | int]]:
        """Who rides in a step batch and at which step of its stage, for a trace."""
        return [
            {"job": job.id, "sample": index, "step": self.executor.slots[slot].step}
            for slot, (job, index) in ((slot, self._riders[slot]) for slot in batch.slots)
        ]

    def account(
        self, batch: StepBatch, executed: Executed, started_at: float
    ) -> tuple[list[ActiveJob], list[ActiveJob]]:
        """Book a step batch's time and images. Returns the jobs that it completed and those that it failed."""
        now, result = time.monotonic(), executed.result
        self.costs.observe(batch.stage, batch.guided, batch.bucket, executed.seconds)
        touched = self.jobs_in(batch)
        for job in touched:
            job.rode(batch.stage, started_at, now)
        for slot in batch.slots:
            self._ridden_at[slot] = now
        for slot, image in result.images.items():
            job, index = self._leave(slot)
            job.images[index] = image
        failed = list({job.id: job for job, _ in (self._leave(slot) for slot in result.failed)}.values())
        completed = [job for job in touched if job.is_complete]
        for job in completed:
            del self.jobs[job.id]
        for job in failed:
            self.drop(job.id)
        return completed, failed

    def warm_up(self) -> None:
        """Run every plan some times: the first run of a plan is slow, and the policy wants to know what each costs."""
        for _ in self.warming_up():
            pass

    def warming_up(self) -> Iterator[None]:
        """`warm_up` in pieces, between which the device may do other work."""
        default_scale = self.model.config.sampling.default_guidance_scale
        for bucket in self.executor.plans.buckets:
            for scale in (1.0, default_scale):
                for round_number in range(WARM_UP_ROUNDS):
                    self._run_alone(min(bucket, self.executor.num_slots), bucket, scale, observe=round_number > 0)
                    yield
        self.strict_cost = self.costs.strict_cost()

    def _run_alone(self, count: int, bucket: int, guidance_scale: float, *, observe: bool) -> None:
        for index in range(count):
            self.executor.join(SampleRequest(0, 0, index, 1, 1, guidance_scale))
        while self.executor.slots:
            first = next(iter(self.executor.slots.values()))
            stage, guided = first.stage, first.guided
            started_at = time.monotonic()
            self.executor.step(tuple(self.executor.slots), bucket)
            if observe:
                self.costs.observe(stage, guided, bucket, time.monotonic() - started_at)
