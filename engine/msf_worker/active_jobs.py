"""Jobs that the device's thread holds, the slots of their samples, and the models that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msf_engine.executor import StepResult
from msf_scheduler.active_set import ActiveSet
from msf_scheduler.active_tables import Numbers
from msf_scheduler.jobs import ModelKey, Terms
from msf_worker.active_job import ActiveJob
from msf_worker.model_runner import ModelRunner

RESERVED_SHARE = 0.25  # of the slots, for the first samples of jobs


class HostedModel(NamedTuple):
    """A model version that is served."""

    runner: ModelRunner
    number: int  # in the active set
    jobs_by_slot: dict[int, ActiveJob]


class EndedJobs(NamedTuple):
    """Jobs that a step batch completed, and those of which a sample is not finite."""

    completed: list[ActiveJob]
    failed: list[ActiveJob]


class ActiveJobs:
    """All that a worker holds. The device's thread owns it; others may read `models`."""

    def __init__(self) -> None:
        self.active = ActiveSet()  # what the policy chooses from
        self.models: dict[ModelKey, HostedModel] = {}  # replaced, never changed
        self._by_id: dict[str, ActiveJob] = {}
        self._by_number: dict[int, ActiveJob] = {}
        self._unjoined: dict[str, ActiveJob] = {}  # jobs with samples that wait for slots

    @property
    def held_s(self) -> float:
        """Return the remaining device seconds of all jobs."""
        return sum(self.active.held_s(model.number) for model in self.models.values())

    def add_model(self, runner: ModelRunner) -> None:
        """Serve one more model version."""
        model = HostedModel(runner, self.active.add_model(runner.key, runner.costs), {})
        self.models = {**self.models, runner.key: model}

    def remove_model(self, key: ModelKey) -> None:
        """Forget a model version; it must hold no job."""
        self.active.remove_model(self.models[key].number)
        self.models = {other: model for other, model in self.models.items() if other != key}

    def get(self, job_id: str) -> ActiveJob | None:
        """Return a job that is held."""
        return self._by_id.get(job_id)

    def holds(self, job: ActiveJob) -> bool:
        """Return whether this claim of a job is held."""
        return self._by_id.get(job.id) is job

    def idle(self) -> list[ActiveJob]:
        """Return the jobs that no step batch has had a sample of."""
        return [job for job in self._by_id.values() if job.started_at is None]

    def of_samples(self, samples: Numbers) -> list[ActiveJob]:
        """Return the jobs of active samples, each once."""
        numbers = self.active.samples.job[samples]
        return [self._by_number[number] for number in dict.fromkeys(numbers.tolist())]

    def late(self, now: float) -> list[ActiveJob]:
        """Return the jobs whose deadline cannot be met any more."""
        return [self._by_number[number] for number in self.active.late_jobs(now)]

    def add(self, job: ActiveJob) -> None:
        """Hold a job, in the place of an earlier claim of it. Raises ValueError when it cannot be run."""
        if (earlier := self._by_id.get(job.id)) is not None:
            self.drop(earlier)
        if (model := self.models.get((job.spec.model, job.spec.version))) is None:
            raise ValueError("the model version is not served any more")
        pattern = model.runner.pattern(job.spec.num_steps, job.spec.guidance_scale)
        job.number = self.active.add_job(model.number, job.work, pattern)
        self._by_id[job.id] = self._by_number[job.number] = self._unjoined[job.id] = job

    def drop(self, job: ActiveJob) -> None:
        """Forget a job and free its slots."""
        model = self.models[job.spec.model, job.spec.version]
        del self._by_id[job.id], self._by_number[job.number]
        self._unjoined.pop(job.id, None)
        self.active.drop_job(job.number)
        for slot in job.slots:
            del model.jobs_by_slot[slot]
            model.runner.executor.leave(slot)
        job.slots.clear()

    def raise_terms(self, job_id: str, terms: Terms) -> None:
        """Serve a job, if it is held, as one with these terms would be."""
        if (job := self._by_id.get(job_id)) is not None:
            job.terms = job.terms.served_as(terms)
            self.active.raise_terms(job.number, terms.priority, terms.tenant, terms.weight)

    def fill_slots(self, now: float) -> None:
        """Let waiting samples join, by priority and then by arrival; some slots are for the first samples of jobs."""
        if not self._unjoined:
            return
        for job in sorted(self._unjoined.values(), key=lambda job: (job.terms.priority.rank, job.arrived_at)):
            model = self.models[job.spec.model, job.spec.version]
            executor = model.runner.executor
            num_free = executor.num_free_slots
            least = 0 if job.slots else min(num_free, 1)
            count = min(len(job.waiting), max(num_free - int(RESERVED_SHARE * executor.capacity), least))
            if count:
                self._join(job, model, [job.waiting.popleft() for _ in range(count)], now)
            if not job.waiting:
                del self._unjoined[job.id]

    def _join(self, job: ActiveJob, model: HostedModel, positions: Sequence[int], now: float) -> None:
        slots = model.runner.executor.join([job.sample_request(p) for p in positions], job.noise.rows(positions))
        for slot, position in zip(slots, positions, strict=True):
            index = job.spec.indices[position]
            model.jobs_by_slot[slot] = job
            job.slots[slot] = index
            self.active.join(job.number, index, slot, now)

    def take_results(self, model: HostedModel, result: StepResult) -> EndedJobs:
        """Give images to their jobs, and drop the jobs that end."""
        ended = EndedJobs([], [])
        for slot, image in result.images.items():
            job = model.jobs_by_slot.pop(slot, None)
            if job is not None:
                job.images[job.slots.pop(slot)] = image
                if job.is_complete:
                    self.drop(job)
                    ended.completed.append(job)
        failed = [(model.jobs_by_slot.pop(slot), slot) for slot in result.failed]
        for job, slot in failed:
            del job.slots[slot]  # the executor has freed it
        for job in dict.fromkeys(job for job, _ in failed):
            self.drop(job)
            ended.failed.append(job)
        return ended
