"""Step batching in a worker: which samples share a batch, which go first, and which leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from msf_engine.executor import Executor
from msf_engine.model_plans import ModelPlans
from msf_engine.plan import Plan
from msf_engine.repository import ModelVersion
from msf_scheduler.jobs import JobState, Terms
from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue
from msf_scheduler.stage import TWO_STAGES, Stage
from msf_worker.errors import StepTimeout
from msf_worker.model_runner import ModelRunner
from tests.polling import eventually
from tests.worker.support import (
    SPEC,
    TIMEOUT_S,
    Gate,
    WrappedPlan,
    admit,
    assert_same,
    generated_alone,
    pixels,
    running,
    trace_events,
    with_plans,
)

LONG = SPEC.model_copy(update={"num_steps": 50, "num_samples": 4})
SHORT = SPEC.model_copy(update={"num_steps": 4})


def batches_of(folder: Path) -> list[set[str]]:
    """Return the ids of the jobs in each step batch of a trace."""
    return [set(event["args"]["jobs"]) for event in trace_events(folder)]


async def test_steps_mix_and_a_short_job_overtakes_long_ones(
    redis: Redis, version: ModelVersion, plans: ModelPlans, tmp_path: Path
) -> None:
    async with running(redis, version, plans, slots=16, trace_dir=tmp_path) as worker:
        long = [await worker.admit(LONG) for _ in range(3)]
        for job_id in long:
            await worker.has_attempted(job_id, 1)
        short = await worker.end_of(await worker.admit(SHORT))
        assert {(await worker.job(job_id)).state for job_id in long} == {JobState.RUNNING}
        ends = [await worker.end_of(job_id) for job_id in long]
    assert all(short.finished_at and end.finished_at and short.finished_at < end.finished_at for end in ends)
    batches = [event["args"] for event in trace_events(tmp_path)]
    assert any({short.id} < set(batch["jobs"]) for batch in batches)
    assert all(batch["reason"] and batch["bucket"] >= batch["rows"] >= len(batch["jobs"]) for batch in batches)


async def test_a_cancelled_job_leaves_at_the_next_step_and_the_others_stay(
    redis: Redis, version: ModelVersion, plans: ModelPlans
) -> None:
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.BASE, gate), lease_s=600) as worker:
        cancelled = await worker.admit(LONG)
        await eventually(gate.reached.is_set)
        batch_mate = await worker.admit(SPEC)
        await worker.has_attempted(batch_mate, 1)
        await worker.queue.cancel(cancelled)
        await eventually(lambda: worker.num_jobs("lost") == 1)  # long before the next renewal
        gate.open.set()
        await worker.end_of(batch_mate)
        steps = worker.count("msf_steps_total", stage="base")
        assert steps <= 4 + LONG.num_samples, "only the step batch that was running"
        for file, alone in zip(await worker.images(batch_mate), generated_alone(plans, SPEC), strict=True):
            assert_same(pixels(file), alone)


async def test_a_running_job_expires_at_its_deadline(redis: Redis, version: ModelVersion, plans: ModelPlans) -> None:
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.BASE, gate)) as worker:
        late = await worker.admit(SPEC, Terms(timeout_s=0.5))
        on_time = await worker.admit(SPEC, Terms(timeout_s=600))
        await eventually(gate.reached.is_set)

        async def has_passed() -> bool:
            seconds, microseconds = await redis.time()
            deadline_at = (await worker.job(late)).deadline_at
            return deadline_at is not None and seconds + microseconds / 1e6 > deadline_at

        await eventually(has_passed)
        gate.open.set()
        job = await worker.end_of(late)
        assert (job.state, job.error and job.error.code) == (JobState.EXPIRED, "deadline")
        assert (await worker.end_of(on_time)).state is JobState.SUCCEEDED
        await eventually(worker.is_idle)


async def test_a_suspect_runs_alone_and_then_the_others_run(
    redis: Redis, version: ModelVersion, plans: ModelPlans, tmp_path: Path
) -> None:
    queue, leases = JobQueue(redis), Leases(redis)
    suspect = await admit(queue, SPEC)
    for _ in range(2):
        await leases.claim("victim", "tiny", "1", budget_steps=1, held=(), max_samples=1, idle=True)
        await leases.reclaim("victim")
    others = [await admit(queue, SPEC) for _ in range(4)]
    async with running(redis, version, plans, trace_dir=tmp_path) as worker:
        for job_id in (suspect, *others):
            assert (await worker.end_of(job_id)).state is JobState.SUCCEEDED
    batches = batches_of(tmp_path)
    assert {suspect} in batches
    assert all(jobs == {suspect} for jobs in batches if suspect in jobs)
    assert any(len(jobs) > 1 for jobs in batches)


async def test_a_step_that_hangs_ends_the_worker(redis: Redis, version: ModelVersion, plans: ModelPlans) -> None:
    gate = Gate()
    hanging = with_plans(plans, Stage.BASE, gate)
    async with running(redis, version, hanging, step_timeout_s=0.1) as worker:
        await worker.admit(SPEC)
        with pytest.raises(StepTimeout, match="MSF_STEP_TIMEOUT_S"):
            await worker.ended
        gate.open.set()


async def test_request_level_batching_finishes_a_batch_together(
    redis: Redis, version: ModelVersion, plans: ModelPlans, tmp_path: Path
) -> None:
    queue = JobQueue(redis)
    together = [await admit(queue, spec) for spec in (SHORT, SPEC.model_copy(update={"num_steps": 20}))]
    async with running(
        redis, version, plans, batching="request", batch_size=2, batch_delay_s=1.0, trace_dir=tmp_path
    ) as worker:
        after = await worker.admit(SHORT)
        for job_id in (*together, after):
            assert (await worker.end_of(job_id)).state is JobState.SUCCEEDED
    batches = batches_of(tmp_path)
    decodes = [event["name"].startswith("decode") for event in trace_events(tmp_path)]
    assert [jobs for jobs, is_decode in zip(batches, decodes, strict=True) if is_decode] == [{*together}, {after}]
    assert all(jobs <= {*together} or jobs == {after} for jobs in batches)


async def test_the_first_job_of_a_tenant_soon_runs_among_a_hundred_of_another(
    redis: Redis, version: ModelVersion, plans: ModelPlans
) -> None:
    """All of them have slots already."""
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.BASE, gate), slots=120) as worker:
        flood = [await worker.admit(SPEC, Terms(tenant="flood")) for _ in range(100)]
        newcomer = await worker.admit(SPEC, Terms(tenant="newcomer"))
        for job_id in (*flood, newcomer):
            await worker.has_attempted(job_id, 1)
        gate.open.set()
        first = await worker.end_of(newcomer)
        ends = [(await worker.end_of(job_id)).finished_at for job_id in flood]
        assert first.finished_at is not None
        assert sum(end is not None and end > first.finished_at for end in ends) > len(flood) / 2


def test_warm_up_runs_every_bucket_of_every_stage(version: ModelVersion, plans: ModelPlans) -> None:
    runs: set[tuple[Stage, int]] = set()

    def recording(stage: Stage) -> Callable[[Plan], Plan]:
        class RecordingPlan(WrappedPlan):
            def start(self, num_rows: int) -> None:
                runs.add((stage, num_rows))
                super().start(num_rows)

        return RecordingPlan

    recorded = plans
    for stage in TWO_STAGES:
        recorded = with_plans(recorded, stage, recording(stage))
    executor = Executor(recorded, 4)  # fewer slots than the largest bucket has rows
    for _ in ModelRunner(version, executor).warm_up_runs():
        pass
    assert runs == {(stage, bucket) for stage, buckets in plans.buckets.items() for bucket in buckets}
    assert executor.num_free_slots == 4


async def test_a_job_that_arrives_during_a_claim_that_misses_it_is_claimed_next(
    redis: Redis, version: ModelVersion, plans: ModelPlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's blocking read takes the token of the job while the claim is under way; nothing else wakes it."""
    claim_many, claims = Leases.claim_many, 0
    monkeypatch.setattr("msf_worker.worker.WAIT_FOR_WORK_S", TIMEOUT_S)
    monkeypatch.setattr("msf_scheduler.leases.MAX_BLOCK_S", TIMEOUT_S)
    monkeypatch.setattr("msf_scheduler.pipelining.COMMAND_TIMEOUT_S", 2 * TIMEOUT_S)

    async def slow_claim(leases: Leases, worker_id: str, requests: Any, *, idle: bool) -> Any:
        nonlocal claims
        claims += 1
        results = await claim_many(leases, worker_id, requests, idle=idle)
        if claims == 2:
            job_ids.append(await worker.admit(SPEC))
            assert worker.worker._arrival is not None
            await eventually(worker.worker._arrival.done)
        return results

    monkeypatch.setattr(Leases, "claim_many", slow_claim)
    job_ids: list[str] = []
    async with running(redis, version, plans, lease_s=4 * TIMEOUT_S) as worker:
        await eventually(lambda: worker.worker._arrival is not None)
        worker.worker._keeper.work_wanted.set()
        await eventually(lambda: bool(job_ids))
        assert (await worker.end_of(job_ids[0])).state is JobState.SUCCEEDED
