"""Commands whose packages are not installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench.local_stack import free_port
from msf_cli.main import main
from msf_scheduler.embedded_valkey import EmbeddedValkey

GENERATE = ("generate", "--prompt", "star", "--out", "star.png")
MISSING: Any = None  # as a value of sys.modules, it makes an import fail


@pytest.mark.parametrize(
    "arguments",
    [
        GENERATE,
        ("compile",),
        ("train", "--data", "."),
        ("distill", "--model", "x"),
        ("plan", "--images-per-s", "1", "--p99-s", "1"),
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_a_command_without_torch_says_what_to_install(
    arguments: tuple[str, ...], settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hide("torch", monkeypatch)
    result = CliRunner().invoke(main, arguments, env=settings)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert "needs torch. Install it: pip install 'msf-serve[worker]'" in result.stderr


@pytest.mark.parametrize("package", ["grpc", "tritonclient"])
def test_grpc_says_what_to_install(package: str, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    hide("grpc" if importlib.util.find_spec("grpc") is None else package, monkeypatch)
    result = CliRunner().invoke(main, ["serve"], env=settings | {"MSF_GRPC_PORT": str(free_port())})
    assert (result.exit_code, result.stdout) == (2, "")
    assert "pip install 'msf-serve[grpc]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("backend", "package", "problem"),
    [
        ("openvino", "openvino", "backend openvino needs openvino. "),
        ("eager", "torch", "backend eager needs torch. "),
        ("openvino", "torch", "plan base of tiny:1 is not in the plan cache; building it needs torch. "),
        ("openvino", "diffusers", "plan base of tiny:1 is not in the plan cache; building it needs diffusers. "),
    ],
)
def test_a_worker_says_what_its_plans_need(
    backend: str, package: str, problem: str, valkey: EmbeddedValkey, settings: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules['{package}'] = None")  # in its children too
    changes = {
        "MSF_REDIS_URL": valkey.url,
        "MSF_BACKEND": backend,
        "MSF_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
    }
    command = (sys.executable, "-m", "msf_cli.main", "worker")
    worker = subprocess.run(
        command, env={**os.environ, **settings, **changes}, capture_output=True, text=True, check=False
    )
    assert worker.returncode == 2, worker.stderr
    last = worker.stderr.splitlines()[-1]
    assert last.endswith(f" can be served: tiny:1: {problem}Install it: pip install 'msf-serve[worker]'")
    assert "Traceback" not in worker.stderr


def hide(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let imports of a package fail, also those of modules that are imported already."""
    importers = ("msf_engine", "msf_worker", "msf_training", "msf_cli.loading")
    for module in [name for name in sys.modules if name.startswith(importers)]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, MISSING)


def test_the_load_generator_has_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith(("msf_cli.load", "msf_cli.commands.load"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "aiohttp", MISSING)
    result = CliRunner().invoke(main, ["load", "--rate", "1"])
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: msf load needs aiohttp. Install it: pip install 'msf-serve[load]'\n",
    )
