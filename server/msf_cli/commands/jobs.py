"""`msf jobs`: look after jobs from the shell."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

import click

from msf_cli.settings import read_settings
from msf_scheduler.connection import connect
from msf_scheduler.errors import SchedulerError
from msf_scheduler.jobs import JobRecord, JobState
from msf_scheduler.queue import JobQueue
from msf_scheduler.registry import Registry

T = TypeVar("T")


@click.group()
def command() -> None:
    """Look after the jobs of the Redis that MSF_REDIS_URL names (or of the service whose MSF_DATA_DIR this is)."""


@command.command()
def dead() -> None:
    """List failed jobs, latest first: the dead letters."""

    async def listed(queue: JobQueue, registry: Registry) -> list[JobRecord]:
        models = await registry.models()
        return [job for model in models for job in await queue.dead_letters(model.name, model.version)]

    for job in _with_queue(listed):
        code = job.error.code if job.error else "?"
        click.echo(f"{job.id}  {_time(job.finished_at)}  {job.spec.model}:{job.spec.version}  {code}")


@command.command()
@click.argument("job_id")
def show(job_id: str) -> None:
    """Print a job as it is now, as JSON."""
    click.echo(_with_queue(lambda queue, _: _get(queue, job_id)).model_dump_json(indent=2))


@command.command()
@click.argument("job_id")
def cancel(job_id: str) -> None:
    """End a job; a worker that runs it frees its slots at the next step."""
    state = _with_queue(lambda queue, _: queue.cancel(job_id))
    if state is None:
        raise click.ClickException(f"there is no job {job_id} (any more)")
    click.echo(state)


@command.command()
@click.argument("job_id")
def requeue(job_id: str) -> None:
    """Queue again what a failed job asked for, under a new id."""

    async def requeued(queue: JobQueue, _: Registry) -> JobRecord:
        job = await _get(queue, job_id)
        if job.state is not JobState.FAILED:
            raise click.ClickException(f"job {job_id} is {job.state}; allowed: failed jobs")
        return await queue.requeue(job)

    click.echo(_with_queue(requeued).id)


async def _get(queue: JobQueue, job_id: str) -> JobRecord:
    job = await queue.get(job_id)
    if job is None:
        raise click.ClickException(f"there is no job {job_id} (any more)")
    return job


def _with_queue(use: Callable[[JobQueue, Registry], Awaitable[T]]) -> T:
    async def used() -> T:
        async with connect(_redis_url()) as redis:
            return await use(JobQueue(redis), Registry(redis))

    try:
        return asyncio.run(used())
    except SchedulerError as error:
        raise click.ClickException(str(error)) from error


def _redis_url() -> str:
    settings = read_settings()
    if settings.redis_url:
        return settings.redis_url
    owner = settings.data_dir / "owner"  # where an embedded Valkey says how to reach it
    if not owner.is_file():
        raise click.UsageError(
            f"MSF_REDIS_URL is not set, and no service has its data in MSF_DATA_DIR={str(settings.data_dir)!r}"
        )
    return owner.read_text()


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}Z"
