"""Commands and workers that run cached plans on a CPU import no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from bench.local_stack import TIMEOUT_S
from msf_cli.main import main
from tests.cli.support import msf
from tests.cli.test_reproduce import stored_image

NO_TORCH = """
import sys
sys.modules["torch"] = sys.modules["diffusers"] = None  # an import of them is an error
"""
RUN_COMMAND = """
from msf_cli.main import main
main()
"""
IMPORT_WORKER = """
import msf_worker.main
from msf_engine.backends import get_backend
get_backend("openvino", None, 1)
"""


def run(script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, "-c", NO_TORCH + script, *arguments),
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def cached(settings: dict[str, str]) -> dict[str, str]:
    """Settings whose plans are compiled."""
    cached = settings | {"MSF_BACKEND": "openvino", "MSF_PRECISION": "fp32", "MSF_BUCKETS": "2"}
    result = CliRunner().invoke(main, ("compile",), env=cached)
    assert result.exit_code == 0, result.output
    return cached


@pytest.mark.slow
def test_cached_plans_generate_and_reproduce(cached: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    generated = run(RUN_COMMAND, "generate", "--prompt", "star", "-n", "2", "--out", str(out), **cached)
    assert generated.returncode == 0, generated.stderr
    assert out.exists()
    image = stored_image(cached, tmp_path / "image.png", "strict")
    reproduced = run(RUN_COMMAND, "reproduce", str(image), **cached)
    assert "identical to the byte" in reproduced.stdout, reproduced.stderr


@pytest.mark.slow
def test_cached_plans_serve(cached: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_TORCH)  # runs when the server and its worker start
    paths = {"PYTHONPATH": os.pathsep.join((str(tmp_path), *sys.path))}
    with msf("serve", settings=cached | paths, log=tmp_path / "log") as server:
        body = {"prompt": "star", "n": 2}
        answer = httpx.post(f"{server.url()}/v1/images/generations", json=body, timeout=TIMEOUT_S)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["data"]) == 2


def test_a_worker_is_imported() -> None:
    process = run(IMPORT_WORKER)
    assert process.returncode == 0, process.stderr
