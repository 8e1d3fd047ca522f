"""Progress and previews of running jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import numpy as np
import pytest
from numpy.typing import NDArray
from redis.asyncio import Redis

from msf_engine.executor import Executor
from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion
from msf_scheduler.job_events import JobUpdate, JobWatcher, StoredPreview
from msf_scheduler.jobs import JobRecord, JobState, Progress, Terms
from msf_scheduler.reply_reader import ReplyReader
from msf_scheduler.stage import Stage
from msf_worker.active_job import sample_request
from tests.worker.support import SPEC, Gate, RunningWorker, assert_same, own_plans, pixels, running, with_plans


@pytest.fixture
async def watcher(redis: Redis) -> AsyncIterator[JobWatcher]:
    replies = ReplyReader(redis, "server")
    reading = asyncio.create_task(replies.run())
    yield JobWatcher(redis, replies)
    reading.cancel()


async def all_news(watcher: JobWatcher, job_id: str) -> list[JobUpdate]:
    return [news async for news in watcher.follow(job_id)]


def base_alone(plans: ModelPlans, index: int) -> NDArray[np.uint8]:
    """Return the preview of a sample's base, by plans of its own."""
    executor = Executor(own_plans(plans), 1)
    slots = executor.join([sample_request(SPEC, index, plans.config.split_steps(SPEC.num_steps))])
    while executor.last_stage_step(slots[0]) is None:
        executor.step(slots)
    return executor.preview(slots)[slots[0]]


async def test_the_base_is_published_before_the_residual_is_complete(
    redis: Redis, version: ModelVersion, plans: ModelPlans, watcher: JobWatcher
) -> None:
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.RESIDUAL, gate)) as worker:
        job_id = await worker.admit(SPEC, Terms(num_previews=1))
        previews: list[StoredPreview] = []
        async with aclosing(watcher.follow(job_id)) as following:
            async for news in following:
                previews += news.previews
                if previews:
                    assert news.job.state is JobState.RUNNING
                    break
        assert not gate.open.is_set()
        gate.open.set()
        for stored in previews:
            assert stored.preview.number == 0
            assert_same(pixels(stored.file), base_alone(plans, stored.preview.index))
        assert (await worker.end_of(job_id)).state is JobState.SUCCEEDED


@pytest.mark.parametrize(("num_steps", "num_requested", "num_expected"), [(6, 0, 0), (6, 1, 1), (9, 3, 3), (2, 3, 1)])
async def test_each_sample_has_the_previews_requested_or_one_per_residual_step(
    worker: RunningWorker, watcher: JobWatcher, num_steps: int, num_requested: int, num_expected: int
) -> None:
    spec = SPEC.model_copy(update={"num_steps": num_steps, "num_samples": 10})
    news = await all_news(watcher, await worker.admit(spec, Terms(num_previews=num_requested)))
    previews = [stored.preview for item in news for stored in item.previews]
    assert len(previews) == len(set(previews)) == 10 * num_expected
    for index in spec.indices:
        assert [preview.number for preview in previews if preview.index == index] == list(range(num_expected))
    assert [stored.id for item in news for stored in item.previews] == [(1, n + 1) for n in range(10 * num_expected)]
    assert worker.count("msf_previews_total") == 10 * num_expected


async def test_progress_is_published_while_the_job_is_watched(
    redis: Redis, version: ModelVersion, plans: ModelPlans, watcher: JobWatcher
) -> None:
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.RESIDUAL, gate)) as worker:
        unwatched = await worker.admit(SPEC.model_copy(update={"seed": 1}))
        job_id = await worker.admit(SPEC)
        progress_reports: list[Progress] = []
        async with aclosing(watcher.follow(job_id)) as following:
            async for news in following:
                if news.job.progress is not None:
                    progress_reports.append(news.job.progress)
                    gate.open.set()
        assert progress_reports[-1].samples_done == 1
        assert progress_reports[-1].num_steps == SPEC.num_steps + 1
        steps_done = [progress.steps_done for progress in progress_reports]
        assert steps_done == sorted(steps_done)
        assert steps_done[-1] == SPEC.num_steps + 1
        assert (await worker.end_of(unwatched)).progress is None


async def test_a_job_may_be_watched_from_the_middle(
    redis: Redis, version: ModelVersion, plans: ModelPlans, watcher: JobWatcher
) -> None:
    """A notice reaches the worker, which publishes progress from its next step on."""
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.RESIDUAL, gate)) as worker:
        job_id = await worker.admit(SPEC)
        await asyncio.to_thread(gate.reached.wait)
        records: list[JobRecord] = []
        async with aclosing(watcher.follow(job_id)) as following:
            async for news in following:
                gate.open.set()
                records.append(news.job)
        assert records[0].progress is None
        assert records[-1].state is JobState.SUCCEEDED
        assert records[-1].progress is not None
