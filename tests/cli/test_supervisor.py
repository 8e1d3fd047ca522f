"""The supervisor keeps workers running, and stops them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from msf_cli import supervisor
from msf_cli.settings import Settings
from msf_cli.supervisor import Supervisor

StandIn = Callable[[str], None]
STOPPED = "touch ready; kill -STOP $$"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Puts a shell script in the place of the worker."""

    def write(script: str) -> None:
        file = tmp_path / "program"
        file.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
        file.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(file))

    return write


class Died(list[int]):
    """The pids of workers that ended by themselves."""

    async def append_pid(self, pid: int) -> None:
        self.append(pid)


died = Died()


def supervise(workers: int = 1) -> Supervisor:
    settings = Settings(workers=workers, worker_metrics_port=9100)
    return Supervisor(settings, {**os.environ, "MSF_REDIS_URL": "redis://host"}, died.append_pid)


def content(file: Path) -> str:
    return file.read_text() if file.exists() else ""


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  another process decides
            await asyncio.sleep(0.01)


async def test_each_worker_knows_redis_and_has_its_own_metrics_port(program: StandIn, tmp_path: Path) -> None:
    program('echo "$MSF_REDIS_URL" > "$MSF_WORKER_METRICS_PORT"; exec sleep 600')
    supervised = supervise(workers=2)
    running = asyncio.create_task(supervised.run())
    await until(lambda: all(content(tmp_path / port) == "redis://host\n" for port in ("9100", "9101")))
    supervised.stop(60.0)
    assert await running == 0


async def test_a_worker_that_dies_is_started_again(
    program: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MIN_BACKOFF_S", 0.01)
    program("echo started >> log; exit 1")
    supervised = supervise()
    running = asyncio.create_task(supervised.run())
    num_died = len(died)
    await until(lambda: content(tmp_path / "log").count("started") >= 3)
    assert len(died) > num_died
    supervised.stop(60.0)
    assert await running == 0


async def test_a_worker_that_cannot_start_ends_it_with_its_status(program: StandIn, tmp_path: Path) -> None:
    program("if mkdir first; then exec sleep 600; fi; exit 2")
    assert await asyncio.wait_for(supervise(workers=2).run(), 60) == 2


async def test_after_one_good_start_no_worker_ends_the_others(
    program: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MIN_BACKOFF_S", 0.01)
    monkeypatch.setattr(supervisor, "MAX_BACKOFF_S", 0.01)
    program('echo "$@" >> log; exit 2')
    supervised = supervise()
    supervised.has_served = True
    running = asyncio.create_task(supervised.run())
    await until(lambda: content(tmp_path / "log").count("--is-restart") >= 3)
    supervised.stop(60.0)
    assert await running == 0


async def test_stopping_waits_for_no_backoff(
    program: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "MIN_BACKOFF_S", 600.0)
    monkeypatch.setattr(supervisor, "MAX_BACKOFF_S", 600.0)
    program("exit 1")
    supervised = supervise()
    running = asyncio.create_task(supervised.run())
    await until(lambda: "restarting it" in caplog.text)
    supervised.stop(60.0)
    assert await asyncio.wait_for(running, 60) == 0


async def test_a_worker_that_does_not_drain_in_time_is_told_again_and_hands_its_jobs_back(
    program: StandIn, tmp_path: Path
) -> None:
    program("trap 'echo told >> log; [ $(wc -l < log) = 2 ] && exit 0' TERM; touch ready; while :; do sleep 0.05; done")
    supervised = supervise()
    running = asyncio.create_task(supervised.run())
    await until((tmp_path / "ready").exists)
    supervised.stop(0.2)
    assert await asyncio.wait_for(running, 60) == 0
    assert content(tmp_path / "log").count("told") == 2


@pytest.mark.parametrize("script", ["trap '' TERM; touch ready; while :; do sleep 0.05; done", STOPPED])
async def test_a_worker_that_ends_by_no_signal_is_killed(
    script: str, program: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "HAND_BACK_S", 0.05)
    program(script)
    supervised = supervise()
    running = asyncio.create_task(supervised.run())
    await until((tmp_path / "ready").exists)
    supervised.stop(0)
    assert await asyncio.wait_for(running, 60) == 0


async def test_a_second_signal_ends_the_time_to_drain(program: StandIn, tmp_path: Path) -> None:
    program("trap '' TERM; touch ready; while :; do sleep 0.05; done")
    supervised = supervise()
    running = asyncio.create_task(supervised.run())
    await until((tmp_path / "ready").exists)
    supervised.stop(600.0)
    supervised.hurry(0.05)
    assert await asyncio.wait_for(running, 60) == 0


async def test_a_queue_that_does_not_answer_does_not_delay_the_restart(
    program: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MIN_BACKOFF_S", 0.01)
    monkeypatch.setattr(supervisor, "BURIAL_TIMEOUT_S", 0.01)
    program("echo started >> log; exit 1")
    supervised = Supervisor(Settings(workers=1), {**os.environ}, lambda _: asyncio.sleep(600))
    running = asyncio.create_task(supervised.run())
    await until(lambda: content(tmp_path / "log").count("started") >= 3)
    supervised.stop(60.0)
    assert await running == 0


async def test_stopping_at_once_leaves_no_worker(program: StandIn) -> None:
    program("exec sleep 600")
    supervised = supervise(workers=3)
    running = asyncio.create_task(supervised.run())
    await asyncio.sleep(0)  # its workers are just being started
    supervised.stop(60.0)
    assert await asyncio.wait_for(running, 60) == 0
