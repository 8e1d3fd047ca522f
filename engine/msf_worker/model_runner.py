"""One model version in a worker: its jobs, the slots of their samples, and the measured costs of its steps."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from msf_engine.executor import Executor, SampleRequest
from msf_engine.repository import ModelVersion
from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.jobs import JobError, JobSpec, ModelInfo, ModelKey, Progress, Provenance
from msf_scheduler.leases import Claim
from msf_scheduler.legacy_step_batching import ActiveWork, Candidate, StepBatch
from msf_scheduler.legacy_step_costs import StepCosts
from msf_scheduler.stage import Stage
from msf_worker.active_job import ActiveJob, ActiveSample, work_of
from msf_worker.image_encoder import runtime_fingerprint
from msf_worker.model_info import model_info
from msf_worker.step_outcome import BatchMember, Execution, StepOutcome

logger = logging.getLogger(__name__)

WARM_UP_ROUNDS = 3  # the first is not measured
MAX_CHEAP_STRICT_COST = 0.05  # extra share of a step's time up to which strict is the default
ENGINE_FAILED = JobError(code=ErrorCode.ENGINE_ERROR, message="the engine failed")
NON_FINITE = JobError(code=ErrorCode.NON_FINITE, message="the model computed a number that is not finite")


class ModelRunner:
    """Runs one model version's jobs. The worker's event loop owns it; only `execute` runs in the device thread."""

    def __init__(self, model: ModelVersion, executor: Executor) -> None:
        self.model = model
        self.executor = executor
        self.costs = StepCosts(executor.plans.buckets, strict=executor.plans.strict)
        self.fingerprint = runtime_fingerprint(executor.plans.fingerprint)
        self.strict_cost: float | None = None
        self.jobs: dict[str, ActiveJob] = {}
        self._samples: dict[int, ActiveSample] = {}  # by slot

    @property
    def key(self) -> ModelKey:
        """Name and version of the model."""
        return self.model.name, self.model.version

    def num_slots_in_use(self) -> int:
        """Return how many slots hold a sample."""
        return len(self._samples)

    @property
    def room(self) -> int:
        """Number of samples that another claim may bring: free slots that no claimed sample waits for."""
        return max(self.executor.num_free_slots - sum(len(job.waiting) for job in self.jobs.values()), 0)

    def info(self) -> ModelInfo:
        """Describe this model for the servers."""
        return model_info(self.model, self.costs, self.fingerprint, self.strict_cost)

    def steps_per_s(self) -> float:
        """Return the steps per second, decodes included, of full batches of default requests; 0 before warm-up."""
        config = self.model.config
        work_s = self.costs.work_s(work_of(config, config.default_num_steps, config.sampling.default_guidance_scale))
        return (config.default_num_steps + 1) / work_s if work_s else 0.0

    # Jobs and slots

    def add(self, claim: Claim) -> None:
        """Take a job in. One that was lost and comes back before its slots are freed continues under its new claim."""
        job = self.jobs.get(claim.job.id)
        if job is not None:
            job.rebind(claim)
        else:
            self.jobs[claim.job.id] = ActiveJob(claim, self.model.config, self._provenance(claim.job.spec))

    def _provenance(self, spec: JobSpec) -> Provenance:
        """Strict if the job says so, or if it says nothing and strict costs little here."""
        is_cheap = self.strict_cost is not None and self.strict_cost <= MAX_CHEAP_STRICT_COST
        return Provenance(
            fingerprint=self.fingerprint, reproducibility=spec.reproducibility or ("strict" if is_cheap else "fast")
        )

    def drop(self, job_id: str) -> None:
        """Forget a job and free its slots; other jobs in its step batches are not affected."""
        job = self.jobs.pop(job_id, None)
        for slot in [slot for slot, sample in self._samples.items() if sample.job is job]:
            del self._samples[slot]
            self.executor.leave(slot)

    def fill_slots(self) -> None:
        """Let waiting samples join, oldest claim first, while slots are free."""
        for job in self.jobs.values():
            while job.waiting and self.executor.num_free_slots:
                request = job.next_sample()
                slot = self.executor.join(request)
                state = self.executor.slots[slot]
                self._samples[slot] = ActiveSample(job, request.index, state, time.monotonic())

    def late_jobs(self) -> list[ActiveJob]:
        """Return the jobs whose deadline cannot be met even at the fastest measured pace."""
        now = time.monotonic()
        close = {job.id for job in self.jobs.values() if job.is_late(job.work, self.costs, now)}
        late = {job.id: job for job in self.jobs.values() if job.id in close and job.waiting}
        for sample in self._samples.values():
            if sample.job.id in close and sample.job.is_late(sample.work_left, self.costs, now):
                late[sample.job.id] = sample.job
        return list(late.values())

    # Stepping

    def candidates(self, shares: Mapping[str, float]) -> list[Candidate]:
        """Return the samples that the batching policy may choose from; `shares` are those of `active_shares`."""
        remaining_s = {
            job.id: len(job.waiting) * self.costs.work_s(job.work) if job.waiting else 0.0 for job in self.jobs.values()
        }
        for sample in self._samples.values():
            remaining_s[sample.job.id] += self.costs.work_s(sample.work_left)
        jobs = {job.id: self._active_work(job, remaining_s[job.id], shares) for job in self.jobs.values()}
        return [
            Candidate(
                slot=slot,
                index=sample.index,
                job=jobs[sample.job.id],
                model=self.key,
                stage=sample.state.stage,
                guided=sample.state.guided,
                stepped_at=sample.stepped_at,
                strict=sample.job.is_strict,
            )
            for slot, sample in self._samples.items()
        ]

    def _active_work(self, job: ActiveJob, remaining_s: float, shares: Mapping[str, float]) -> ActiveWork:
        return ActiveWork(
            id=job.id,
            arrived_at=job.arrived_at,
            total_s=job.spec.num_samples * self.costs.work_s(job.work),
            remaining_s=remaining_s,
            priority=job.terms.priority,
            deadline=job.deadline,
            share=shares[job.terms.tenant],
        )

    async def step(self, batch: StepBatch, device: ThreadPoolExecutor, watched: Collection[str] = ()) -> StepOutcome:
        """Run a step batch in the device thread and take its results in.

        Progress is returned for jobs in `watched`. If the engine fails, so do all jobs in the batch.
        """
        started_at = time.monotonic()
        samples = [self._samples[slot] for slot in batch.slots]
        members = [BatchMember(sample.job.id, sample.index, sample.state.step) for sample in samples]
        jobs = list({sample.job.id: sample.job for sample in samples}.values())
        for job in jobs:
            job.started_at = job.started_at or started_at
        try:
            execution = await asyncio.get_running_loop().run_in_executor(device, self.execute, batch)
        except Exception:
            logger.exception("a step batch of %s %s failed", *self.key)
            for job in jobs:
                self.drop(job.id)
            return StepOutcome(started_at, failed=[(job, ENGINE_FAILED) for job in jobs], has_freed_slots=True)
        failed = self._account(batch, execution, jobs, started_at)
        return StepOutcome(
            started_at,
            execution.seconds,
            members,
            completed=[job for job in jobs if job.is_complete],
            failed=[(job, NON_FINITE) for job in failed],
            previews=execution.previews,
            progress=[(job, self._progress(job)) for job in jobs if job.id in watched],
            has_freed_slots=bool(execution.result.images or execution.result.failed),
        )

    def execute(self, batch: StepBatch) -> Execution:
        """Run a step batch and decode the previews that are due after it."""
        started_at = time.monotonic()
        result = self.executor.step(batch.slots, batch.bucket)
        seconds = time.monotonic() - started_at
        samples = {slot: self._samples[slot] for slot in batch.slots if slot in self.executor.slots}
        previews = {slot: preview for slot, sample in samples.items() if (preview := sample.due_preview()) is not None}
        pixels = self.executor.preview(tuple(previews))
        return Execution(
            result, seconds, [(samples[slot].job, previews[slot], image) for slot, image in pixels.items()]
        )

    def _account(
        self, batch: StepBatch, execution: Execution, jobs: Sequence[ActiveJob], started_at: float
    ) -> list[ActiveJob]:
        """Account for a step batch and remove the jobs that it completed or failed. Returns the failed ones."""
        now, result = time.monotonic(), execution.result
        self.costs.observe(batch.stage, batch.guided, batch.bucket, execution.seconds)
        for job in jobs:
            job.record_step(batch.stage, started_at, now)
        for slot in batch.slots:
            self._samples[slot].stepped_at = now
        for slot, image in result.images.items():
            sample = self._samples.pop(slot)
            sample.job.images[sample.index] = image
        failed = {job.id: job for job in (self._samples.pop(slot).job for slot in result.failed)}
        for job_id in (*failed, *(job.id for job in jobs if job.is_complete)):
            self.drop(job_id)
        return list(failed.values())

    def _progress(self, job: ActiveJob) -> Progress:
        states = [sample.state for sample in self._samples.values() if sample.job is job]
        steps_per_sample, num_samples = job.spec.num_steps + 1, job.spec.num_samples
        steps_left = steps_per_sample * len(job.waiting) + sum(sum(state.steps_left) + 1 for state in states)
        stages = {Stage.BASE} if job.waiting else {state.stage for state in states}
        return Progress(
            stage=next((stage for stage in Stage if stage in stages), Stage.DECODE),
            steps_done=steps_per_sample * num_samples - steps_left,
            num_steps=steps_per_sample * num_samples,
            samples_done=len(job.images),
        )

    # Warming up

    def warm_up(self) -> None:
        """Run every plan a few times: the first run is slow, and the batching policy needs the cost of each."""
        for _ in self.warm_up_runs():
            pass

    def warm_up_runs(self) -> Iterator[int]:
        """Warm up, and yield the bucket after each run, so that the device can do other work in between."""
        for bucket in self.executor.plans.buckets:
            for guidance_scale in (1.0, self.model.config.sampling.default_guidance_scale):
                for number in range(WARM_UP_ROUNDS):
                    self._run_samples(bucket, guidance_scale, observe=number > 0)
                    yield bucket
        self.strict_cost = self.costs.strict_cost()

    def _run_samples(self, bucket: int, guidance_scale: float, *, observe: bool) -> None:
        for index in range(min(bucket, self.executor.num_slots)):
            self.executor.join(SampleRequest(0, 0, index, 1, 1, guidance_scale))
        while self.executor.slots:
            first = next(iter(self.executor.slots.values()))
            stage, guided = first.stage, first.guided
            started_at = time.monotonic()
            self.executor.step(tuple(self.executor.slots), bucket)
            if observe:
                self.costs.observe(stage, guided, bucket, time.monotonic() - started_at)
