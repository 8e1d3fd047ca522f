from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import setproctitle

from tests.cli.support import service_settings
from tests.models import tiny_repository


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model_repo")
    tiny_repository(folder)
    return folder


@pytest.fixture
def settings(repository: Path, plan_cache_dir: Path, tmp_path: Path) -> dict[str, str]:
    """Settings of every command of a test; a test may change its copy."""
    return service_settings(repository, plan_cache_dir, tmp_path / "data")


@pytest.fixture(autouse=True)
def _no_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("MSF_"):
            monkeypatch.delenv(name)


@pytest.fixture
def no_title(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the name of the test process."""
    ignore: Callable[[str], None] = lambda title: None  # noqa: E731
    monkeypatch.setattr(setproctitle, "setproctitle", ignore)


@pytest.fixture
def damaged(repository: Path, tmp_path: Path) -> Path:
    """A weight file with one flipped bit, in a copy of the repository."""
    copy = shutil.copytree(repository, tmp_path / "damaged")
    file = copy / "tiny" / "1" / "residual.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    return file
