"""Jobs and samples that a worker holds, as arrays: what the batching policy chooses from.

All that changes the arrays is in this file, long as it is, since they must agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from msf_scheduler.active_tables import NO_DEADLINE_S, JobTable, Numbers, SampleTable
from msf_scheduler.array_table import Floats, Int32s
from msf_scheduler.jobs import ModelKey, Priority
from msf_scheduler.pattern_table import END, PatternTable
from msf_scheduler.stage import MAX_STAGES, Stage
from msf_scheduler.step_costs import MOMENT_S, StepCosts, StepPattern
from msf_scheduler.tenant_shares import ActiveWork, TenantShares, Terms

ALARM_AFTER = 0.05  # of the time allowed, less the job's own length: until then its deadline does not matter


class JobProgress(NamedTuple):
    """Steps done of all steps of a job's samples, launched ones included, and the stage of the least advanced."""

    stage: Stage
    steps_done: int
    num_steps: int


class ActiveModel(NamedTuple):
    """A model version whose samples can be active."""

    key: ModelKey
    costs: StepCosts


@dataclass
class _Job:
    work: ActiveWork
    model: int
    start: int
    num_steps: int  # of one sample
    num_waiting: int  # samples that have not joined
    num_active: int = 0


class ActiveSet:
    """All that a worker holds. One thread owns it.

    Models, jobs and samples are numbers, taken again after removal. A sample is active from `join` until its last step,
    the decode, is launched.
    """

    def __init__(self, num_stages: int = MAX_STAGES) -> None:
        """`num_stages`: the most that a model has."""
        self.num_stages = num_stages
        self.models: list[ActiveModel | None] = []
        self.largest_bucket = 1  # of all models
        self.samples = SampleTable()
        self.jobs = JobTable(num_stages)
        self.patterns = PatternTable(num_stages)
        self.num_active = 0  # samples
        self.next_alarm_at = np.inf  # until then no deadline matters
        self.group_sizes: list[int] = []  # active samples by group
        self.group_rows: list[int] = []  # of their next steps, by group
        self._jobs: dict[int, _Job] = {}
        self._tenants = TenantShares(self.jobs)
        self._versions: list[int] = []  # of each model's costs, when they were last read
        self._shares_s: Floats = np.zeros((num_stages, 0))  # (stage, model)
        self._shortest_s: Floats = np.zeros((num_stages, 0))  # (stage, model)

    # Models

    def add_model(self, key: ModelKey, costs: StepCosts) -> int:
        """Return the number of a new model."""
        if None in self.models:
            number = self.models.index(None)
        else:
            number = len(self.models)
            self.models.append(None)
            self._versions.append(-1)
            self.group_sizes += [0] * self.num_stages
            self.group_rows += [0] * self.num_stages
            column = np.zeros((self.num_stages, 1))
            self._shares_s = np.append(self._shares_s, column, axis=1)
            self._shortest_s = np.append(self._shortest_s, column, axis=1)
        self._set_model(number, ActiveModel(key, costs))
        return number

    def remove_model(self, number: int) -> None:
        """Forget a model without jobs."""
        if any(job.model == number for job in self._jobs.values()):
            raise ValueError(f"Model {number} has jobs. Allowed: a model without.")
        self._set_model(number, None)

    def _set_model(self, number: int, model: ActiveModel | None) -> None:
        self.models[number], self._versions[number] = model, -1
        self.largest_bucket = max((model.costs.largest_bucket for model in self.models if model), default=1)

    def key_of(self, group: int) -> ModelKey:
        """Return the model of a group."""
        return self.model(group // self.num_stages).key

    def costs_of(self, group: int) -> tuple[StepCosts, Stage]:
        """Return the costs of a group's model, and the group's stage."""
        costs = self.model(group // self.num_stages).costs
        return costs, costs.stages[group % self.num_stages]

    def model(self, number: int) -> ActiveModel:
        """Return a model's key and costs."""
        model = self.models[number]
        assert model is not None
        return model

    # Jobs

    def add_job(self, model: int, work: ActiveWork, pattern: StepPattern) -> int:
        """Return the number of a new job. Its samples join later."""
        self._check_buckets(self.model(model).costs, work, pattern)
        start = self.patterns.start_of(pattern)
        number, jobs = self.jobs.allocate(), self.jobs
        self._jobs[number] = _Job(work, model, start, len(pattern.stages), work.num_samples)
        jobs.model[number] = model
        jobs.start[number] = start
        jobs.arrived_at[number] = work.arrived_at
        jobs.allowed_s[number] = NO_DEADLINE_S if work.deadline is None else work.deadline - work.arrived_at
        jobs.deadline[number] = work.arrived_at + NO_DEADLINE_S if work.deadline is None else work.deadline
        jobs.is_strict[number] = work.is_strict
        jobs.rows[:, :, number] = work.num_samples * self.patterns.rows_left[:, start]
        if work.deadline is not None:
            _, total_s = self.seconds_of(number)
            jobs.alarm_at[number] = work.arrived_at + ALARM_AFTER * jobs.allowed_s[number] - total_s
            self.next_alarm_at = min(self.next_alarm_at, float(jobs.alarm_at[number]))
        self._tenants.enter(number, work)
        return number

    def raise_terms(self, job: int, priority: Priority, tenant: str, weight: float) -> None:
        """Replace what a job's importance comes from."""
        entry = self._jobs[job]
        self._tenants.leave(job, entry.work)
        entry.work = replace(entry.work, priority=priority, tenant=tenant, weight=weight)
        self._tenants.enter(job, entry.work)

    def drop_job(self, job: int) -> None:
        """Forget a job and its samples."""
        for sample in self.samples_of(job).tolist():
            self._remove(sample)
        work = self._jobs.pop(job).work
        self.jobs.release(job)
        self.next_alarm_at = float(self.jobs.alarm_at[: self.jobs.end].min(initial=np.inf))
        self._tenants.leave(job, work)

    def work(self, job: int) -> ActiveWork:
        """Return a job's terms."""
        return self._jobs[job].work

    def samples_of(self, job: int) -> Numbers:
        """Return a job's active samples."""
        return np.flatnonzero(self.samples.job[: self.samples.end] == job)

    def _check_buckets(self, costs: StepCosts, work: ActiveWork, pattern: StepPattern) -> None:
        for stage, rows in set(zip(pattern.stages, pattern.rows, strict=True)):
            buckets = costs.buckets_of(costs.stages[stage], strict=work.is_strict)
            if not buckets or rows > buckets[-1]:
                kind = "strict " if work.is_strict else ""
                raise ValueError(f"A {kind}{costs.stages[stage]} step takes {rows} rows. Buckets: {buckets}.")

    # Samples

    def join(self, job: int, index: int, slot: int, now: float) -> int:
        """Return the number of a sample that can be stepped from now on."""
        entry, samples = self._jobs[job], self.samples
        group = entry.model * self.num_stages + int(self.patterns.stage[entry.start])
        number = samples.allocate()
        samples.job[number] = job
        samples.index[number] = index
        samples.slot[number] = slot
        samples.position[number] = entry.start
        samples.group[number] = group
        samples.rows[number] = self.patterns.rows[entry.start]
        if not entry.num_active:
            self.jobs.stepped_at[job] = now
        entry.num_waiting -= 1
        entry.num_active += 1
        self.num_active += 1
        self.group_sizes[group] += 1
        self.group_rows[group] += int(samples.rows[number])
        return number

    def advance(self, samples: Numbers, now: float) -> None:
        """Count one step of samples of one group, as their step batch is launched. After its last step a sample leaves.

        Choosing needs step counts, not results.
        """
        if len(samples) == 1:
            self._advance_one(int(samples[0]), now)
            return
        table, jobs = self.samples, self.samples.job[samples]
        group = int(table.group[samples[0]])
        np.subtract.at(self.jobs.rows[0, group % self.num_stages], jobs, table.rows[samples])
        self.jobs.stepped_at[jobs] = now
        positions = table.position[samples] + 1
        table.position[samples] = positions
        if 1 in self.patterns.is_change[positions].tobytes():
            self._change_stages(samples, positions, group)

    def _advance_one(self, sample: int, now: float) -> None:
        table, jobs = self.samples, self.jobs
        job, group = int(table.job[sample]), int(table.group[sample])
        jobs.rows[0, group % self.num_stages, job] -= table.rows[sample]
        jobs.stepped_at[job] = now
        table.position[sample] = position = int(table.position[sample]) + 1
        if self.patterns.is_change[position]:
            self._change_stages(np.array([sample]), np.array([position]), group)

    def _change_stages(self, samples: Numbers, positions: Numbers, group: int) -> None:
        first_group = group - group % self.num_stages
        stages, rows = self.patterns.stage[positions].tolist(), self.patterns.rows[positions].tolist()
        for sample, stage, num_rows in zip(samples.tolist(), stages, rows, strict=True):
            if stage == END:
                self._remove(sample)
                continue
            new_group = first_group + stage
            self.group_sizes[group] -= 1
            self.group_sizes[new_group] += 1
            self.group_rows[group] -= int(self.samples.rows[sample])
            self.group_rows[new_group] += int(num_rows)
            self.samples.group[sample] = new_group
            self.samples.rows[sample] = num_rows

    def leave(self, samples: Sequence[int] | Numbers) -> None:
        """Remove samples that take no further step."""
        for sample in map(int, samples):
            job, position = int(self.samples.job[sample]), int(self.samples.position[sample])
            self.jobs.rows[0, :, job] -= self.patterns.rows_left[:, position]
            self._remove(sample)

    def _remove(self, sample: int) -> None:
        job = int(self.samples.job[sample])
        group = self.samples.group[sample]
        self.group_sizes[group] -= 1
        self.group_rows[group] -= int(self.samples.rows[sample])
        self.num_active -= 1
        self.samples.release(sample)
        entry = self._jobs[job]
        entry.num_active -= 1
        if not entry.num_active:
            self.jobs.stepped_at[job] = np.inf

    # Queries

    def seconds(self) -> Floats:
        """Return the device seconds of each job in efficient buckets: those left and, in a second row, those in all."""
        self._read_costs()
        return self._weigh(self._shares_s, self.jobs.rows[:, :, : self.jobs.end])

    def seconds_of(self, job: int) -> tuple[float, float]:
        """Return the device seconds of one job in efficient buckets: those left, and those in all."""
        self._read_costs()
        left_s, total_s = self.jobs.rows[:, :, job].dot(self._shares_s[:, self._jobs[job].model]).tolist()
        return left_s, total_s

    def held_s(self, model: int) -> float:
        """Return the remaining device seconds of a model's jobs."""
        return float(self.seconds()[0, self.jobs.model[: self.jobs.end] == model].sum())

    def held_terms(self) -> set[Terms]:
        """Return the priority and tenant of every job."""
        return self._tenants.terms

    def late_jobs(self, now: float) -> list[int]:
        """Return the jobs whose deadline cannot be met even if each step takes the least time ever measured."""
        if now < self.next_alarm_at:
            return []
        self._read_costs()
        num_jobs = self.jobs.end
        least_s = self._weigh(self._shortest_s, self.patterns.steps_left[:, self.jobs.start[:num_jobs]])
        close = np.flatnonzero(now + least_s > self.jobs.deadline[:num_jobs]).tolist()
        return [job for job in close if self._is_late(job, now)]

    def progress(self, job: int) -> JobProgress:
        """Return how far a job is."""
        entry = self._jobs[job]
        positions = self.samples.position[self.samples_of(job)]
        num_steps = entry.work.num_samples * entry.num_steps
        steps_left = entry.num_waiting * entry.num_steps + int(self.patterns.steps_left[:, positions].sum())
        stages = self.model(entry.model).costs.stages
        if entry.num_waiting:
            stage = stages[self.patterns.stage[entry.start]]
        else:
            stage = stages[self.patterns.stage[positions].min()] if len(positions) else stages[-1]
        return JobProgress(stage, num_steps - steps_left, num_steps)

    def _is_late(self, job: int, now: float) -> bool:
        entry = self._jobs[job]
        if entry.work.deadline is None or entry.num_waiting:
            return entry.work.deadline is not None
        positions = self.samples.position[self.samples_of(job)]
        least_s = self._shortest_s[:, entry.model] @ self.patterns.steps_left[:, positions]
        return bool(len(positions)) and now + float(least_s.max()) > entry.work.deadline

    def _weigh(self, seconds: Floats, counts: Floats | Int32s) -> Floats:
        """Return the sums over stages of counts (…, stage, job) times the seconds of the job's model."""
        if len(self.models) == 1:
            totals: Floats = seconds[:, 0].dot(counts)
        else:
            totals = (seconds[:, self.jobs.model[: self.jobs.end]] * counts).sum(-2)
        return totals

    def _read_costs(self) -> None:
        """Copy the seconds of models whose costs have changed."""
        for number, model in enumerate(self.models):
            if model is not None and model.costs.version != self._versions[number]:
                costs = model.costs
                self._versions[number] = costs.version
                num_stages = len(costs.stages)
                self._shares_s[:num_stages, number] = [max(costs.share_s(stage), MOMENT_S) for stage in costs.stages]
                self._shortest_s[:num_stages, number] = [costs.shortest_s(stage) for stage in costs.stages]
