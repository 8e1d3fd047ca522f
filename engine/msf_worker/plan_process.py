"""Building of a version's plans in a process of its own: one that is killed, or takes all memory, ends no worker."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from logging.handlers import QueueHandler
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from msf_engine.errors import EngineError, PlanError
from msf_engine.options import BackendName
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_version
from msf_engine.repository import ModelVersion, read_version
from msf_worker.settings import WorkerSettings


def build_plans(settings: WorkerSettings, model: ModelVersion) -> BackendName:
    """Fill the plan cache; return the backend whose plans were accepted. Raises EngineError as `load_version` does."""
    receiver, sender = Pipe(duplex=False)
    arguments = (str(sender.fileno()), str(logging.getLogger().level), model.name, model.version)
    command = (sys.executable, "-m", __name__, *arguments)
    with receiver, subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[sender.fileno()]) as process:
        sender.close()
        assert process.stdin is not None  # it stays open for as long as this process lives
        process.stdin.write(settings.model_dump_json(include={*WorkerSettings.model_fields}).encode() + b"\n")
        process.stdin.flush()
        try:
            while isinstance(message := receiver.recv(), logging.LogRecord):
                logging.getLogger(message.name).handle(message)
        except EOFError:
            raise PlanError(
                f"the process that built its plans ended with status {process.wait()} (-9: killed, as without memory)"
            ) from None
    if isinstance(message, EngineError):
        raise message
    backend: BackendName = message
    return backend


class _LogSender(QueueHandler):
    """Handler that sends records through a pipe."""

    def __init__(self, sender: Connection[object, object]) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self._sender = sender

    def enqueue(self, record: logging.LogRecord) -> None:
        self._sender.send(record)


def _main(descriptor: str, log_level: str, name: str, version: str) -> None:
    """Build one version's plans, and send the name of their backend, or the EngineError."""
    settings = WorkerSettings.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with Connection(int(descriptor), readable=False) as sender:
        logging.basicConfig(level=int(log_level), format="%(message)s", handlers=[_LogSender(sender)])
        cache = PlanCache(settings.cache_dir / "plans", settings.plan_cache_bytes)
        outcome: BackendName | EngineError
        try:
            model = read_version(settings.model_repo, name, version)
            backend, _ = load_version(
                model, settings.backend, settings.precision, settings.threads, cache, settings.buckets
            )
            outcome = backend.name
        except EngineError as error:
            outcome = error
        except Exception as error:
            logging.getLogger(__name__).exception("cannot build the plans of %s:%s", name, version)
            outcome = PlanError(f"{type(error).__name__}: {error}")
        sender.send(outcome)


def _exit_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    _main(*sys.argv[1:])
