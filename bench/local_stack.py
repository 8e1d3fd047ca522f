"""A `msf serve` of its own for a benchmark."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

MODEL = "fashion-mnist"  # small and quick: what is measured is the service


def repository_of_one(folder: Path) -> Path:
    """A model repository below `folder` with nothing but MODEL, or MSF_MODEL_REPO where that is set."""
    if "MSF_MODEL_REPO" in os.environ:
        return Path(os.environ["MSF_MODEL_REPO"])
    repository = folder / "models"
    repository.mkdir(exist_ok=True)
    if not (repository / MODEL).exists():
        (repository / MODEL).symlink_to(Path("model_repo", MODEL).resolve(), target_is_directory=True)
    return repository


@dataclass(frozen=True)
class Service:
    """A running `msf serve`."""

    url: str
    pid: int
    started_in_s: float


@contextmanager
def running_service(folder: Path, core: int | None = None, /, **settings: str) -> Iterator[Service]:
    """Start `msf serve` on a free port, with settings of its own, and wait until it is ready.

    With `core`, it and all that it starts stay on that core.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "MSF_PORT": str(port),
        "MSF_DATA_DIR": str(folder),
        "MSF_MODEL_REPO": str(repository_of_one(folder)),
        "MSF_LOG_LEVEL": "warning",
        **settings,
    }
    pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
    started_at = time.monotonic()
    process = subprocess.Popen([*pinned, sys.executable, "-m", "msf_cli.main", "serve"], env=environment, stdout=-1)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if b"is ready at" in line:
                break
        else:
            sys.exit("msf serve did not start; its message is above")
        yield Service(f"http://127.0.0.1:{port}", process.pid, time.monotonic() - started_at)
    finally:
        process.terminate()
        process.wait()


async def until_idle(url: str) -> None:
    """Until no job waits and none runs, as the server's metrics tell."""
    async with httpx.AsyncClient() as client:
        while True:
            text = (await client.get(f"{url}/metrics")).raise_for_status().text
            if not any(map(float, re.findall(r"^msf_jobs_(?:queued|running)\{.*\} (\S+)$", text, re.MULTILINE))):
                return
            await asyncio.sleep(0.1)
