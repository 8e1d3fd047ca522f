"""Counters match the work that ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from prometheus_client.exposition import choose_encoder
from redis.asyncio import Redis

from msf_engine.model_plans import ModelPlans
from msf_engine.plan import Plan
from msf_engine.repository import ModelVersion
from msf_scheduler.jobs import Priority, Terms
from msf_scheduler.registry import Registry
from msf_scheduler.stage import TWO_STAGES, Stage
from msf_scheduler.step_batching import REASONS
from msf_worker.active_job import pattern_of
from msf_worker.latency_window import LatencyWindow
from tests.polling import eventually
from tests.worker.support import SPEC, RunningWorker, WrappedPlan, running, with_plans
from tests.worker.test_results import MIXED_JOBS


def counting(rows: Counter[Stage], stage: Stage) -> Callable[[Plan], Plan]:
    class CountingPlan(WrappedPlan):
        def start(self, num_rows: int) -> None:
            rows[stage] += num_rows
            super().start(num_rows)

    return CountingPlan


async def test_counters_match_the_work_that_ran(redis: Redis, version: ModelVersion, plans: ModelPlans) -> None:
    rows: Counter[Stage] = Counter()
    counted = plans
    for stage in TWO_STAGES:
        counted = with_plans(counted, stage, counting(rows, stage))
    async with running(redis, version, counted) as worker:
        for job_id in [await worker.admit(spec) for spec in MIXED_JOBS]:
            await worker.end_of(job_id)
        await eventually(lambda: worker.num_jobs("succeeded") == len(MIXED_JOBS))
        num_steps: Counter[Stage] = Counter()
        num_rows: Counter[Stage] = Counter()
        for spec in MIXED_JOBS:
            pattern = pattern_of(plans.config, spec.num_steps, spec.guidance_scale)
            for stage_number, step_rows in zip(pattern.stages, pattern.rows, strict=True):
                num_steps[list(TWO_STAGES)[stage_number]] += spec.num_samples
                num_rows[list(TWO_STAGES)[stage_number]] += spec.num_samples * step_rows
        for stage in TWO_STAGES:
            assert worker.count("msf_steps_total", stage=stage) == num_steps[stage]
            assert worker.count("msf_step_batch_size_sum", stage=stage) == num_steps[stage]
            assert num_rows[stage] + worker.count("msf_padded_rows_total", stage=stage) == rows[stage]
            assert worker.count("msf_step_batch_seconds_count", stage=stage) == num_batches(worker, stage)
        assert worker.count("msf_claims_total") == len(MIXED_JOBS)
        assert worker.count("msf_slots_in_use") == 0
        assert worker.count("msf_slots") == 8
        assert worker.count("msf_steps_available_per_second") > 0
        assert worker.count("msf_model_load_seconds") >= worker.count("msf_plan_build_seconds")
        assert worker.metrics.registry.get_sample_value("msf_work_held_seconds") == pytest.approx(0, abs=1e-6)


async def test_waits_are_told_by_priority_and_weight_with_their_trace(worker: RunningWorker) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    terms = Terms(priority=Priority.HIGH, weight=4.0, traceparent=f"00-{trace_id}-b7ad6b7169203331-01")
    await worker.end_of(await worker.admit(SPEC, terms))
    await worker.end_of(await worker.admit(SPEC))
    await eventually(lambda: worker.num_jobs("succeeded") == 2)
    assert worker.count("msf_queue_seconds_count", priority="high", weight="4") == 1
    assert worker.count("msf_queue_seconds_count", priority="normal", weight="1") == 1
    generate, _ = choose_encoder("application/openmetrics-text; version=1.0.0")
    [traced] = [line for line in generate(worker.metrics.registry).decode().splitlines() if trace_id in line]
    assert traced.startswith("msf_queue_seconds_bucket{")


def num_batches(worker: RunningWorker, stage: Stage) -> float:
    return sum(worker.count("msf_step_batches_total", stage=stage, reason=reason) for reason in REASONS)


def test_the_latency_window_covers_one_minute() -> None:
    now = 0.0
    window = LatencyWindow(clock=lambda: now)
    assert window.quantiles_ms(0.5) == (None,)
    for now in range(100):
        window.add(float(now), num_images=2)
    assert window.images_per_s() == 61 * 2 / 60
    assert window.quantiles_ms(0.5, 0.99) == (69.0, 99.0)


async def test_a_heartbeat_carries_the_load_of_the_worker(worker: RunningWorker, redis: Redis) -> None:
    await worker.end_of(await worker.admit(SPEC.model_copy(update={"num_samples": 2})))

    async def has_load() -> bool:
        (load,) = await Registry(redis).loads()
        return load.images_per_s > 0 and load.p50_ms is not None and load.batch_fill is not None

    await eventually(has_load)
