"""`msf` commands with the settings of a test alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench import local_stack


def service_settings(models: Path, cache: Path, data: Path) -> dict[str, str]:
    """Return settings of a service of `models`, on a free port, in eager float32 with one thread."""
    return {
        "MSF_MODEL_REPO": str(models),
        "MSF_CACHE_DIR": str(cache),
        "MSF_DATA_DIR": str(data),
        "MSF_BACKEND": "eager",
        "MSF_PRECISION": "fp32",
        "MSF_BUCKETS": "1,4",
        "MSF_THREADS": "1",
        "MSF_PORT": "0",
    }


@contextmanager
def msf(*arguments: str, settings: Mapping[str, str], log: Path) -> Iterator[local_stack.Msf]:
    """Run `msf` without the MSF_ variables of this process; on exit, kill it with all its descendants."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MSF_")}
    environment = {**inherited, "OMP_NUM_THREADS": "1", **settings}
    with local_stack.msf(*arguments, environment=environment, log=log) as running:
        yield running
