"""`msf jobs`: jobs listed, shown, cancelled and requeued from the shell."""

from __future__ import annotations

import asyncio
import json

import pytest
from click.testing import CliRunner, Result

from msf_cli.commands.jobs import command
from msf_scheduler.connection import connect
from msf_scheduler.jobs import JobError, JobSpec, WorkerInfo
from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue, new_job_id
from msf_scheduler.registry import Registry
from tests.server.fake_worker import FASHION

SPEC = JobSpec(model="fashion", version="1", label=0, num_samples=1, seed=1, num_steps=4, guidance_scale=1.0)


async def prepare(redis_url: str) -> tuple[str, str]:
    """Create a failed job and a queued one; return their ids."""
    async with connect(redis_url) as redis:
        queue, leases = JobQueue(redis), Leases(redis)
        info = WorkerInfo(id="w", host="here", pid=1, backend="test", num_slots=1, models=(FASHION,))
        await Registry(redis).register(info)
        failed = await queue.admit(SPEC, job_id=new_job_id(), reply_to=None)
        claimed = await leases.claim("w", "fashion", "1", budget_steps=1, held=(), max_samples=1, idle=True)
        await leases.fail(claimed.claims[0], JobError(code="poisoned", message="it kills"))
        queued = await queue.admit(SPEC, job_id=new_job_id(), reply_to=None)
    return failed.id, queued.id


def jobs(redis_url: str, *arguments: str) -> Result:
    return CliRunner(env={"MSF_REDIS_URL": redis_url}).invoke(command, arguments)


async def test_failed_jobs_are_listed_shown_and_requeued(redis_url: str) -> None:
    failed, queued = await prepare(redis_url)

    def use() -> None:
        listed = jobs(redis_url, "dead").output
        assert failed in listed
        assert "fashion:1  poisoned" in listed
        assert queued not in listed
        assert json.loads(jobs(redis_url, "show", failed).output)["error"]["message"] == "it kills"
        again = jobs(redis_url, "requeue", failed).output.strip()
        assert json.loads(jobs(redis_url, "show", again).output)["state"] == "queued"
        assert jobs(redis_url, "dead").output == ""
        assert jobs(redis_url, "cancel", again).output.strip() == "cancelled"
        refused = jobs(redis_url, "requeue", queued)
        assert (refused.exit_code, f"Job {queued} is queued. Allowed: failed jobs." in refused.output) == (1, True)

    await asyncio.to_thread(use)


@pytest.mark.parametrize("what", ["show", "cancel", "requeue"])
async def test_an_unknown_job_is_named(redis_url: str, what: str) -> None:
    result = await asyncio.to_thread(jobs, redis_url, what, "nope")
    assert (result.exit_code, "Unknown job nope" in result.output) == (1, True)


def test_without_a_redis_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSF_DATA_DIR", "/nowhere")
    result = CliRunner().invoke(command, ["dead"])
    assert result.exit_code == 2
    assert "MSF_REDIS_URL is not set" in result.output
