"""Host time of choosing and launching one step batch, without an engine.

    python -m bench.service.choosing

prints microseconds of this thread for `choose` and `advance` together, by number of active samples: equal jobs at one
stage, and a mix of lengths, stages, tenants and guidance. Each figure is the least of many short runs.
"""

from __future__ import annotations

import random
import time
from timeit import repeat

import numpy as np
from tabulate import tabulate

from msf_scheduler.active_set import ActiveSet
from msf_scheduler.step_batching import StepLevelPolicy
from msf_scheduler.step_costs import StepCosts, StepPattern
from msf_scheduler.tenant_shares import ActiveWork

NUM_SAMPLES = (1, 16, 64, 256)
NUM_RUNS, STEPS_PER_RUN = 300, 10
NUM_STEPS = NUM_RUNS * STEPS_PER_RUN + 1  # no sample ends while it is measured
TIMEOUT_S = 1e6  # far off, as it is for most jobs
NOW = 0.5


def measured_costs() -> StepCosts:
    """Return costs in the proportions of the shipped model on two cores."""
    costs = StepCosts((1, 2, 4, 8, 16, 32))
    for stage in costs.stages:
        for bucket in costs.buckets[stage]:
            costs.observe(stage, bucket, 0.00047 + 0.00045 * bucket)
    return costs


def equal_jobs(num_samples: int) -> ActiveSet:
    active = ActiveSet()
    model = active.add_model(("bench", "1"), measured_costs())
    pattern = StepPattern.of([2] * NUM_STEPS, [2], [1])
    for number in range(num_samples):
        job = active.add_job(model, ActiveWork(str(number), 0.0, deadline=TIMEOUT_S), pattern)
        active.join(job, 0, number, NOW)
    return active


def mixed_jobs(num_samples: int) -> ActiveSet:
    rng = random.Random(0)
    active = ActiveSet()
    model = active.add_model(("bench", "1"), measured_costs())
    for number in range(num_samples):
        rows, length, tenant = rng.choice((1, 2)), rng.choice((1, 5, 25)), rng.choice("abc")
        pattern = StepPattern.of([rows] * 2, [rows] * NUM_STEPS * length, [1])
        work = ActiveWork(str(number), -rng.random(), tenant=tenant, deadline=TIMEOUT_S)
        sample = active.join(active.add_job(model, work, pattern), 0, number, NOW)
        if number % 3 == 0:
            for _ in range(2):
                active.advance(np.array([sample]), NOW)
    return active


def microseconds(active: ActiveSet) -> float:
    policy = StepLevelPolicy()

    def step() -> None:
        batch = policy.choose(active, NOW)
        assert batch is not None
        active.advance(batch.samples, NOW)

    return 1e6 * min(repeat(step, number=STEPS_PER_RUN, repeat=NUM_RUNS, timer=time.thread_time)) / STEPS_PER_RUN


def main() -> None:
    rows = [
        (num_samples, microseconds(equal_jobs(num_samples)), microseconds(mixed_jobs(num_samples)))
        for num_samples in NUM_SAMPLES
    ]
    print(tabulate(rows, ("active samples", "equal jobs, µs", "mixed jobs, µs"), tablefmt="github", floatfmt=".0f"))


if __name__ == "__main__":
    main()
