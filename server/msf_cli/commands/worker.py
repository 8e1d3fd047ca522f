"""`msf worker`: one worker process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading

import click
import setproctitle

from msf_cli.logs import configure_logging
from msf_cli.settings import Settings, read_settings
from msf_scheduler.errors import QueueUnavailable

EXIT_UNAVAILABLE = 1  # starting again may help
EXIT_MISCONFIGURED = 2  # starting again would not help
EXIT_HUNG = 3


@click.command()
@click.option("--owner-fd", type=int, hidden=True, help="Exit when this pipe's other end is closed.")
def command(owner_fd: int | None) -> None:
    """Claim jobs from MSF_REDIS_URL and run them on this machine's device.

    On SIGTERM or SIGINT it finishes what it has begun, within MSF_DRAIN_TIMEOUT_S, and hands back the rest.
    """
    if owner_fd is not None:
        threading.Thread(target=_exit_with_owner, args=(owner_fd,), daemon=True).start()
    setproctitle.setproctitle("msf worker")
    settings = read_settings()
    configure_logging(settings.log_level, "worker", settings.log_format)
    asyncio.run(_work(settings))


async def _work(settings: Settings) -> None:
    if settings.redis_url is None:
        raise click.UsageError("MSF_REDIS_URL is not set; a worker needs the Redis that its servers use")
    from msf_engine.errors import EngineError
    from msf_worker.errors import StepTimeout, WorkerError
    from msf_worker.main import run_worker
    from msf_worker.settings import WorkerSettings

    stop = asyncio.Event()
    for order in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(order, stop.set)
    try:
        worker_settings = WorkerSettings(**settings.model_dump(include=set(WorkerSettings.model_fields)))
        await run_worker(worker_settings, settings.redis_url, stop)
    except (EngineError, WorkerError) as error:
        logging.error("%s", error)
        sys.exit(EXIT_MISCONFIGURED)
    except StepTimeout as error:
        logging.error("%s; ending the process", error)
        os._exit(EXIT_HUNG)  # the hanging thread would keep an orderly exit waiting
    except QueueUnavailable as error:
        logging.error("MSF_REDIS_URL: %s", error)
        sys.exit(EXIT_UNAVAILABLE)


def _exit_with_owner(owner_fd: int) -> None:
    os.read(owner_fd, 1)
    os._exit(1)
