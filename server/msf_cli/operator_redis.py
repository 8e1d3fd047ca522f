"""Redis for operators' commands: that of MSF_REDIS_URL, or of the service that runs on MSF_DATA_DIR."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from msf_cli.settings import read_settings
from msf_cli.setup_checks import IncompleteSetup
from msf_scheduler.connection import RedisClient, connect
from msf_scheduler.embedded_valkey import running_url
from msf_scheduler.errors import SchedulerError

T = TypeVar("T")


def run_with_redis(operation: Callable[[RedisClient], Awaitable[T]]) -> T:
    """Run `operation` to its end. Raises IncompleteSetup without a Redis, ClickException for an error of it."""

    async def run() -> T:
        async with connect(_redis_url()) as redis:
            return await operation(redis)

    try:
        return asyncio.run(run())
    except SchedulerError as error:
        raise click.ClickException(str(error)) from error


def _redis_url() -> str:
    settings = read_settings()
    if settings.redis_url:
        return settings.redis_url
    url = running_url(settings.data_dir)
    if url is None:
        raise IncompleteSetup(
            f"MSF_REDIS_URL is not set, and no service runs on MSF_DATA_DIR={str(settings.data_dir)!r}."
        )
    return url
