"""Active sets for the tests of batching policies."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from msf_scheduler.active_set import ActiveSet
from msf_scheduler.jobs import Priority
from msf_scheduler.stage import TWO_STAGES, Stage
from msf_scheduler.step_batching import StepBatch
from msf_scheduler.step_costs import StepCosts, StepPattern
from msf_scheduler.tenant_shares import ActiveWork

BUCKETS = (1, 2, 4)
MODELS = (("shapes", "1"), ("letters", "1"))
times = st.floats(0, 10)


@dataclass(frozen=True)
class Entry:
    """A job to put into an active set. Its samples are this many steps ahead."""

    work: ActiveWork
    model: int = 0
    rows_by_stage: tuple[tuple[int, ...], ...] = ((1,) * 8, (1,) * 2, (1,))
    steps_done: tuple[int, ...] = (0,)  # of each sample
    stepped_at: float = 0.0

    @property
    def pattern(self) -> StepPattern:
        return StepPattern.of(*self.rows_by_stage)


def job(job_id: str = "a", num_base_steps: int = 8, rows: int = 1, **terms: object) -> Entry:
    """Return an entry with one sample."""
    work = replace(ActiveWork(job_id, 0.0), **terms)  # type: ignore[arg-type]
    return Entry(work, rows_by_stage=((rows,) * num_base_steps, (rows,) * 2, (1,)))


_steps = st.lists(st.integers(1, 2), min_size=1, max_size=6).map(tuple)
entries = st.lists(
    st.builds(
        Entry,
        work=st.builds(
            ActiveWork,
            id=st.uuids().map(str),
            arrived_at=times,
            priority=st.sampled_from(Priority),
            tenant=st.sampled_from("ab"),
            weight=st.floats(0.01, 4),
            deadline=st.none() | st.floats(10, 30),
        ),
        model=st.integers(0, 1),
        rows_by_stage=st.tuples(_steps, _steps, st.just((1,))),
        steps_done=st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple),
        stepped_at=times,
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda entry: entry.work.id,
)


def costs(seed: int = 0, strict: Mapping[Stage, Sequence[int]] | None = None) -> StepCosts:
    """Return random costs that grow sublinearly with the bucket."""
    rng = random.Random(seed)
    measured = StepCosts(BUCKETS, strict=strict)
    for stage in TWO_STAGES:
        alone_s, growth = rng.uniform(0.001, 0.01), rng.uniform(0.3, 1)
        for bucket in BUCKETS:
            measured.observe(stage, bucket, alone_s * bucket**growth)
    return measured


def uniform_costs(buckets: Sequence[int] = BUCKETS) -> StepCosts:
    """Return costs of 10 ms whatever the bucket."""
    measured = StepCosts(buckets)
    for stage in TWO_STAGES:
        for bucket in buckets:
            measured.observe(stage, bucket, 0.01)
    return measured


def active_set(jobs: Sequence[Entry], model_costs: StepCosts | None = None) -> ActiveSet:
    """Return a set in which all samples of the jobs have joined; a sample's slot is its number."""
    active = ActiveSet()
    for model in MODELS:
        active.add_model(model, model_costs or costs())
    for entry in jobs:
        add(active, entry)
    return active


def add(active: ActiveSet, entry: Entry) -> int:
    """Add a job and let its samples join."""
    number = active.add_job(entry.model, replace(entry.work, num_samples=len(entry.steps_done)), entry.pattern)
    for index, steps_done in enumerate(entry.steps_done):
        sample = active.join(number, index, active.num_active, entry.stepped_at)
        for _ in range(steps_done):
            active.advance(np.array([sample]), entry.stepped_at)
    return number


def jobs_of(active: ActiveSet, batch: StepBatch) -> list[str]:
    """Return the job of each member of a batch, in the order of the members."""
    return [active.work(job).id for job in active.samples.job[batch.samples].tolist()]
