"""A simulated worker: jobs, slots, and the real policy that chooses the next step batch."""

from __future__ import annotations

from dataclasses import dataclass

from msf_serve.scheduler.costs import Stage, Work
from msf_serve.scheduler.policy import ActiveWork, BatchingPolicy, Candidate, Hold, StepBatch, active_shares
from msf_serve.simulation.jobs import Hardware, Job

MODEL = ("simulated", "1")


@dataclass(eq=False, slots=True)
class _Sample:
    job: Job
    index: int
    num_base_steps: int
    num_residual_steps: int
    ridden_at: float

    @property
    def stage(self) -> Stage:
        if self.num_base_steps:
            return Stage.BASE
        return Stage.RESIDUAL if self.num_residual_steps else Stage.DECODE

    @property
    def guided(self) -> bool:
        return self.stage is not Stage.DECODE and self.job.request.work.guided

    @property
    def left(self) -> Work:
        return Work(self.num_base_steps, self.num_residual_steps, self.job.request.work.guided)


class Worker:
    """As `worker.runner.ModelRunner`, without tensors; the cluster tells the time and when a step batch has ended."""

    def __init__(self, hardware: Hardware, policy: BatchingPolicy) -> None:
        self.is_stepping = False
        self.is_asking = True  # Redis for work: it claims, or waits for an arrival
        self._hardware = hardware
        self._policy = policy
        self._jobs: dict[str, Job] = {}
        self._slots: dict[int, _Sample] = {}
        self._free = list(range(hardware.num_slots))

    @property
    def room(self) -> int:
        """Samples that a further claim may bring."""
        return max(len(self._free) - sum(job.num_waiting for job in self._jobs.values()), 0)

    def add(self, job: Job) -> None:
        self._jobs[job.id] = job

    def fill_slots(self, now: float) -> None:
        """Oldest claim first."""
        for job in self._jobs.values():
            while job.num_waiting and self._free:
                index = job.request.num_samples - job.num_waiting
                job.num_waiting -= 1
                num_base_steps, num_residual_steps, _ = job.request.work
                self._slots[self._free.pop()] = _Sample(job, index, num_base_steps, num_residual_steps, now)

    def drop_late(self, now: float) -> list[Job]:
        """Forget the jobs of which a sample misses the deadline, however fast it goes from now on."""
        if all(job.deadline is None for job in self._jobs.values()):
            return []
        late = {job.id: job for job in self._jobs.values() if job.num_waiting and job.is_late(now)}
        for sample in self._slots.values():
            deadline = sample.job.deadline
            if deadline is not None and now + self._hardware.costs.least_s(sample.left) > deadline:
                late[sample.job.id] = sample.job
        for slot in [slot for slot, sample in self._slots.items() if sample.job.id in late]:
            self._leave(slot)
        for job_id in late:
            del self._jobs[job_id]
        return list(late.values())

    def choose(self, now: float) -> StepBatch | Hold | None:
        return self._policy.choose(
            self._candidates(),
            costs={MODEL: self._hardware.costs},
            pressure=len(self._slots) / self._hardware.num_slots,
            now=now,
        )

    def _candidates(self) -> list[Candidate]:
        shares = active_shares((job.request.tenant, job.request.weight) for job in self._jobs.values())
        jobs = {
            job.id: ActiveWork(
                job.id,
                job.admitted_at,
                job.whole_s,
                job.left_s,
                job.request.priority,
                job.deadline,
                shares[job.request.tenant],
            )
            for job in self._jobs.values()
        }
        return [
            Candidate(slot, sample.index, jobs[sample.job.id], MODEL, sample.stage, sample.guided, sample.ridden_at)
            for slot, sample in self._slots.items()
        ]

    def advance(self, batch: StepBatch, now: float) -> list[Job]:
        """Book a step batch that has ended. Returns the jobs that it completed."""
        share_s = self._hardware.costs.share_s(batch.stage, batch.guided)
        completed = []
        for slot in batch.slots:
            sample = self._slots[slot]
            job = sample.job
            sample.ridden_at = now
            job.left_s -= share_s
            if batch.stage is Stage.BASE:
                sample.num_base_steps -= 1
            elif batch.stage is Stage.RESIDUAL:
                sample.num_residual_steps -= 1
            else:
                self._leave(slot)
                job.num_left -= 1
                if not job.num_left:
                    del self._jobs[job.id]
                    completed.append(job)
        return completed

    def _leave(self, slot: int) -> None:
        del self._slots[slot]
        self._free.append(slot)
