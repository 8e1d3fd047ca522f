"""One model version in a worker: its jobs, the slots their samples ride in, and the next step batch."""

from __future__ import annotations

import time

from msf_serve.engine.config import Stage
from msf_serve.engine.executor import Executor, SampleRequest, StepResult
from msf_serve.engine.offline import generate
from msf_serve.engine.repository import ModelVersion
from msf_serve.scheduler import policy
from msf_serve.scheduler.jobs import ModelInfo
from msf_serve.scheduler.policy import Candidate, StepBatch
from msf_serve.scheduler.queue import Claim
from msf_serve.worker.active import ActiveJob


class ModelRunner:
    """Owned by the worker's event loop; only `execute` runs in the device's thread, and nothing else meanwhile."""

    def __init__(self, model: ModelVersion, executor: Executor) -> None:
        self.model = model
        self.executor = executor
        self.jobs: dict[str, ActiveJob] = {}
        self._riders: dict[int, tuple[ActiveJob, int]] = {}  # slot -> job, sample index

    @property
    def key(self) -> tuple[str, str]:
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
        )

    def add(self, claim: Claim) -> None:
        """Take a job in. One that was lost and came back before its slots were freed goes on under its new claim."""
        job = self.jobs.setdefault(claim.job.id, ActiveJob(claim))
        job.claim, job.claimed_at = claim, time.monotonic()

    def drop(self, job_id: str) -> None:
        """Forget a job and free its slots at once; its batch-mates do not notice."""
        job = self.jobs.pop(job_id, None)
        for slot in [slot for slot, (rider, _) in self._riders.items() if rider is job]:
            del self._riders[slot]
            self.executor.leave(slot)

    def fill_slots(self) -> None:
        """Let waiting samples join, oldest claim first, while slots are free."""
        for job in self.jobs.values():
            while job.waiting and self.executor.num_free_slots:
                sample = job.next_sample(self.model.config)
                self._riders[self.executor.join(sample)] = job, sample.index

    def choose(self) -> StepBatch | None:
        """The next step batch, as the batching policy has it."""
        candidates = [
            Candidate(
                slot=number,
                stage=policy.Stage(slot.stage),
                guided=slot.guided,
                joined_at=self._riders[number][0].claimed_at,
                num_steps_left=slot.num_steps_left,
            )
            for number, slot in self.executor.slots.items()
        ]
        return policy.choose(candidates, buckets=self.executor.plans.buckets, now=time.monotonic())

    def execute(self, batch: StepBatch) -> StepResult:
        return self.executor.step(batch.slots)

    def jobs_in(self, batch: StepBatch) -> list[ActiveJob]:
        """The jobs that ride in a step batch, each once."""
        return list({job.id: job for job, _ in (self._riders[slot] for slot in batch.slots)}.values())

    def account(
        self, batch: StepBatch, result: StepResult, started_at: float
    ) -> tuple[list[ActiveJob], list[ActiveJob]]:
        """Book a step batch's time and images. Returns the jobs that it completed and those that it failed."""
        seconds = time.monotonic() - started_at
        for job in self.jobs_in(batch):
            job.stage_s[Stage(batch.stage)] += seconds
        for slot, image in result.images.items():
            job, index = self._riders.pop(slot)
            job.images[index] = image
        failed = list({job.id: job for job, _ in (self._riders.pop(slot) for slot in result.failed)}.values())
        completed = [job for job in self.jobs.values() if job.is_complete]
        for job in completed:
            del self.jobs[job.id]
        for job in failed:
            self.drop(job.id)
        return completed, failed

    def warm_up(self) -> None:
        """Make images the shortest way, in a full bucket and alone: the first run of a plan is slow."""
        scale = self.model.config.sampling.default_guidance_scale
        for count in (self.executor.plans.buckets[-1], 1):
            generate(self.executor, [SampleRequest(0, 0, index, 1, 1, scale) for index in range(count)])
