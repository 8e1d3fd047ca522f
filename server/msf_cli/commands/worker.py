"""`msf worker`: one worker process."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading

import click
import setproctitle

from msf_cli.logs import configure_logging
from msf_cli.setting_options import WorkerCommand
from msf_cli.settings import PRIVATE_UMASK, WorkerProcessSettings, read
from msf_cli.setup_checks import IncompleteSetup, require_worker_folders
from msf_cli.stop_signals import handle_stop_signals
from msf_scheduler.errors import QueueUnavailable

EXIT_UNAVAILABLE = 1  # a restart may help
EXIT_MISCONFIGURED = 2  # a restart cannot help
EXIT_HUNG = 3


@click.command(cls=WorkerCommand)
@click.option("--owner-fd", type=int, hidden=True, help="Exit when the other end of this pipe is closed.")
@click.option("--is-restart", is_flag=True, hidden=True, help="Serve even if no model can be served yet.")
def command(owner_fd: int | None, is_restart: bool, flags: dict[str, str]) -> None:
    """Run one worker: claim jobs from MSF_REDIS_URL and run them on this machine's device.

    On SIGTERM, SIGINT or SIGHUP it finishes its running jobs within MSF_DRAIN_TIMEOUT_S and requeues the others; on a
    second SIGTERM or SIGINT it requeues them all. A flag takes precedence over its variable.
    """
    if owner_fd is not None:
        threading.Thread(target=_exit_with_owner, args=(owner_fd,), daemon=True).start()
    setproctitle.setproctitle("msf worker")
    settings = read(WorkerProcessSettings, flags)
    configure_logging(settings.log_level, "worker", settings.log_format)
    os.umask(PRIVATE_UMASK)
    if settings.redis_url is None:
        raise IncompleteSetup("MSF_REDIS_URL is not set. A worker needs the Redis that its servers use.")
    require_worker_folders(settings)
    # A supervised worker's Redis has answered before, and will again.
    exit_without_redis = EXIT_MISCONFIGURED if owner_fd is None else EXIT_UNAVAILABLE
    asyncio.run(_run(settings, settings.redis_url, exit_without_redis, is_restart=is_restart))


async def _run(settings: WorkerProcessSettings, redis_url: str, exit_without_redis: int, *, is_restart: bool) -> None:
    from msf_engine.errors import EngineError
    from msf_worker.errors import StepTimeout, WorkerError
    from msf_worker.main import run_worker

    stop, hurry = asyncio.Event(), asyncio.Event()
    handle_stop_signals(stop.set, lambda _: hurry.set())
    try:
        await run_worker(settings, redis_url, stop, hurry, is_restart=is_restart)
    except (EngineError, WorkerError) as error:
        logging.error("%s", error)
        sys.exit(EXIT_MISCONFIGURED)
    except StepTimeout as error:
        logging.error("%s; ending the process", error)
        os._exit(EXIT_HUNG)  # an orderly exit would wait for the hung thread
    except QueueUnavailable as error:
        logging.error("MSF_REDIS_URL: %s", error)
        sys.exit(exit_without_redis)


def _exit_with_owner(owner_fd: int) -> None:
    os.read(owner_fd, 1)
    os._exit(1)
