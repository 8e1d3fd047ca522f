"""What rides with what, what goes first, and what leaves at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from msf_engine.executor import Executor
from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion
from msf_scheduler.dynamic_batching import RequestLevel
from msf_scheduler.jobs import JobState, Terms
from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue
from msf_scheduler.stage import Stage
from msf_worker.errors import StepTimeout
from msf_worker.model_runner import ModelRunner
from msf_worker.perfetto import Trace
from tests.worker.support import SPEC, Gate, admit, assert_same, made_alone, pixels, running, until, with_plans

LONG = SPEC.model_copy(update={"num_steps": 50, "num_samples": 4})
SHORT = SPEC.model_copy(update={"num_steps": 4})


def events(folder: Path) -> list[dict[str, Any]]:
    [file] = folder.iterdir()
    found: list[dict[str, Any]] = json.loads(f"{file.read_text()}{{}}]")[:-1]
    return found


async def test_steps_mix_and_a_short_job_overtakes_long_ones(
    redis: Redis, version: ModelVersion, plans: ModelPlans, tmp_path: Path
) -> None:
    """As the worker's own time line shows it."""
    trace = Trace(tmp_path / "trace", "worker")
    async with running(redis, version, plans, num_slots=16, trace=trace) as worker:
        long = [await worker.admit(LONG) for _ in range(3)]
        for job_id in long:
            await worker.has_attempted(job_id, 1)
        short = await worker.end_of(await worker.admit(SHORT))
        assert {(await worker.job(job_id)).state for job_id in long} == {JobState.RUNNING}
        ends = [await worker.end_of(job_id) for job_id in long]
    assert all(short.finished_at and end.finished_at and short.finished_at < end.finished_at for end in ends)
    batches = [event["args"] for event in events(tmp_path / "trace")]
    assert any(len({rider["step"] for rider in batch["riders"]}) > 1 for batch in batches)
    assert all(batch["reason"] and batch["bucket"] >= len(batch["riders"]) for batch in batches)


async def test_a_cancelled_job_leaves_at_the_next_step_and_its_mates_stay(
    redis: Redis, version: ModelVersion, plans: ModelPlans
) -> None:
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.BASE, gate), lease_s=600) as worker:
        cancelled = await worker.admit(LONG)
        await until(gate.reached.is_set)
        mate = await worker.admit(SPEC)
        await worker.has_attempted(mate, 1)
        await worker.queue.cancel(cancelled)
        await until(lambda: worker.num_jobs("lost") == 1)  # long before a renewal would tell
        gate.open.set()
        await worker.end_of(mate)
        steps = worker.count("msf_steps_total", stage="base")
        assert steps <= 4 + LONG.num_samples, "at most the step batch that had begun"
        for file, alone in zip(await worker.images(mate), made_alone(plans, SPEC), strict=True):
            assert_same(pixels(file), alone)


async def test_a_deadline_that_passes_on_the_way_ends_the_job(
    redis: Redis, version: ModelVersion, plans: ModelPlans
) -> None:
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.BASE, gate)) as worker:
        late = await worker.admit(SPEC, Terms(timeout_s=0.5))
        fine = await worker.admit(SPEC, Terms(timeout_s=600))
        await until(gate.reached.is_set)

        async def has_passed() -> bool:
            seconds, microseconds = await redis.time()
            deadline_at = (await worker.job(late)).deadline_at
            return deadline_at is not None and seconds + microseconds / 1e6 > deadline_at

        await until(has_passed)
        gate.open.set()
        job = await worker.end_of(late)
        assert (job.state, job.error and job.error.code) == (JobState.EXPIRED, "deadline")
        assert (await worker.end_of(fine)).state is JobState.SUCCEEDED
        await until(worker.is_idle)


async def test_a_suspect_runs_alone_and_then_work_goes_on(
    redis: Redis, version: ModelVersion, plans: ModelPlans, tmp_path: Path
) -> None:
    queue, leases = JobQueue(redis), Leases(redis)
    suspect = await admit(queue, SPEC)
    for _ in range(2):
        await leases.claim("victim", "tiny", "1", 1, idle=True)
        await leases.bury("victim")
    others = [await admit(queue, SPEC) for _ in range(4)]
    async with running(redis, version, plans, trace=Trace(tmp_path / "trace", "worker")) as worker:
        for job_id in (suspect, *others):
            assert (await worker.end_of(job_id)).state is JobState.SUCCEEDED
    company = [{rider["job"] for rider in event["args"]["riders"]} for event in events(tmp_path / "trace")]
    assert {suspect} in company
    assert all(riders == {suspect} for riders in company if suspect in riders)
    assert any(len(riders) > 1 for riders in company)


async def test_a_step_that_hangs_ends_the_worker(redis: Redis, version: ModelVersion, plans: ModelPlans) -> None:
    gate = Gate()
    hanging = with_plans(plans, Stage.BASE, gate)
    async with running(redis, version, hanging, lease_s=0.3, step_timeout_s=0.1) as worker:
        await worker.admit(SPEC)
        with pytest.raises(StepTimeout, match="MSF_STEP_TIMEOUT_S"):
            await worker.ended
        gate.open.set()


async def test_request_level_batching_answers_all_at_the_end(
    redis: Redis, version: ModelVersion, plans: ModelPlans, tmp_path: Path
) -> None:
    queue = JobQueue(redis)
    together = [await admit(queue, spec) for spec in (SHORT, SPEC.model_copy(update={"num_steps": 20}))]
    policy, trace = RequestLevel(size=2, delay_s=0.0), Trace(tmp_path / "trace", "worker")
    async with running(redis, version, plans, policy=policy, trace=trace) as worker:
        after = await worker.admit(SHORT)
        for job_id in (*together, after):
            assert (await worker.end_of(job_id)).state is JobState.SUCCEEDED
    batches = [
        (event["name"], {rider["job"] for rider in event["args"]["riders"]}) for event in events(tmp_path / "trace")
    ]
    assert [riders for name, riders in batches if name.startswith("decode")] == [{*together}, {after}]
    assert all(riders <= {*together} or riders == {after} for _, riders in batches)


async def test_a_tenants_first_rides_soon_among_anothers_hundred(
    redis: Redis, version: ModelVersion, plans: ModelPlans
) -> None:
    """Even when the hundred are in slots already."""
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.BASE, gate), num_slots=120) as worker:
        flood = [await worker.admit(SPEC, Terms(tenant="flood")) for _ in range(100)]
        newcomer = await worker.admit(SPEC, Terms(tenant="newcomer"))
        for job_id in (*flood, newcomer):
            await worker.has_attempted(job_id, 1)
        gate.open.set()
        first = await worker.end_of(newcomer)
        ends = [(await worker.end_of(job_id)).finished_at for job_id in flood]
        assert first.finished_at is not None
        assert sum(end is not None and end > first.finished_at for end in ends) > len(flood) / 2


def test_warming_up_measures_what_every_plan_costs(version: ModelVersion, plans: ModelPlans) -> None:
    runner = ModelRunner(version, Executor(plans, 4))
    runner.warm_up()
    measured = {(cost.stage, cost.guided, cost.bucket) for cost in runner.costs}
    denoising = {
        (stage, guided, bucket)
        for stage in (Stage.BASE, Stage.RESIDUAL)
        for guided in (True, False)
        for bucket in plans.buckets
    }
    assert measured == denoising | {(Stage.DECODE, False, bucket) for bucket in plans.buckets}
    least = runner.info().least
    assert 0 < least.sample_step_s <= least.step_s
    assert least.decode_s > 0
    assert least.bound_s(10, 1) < least.bound_s(100, 1) < least.bound_s(100, 1000)
