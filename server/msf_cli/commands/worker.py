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
from msf_cli.setting_options import WorkerCommand
from msf_cli.settings import WorkerProcessSettings, read
from msf_scheduler.errors import QueueUnavailable

EXIT_UNAVAILABLE = 1  # a restart may help
EXIT_MISCONFIGURED = 2  # a restart cannot help
EXIT_HUNG = 3


@click.command(cls=WorkerCommand)
@click.option("--owner-fd", type=int, hidden=True, help="Exit when the other end of this pipe is closed.")
@click.option("--is-restart", is_flag=True, hidden=True, help="Serve even if no model can be served yet.")
def command(owner_fd: int | None, is_restart: bool, flags: dict[str, str]) -> None:
    """Run one worker: claim jobs from MSF_REDIS_URL and run them on this machine's device.

    On SIGTERM or SIGINT it finishes its running jobs within MSF_DRAIN_TIMEOUT_S and requeues the others.
    """
    if owner_fd is not None:
        threading.Thread(target=_exit_with_owner, args=(owner_fd,), daemon=True).start()
    setproctitle.setproctitle("msf worker")
    settings = read(WorkerProcessSettings, flags)
    configure_logging(settings.log_level, "worker", settings.log_format)
    if settings.redis_url is None:
        raise click.UsageError("MSF_REDIS_URL is not set. A worker needs the Redis that its servers use.")
    asyncio.run(_run(settings, settings.redis_url, is_restart=is_restart))


async def _run(settings: WorkerProcessSettings, redis_url: str, *, is_restart: bool) -> None:
    from msf_engine.errors import EngineError
    from msf_worker.errors import StepTimeout, WorkerError
    from msf_worker.main import run_worker

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await run_worker(settings, redis_url, stop, is_restart=is_restart)
    except (EngineError, WorkerError) as error:
        logging.error("%s", error)
        sys.exit(EXIT_MISCONFIGURED)
    except StepTimeout as error:
        logging.error("%s; ending the process", error)
        os._exit(EXIT_HUNG)  # an orderly exit would wait for the hung thread
    except QueueUnavailable as error:
        logging.error("MSF_REDIS_URL: %s", error)
        sys.exit(EXIT_UNAVAILABLE)


def _exit_with_owner(owner_fd: int) -> None:
    os.read(owner_fd, 1)
    os._exit(1)
