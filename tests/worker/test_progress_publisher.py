"""What a caller may see of a job before its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import numpy as np
import pytest
from redis.asyncio import Redis

from msf_engine.executor import Executor, SampleRequest
from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion
from msf_scheduler.job_events import News, StoredPreview, Watcher
from msf_scheduler.jobs import JobState, Terms
from msf_scheduler.reply_reader import ReplyReader
from msf_scheduler.stage import Stage
from tests.worker.support import SPEC, Gate, RunningWorker, pixels, running, with_plans


@pytest.fixture
async def watcher(redis: Redis) -> AsyncIterator[Watcher]:
    replies = ReplyReader(redis, "server")
    reading = asyncio.create_task(replies.run())
    yield Watcher(redis, replies)
    reading.cancel()


async def all_news(watcher: Watcher, job_id: str) -> list[News]:
    return [news async for news in watcher.follow(job_id)]


def base_alone(plans: ModelPlans, index: int) -> np.ndarray:
    steps = plans.config.split_steps(SPEC.num_steps)
    executor = Executor(plans, 1)
    slot = executor.join(SampleRequest(SPEC.label, SPEC.seed, index, *steps, SPEC.guidance_scale))
    while executor.slots[slot].stage is Stage.BASE:
        executor.step([slot])
    return executor.preview([slot])[slot]


async def test_the_base_is_shown_before_the_residual_is_made(
    redis: Redis, version: ModelVersion, plans: ModelPlans, watcher: Watcher
) -> None:
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.RESIDUAL, gate)) as worker:
        job_id = await worker.admit(SPEC.model_copy(update={"num_samples": 2}), Terms(num_previews=1))
        shown: list[StoredPreview] = []
        async with aclosing(watcher.follow(job_id)) as following:
            async for news in following:
                shown += news.previews
                if len(shown) == 2:
                    assert news.job.state is JobState.RUNNING
                    break
        assert not gate.open.is_set()
        gate.open.set()
        for stored in shown:
            assert stored.preview.number == 0
            assert np.array_equal(pixels(stored.file), base_alone(plans, stored.preview.index)[..., 0])
        assert (await worker.end_of(job_id)).state is JobState.SUCCEEDED


@pytest.mark.parametrize(("num_steps", "wanted", "shown"), [(6, 0, 0), (6, 1, 1), (9, 3, 3), (2, 3, 1)])
async def test_as_many_previews_as_asked_for_where_there_are_steps(
    worker: RunningWorker, watcher: Watcher, num_steps: int, wanted: int, shown: int
) -> None:
    spec = SPEC.model_copy(update={"num_steps": num_steps, "num_samples": 10})
    news = await all_news(watcher, await worker.admit(spec, Terms(num_previews=wanted)))
    previews = [stored.preview for each in news for stored in each.previews]
    assert len(previews) == len(set(previews)) == 10 * shown
    for index in spec.indices:
        assert [preview.number for preview in previews if preview.index == index] == list(range(shown))
    assert [stored.id for each in news for stored in each.previews] == [(1, n + 1) for n in range(10 * shown)]
    assert worker.count("msf_previews_total") == 10 * shown


async def test_progress_is_told_while_somebody_watches(
    redis: Redis, version: ModelVersion, plans: ModelPlans, watcher: Watcher
) -> None:
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.RESIDUAL, gate)) as worker:
        unwatched = await worker.admit(SPEC.model_copy(update={"seed": 1}))
        job_id = await worker.admit(SPEC)
        told = []
        async with aclosing(watcher.follow(job_id)) as following:
            async for news in following:
                if news.job.progress is not None:
                    told.append(news.job.progress)
                    gate.open.set()
        assert told[-1].samples_done == 1
        assert told[-1].steps_done == told[-1].num_steps == SPEC.num_steps + 1
        assert [progress.steps_done for progress in told] == sorted(progress.steps_done for progress in told)
        assert (await worker.end_of(unwatched)).progress is None


async def test_a_job_begun_elsewhere_is_watched_from_the_middle(
    redis: Redis, version: ModelVersion, plans: ModelPlans, watcher: Watcher
) -> None:
    """Nobody watched when it was claimed: the worker is told, and tells from its next step on."""
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.RESIDUAL, gate)) as worker:
        job_id = await worker.admit(SPEC)
        await asyncio.to_thread(gate.reached.wait)
        told = []
        async with aclosing(watcher.follow(job_id)) as following:
            async for news in following:
                gate.open.set()
                told.append(news.job)
        assert told[0].progress is None
        assert told[-1].state is JobState.SUCCEEDED
        assert told[-1].progress is not None
