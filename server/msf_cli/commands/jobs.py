"""`msf jobs`: list, show, cancel or requeue jobs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

import click

from msf_cli.operator_redis import run_with_redis
from msf_scheduler.jobs import JobRecord, JobState
from msf_scheduler.queue import JobQueue
from msf_scheduler.registry import Registry

T = TypeVar("T")


@click.group()
def command() -> None:
    """List, show, cancel or requeue jobs in the Redis of MSF_REDIS_URL, or of the service with MSF_DATA_DIR."""


@command.command()
def dead() -> None:
    """List failed jobs, latest first."""

    async def dead_letters(queue: JobQueue, registry: Registry) -> list[JobRecord]:
        models = await registry.models()
        return [job for model in models for job in await queue.dead_letters(model.name, model.version)]

    for job in _with_queue(dead_letters):
        code = job.error.code if job.error else "?"
        click.echo(f"{job.id}  {_time(job.finished_at)}  {job.spec.model}:{job.spec.version}  {code}")


@command.command()
@click.argument("job_id")
def show(job_id: str) -> None:
    """Print a job as JSON."""
    click.echo(_with_queue(lambda queue, _: _get(queue, job_id)).model_dump_json(indent=2))


@command.command()
@click.argument("job_id")
def cancel(job_id: str) -> None:
    """Cancel a job; a worker that runs it frees its slots at the next step."""
    state = _with_queue(lambda queue, _: queue.cancel(job_id))
    if state is None:
        raise _unknown(job_id)
    click.echo(state)


@command.command()
@click.argument("job_id")
def requeue(job_id: str) -> None:
    """Queue a failed job again, under a new id."""

    async def requeue_failed(queue: JobQueue, _: Registry) -> JobRecord:
        job = await _get(queue, job_id)
        if job.state is not JobState.FAILED:
            raise click.ClickException(f"Job {job_id} is {job.state}. Allowed: failed jobs.")
        return await queue.requeue(job)

    click.echo(_with_queue(requeue_failed).id)


async def _get(queue: JobQueue, job_id: str) -> JobRecord:
    job = await queue.get(job_id)
    if job is None:
        raise _unknown(job_id)
    return job


def _unknown(job_id: str) -> click.ClickException:
    return click.ClickException(f"Unknown job {job_id}; it may have expired.")


def _with_queue(operation: Callable[[JobQueue, Registry], Awaitable[T]]) -> T:
    return run_with_redis(lambda redis: operation(JobQueue(redis), Registry(redis)))


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}Z"
