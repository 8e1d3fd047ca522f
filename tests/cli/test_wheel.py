"""The wheel, outside the repository: its content, and its commands in an environment without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = {"msf_cli", "msf_engine", "msf_scheduler", "msf_server", "msf_training", "msf_worker"}
METADATA = ("pyproject.toml", "README.md", "LICENSE")
NO_TORCH = """
import sys
sys.modules["torch"] = None  # an import of it fails, as if it were not installed
from msf_cli.main import main
main()
"""

pytestmark = pytest.mark.slow


def build(folder: Path, packages: tuple[str, ...]) -> Path:
    """Build a wheel from a copy of the repository that has only `packages`, in `folder`."""
    checkout = folder / "checkout"
    for name in packages:
        shutil.copytree(REPOSITORY / name, checkout / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in METADATA:
        shutil.copy(REPOSITORY / name, checkout / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run([*command, "--wheel-dir", str(folder)], cwd=checkout, check=True)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"), ("server", "engine"))


@pytest.fixture(scope="session")
def server_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("server_wheel"), ("server",))


def install(wheel: Path, folder: Path) -> Path:
    """Create an environment with `wheel` and the libraries of this one; return its Python."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    return python


def run(python: Path, folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `msf` outside the repository, without torch."""
    outer: Mapping[str, str] = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [python, "-c", NO_TORCH, *arguments],
        cwd=folder,
        env={**outer, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(wheel, tmp_path_factory.mktemp("environment"))


def test_the_wheel_has_the_packages_with_their_data_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = {name.partition("/")[0] for name in names}
    assert {name for name in folders if not name.endswith(".dist-info")} == PACKAGES
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    for source, pattern in (
        ("server", "msf_scheduler/lua/**/*.lua"),
        ("server", "msf_server/page/**/*.*"),
        ("engine", "msf_training/recipes/*.toml"),
        ("engine", "msf_training/distillation_recipes/*.toml"),
    ):
        files = {str(file.relative_to(REPOSITORY / source)) for file in (REPOSITORY / source).glob(pattern)}
        assert files
        assert files <= names


def test_the_metadata_declares_what_it_runs_on(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    assert "Requires-Python: >=3.11\n" in metadata
    assert "Classifier: Typing :: Typed\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serve",), "MSF_MODEL_REPO='model_repo' is not a folder. Get a model with 'msf models pull SOURCE'"),
        (("models",), "MSF_MODEL_REPO='model_repo' is not a folder. Get a model with 'msf models pull SOURCE'"),
        (("generate", "--prompt", "a", "--out", "a.png"), "MSF_MODEL_REPO='model_repo' is not a folder. Get a model"),
        (("train", "--data", "."), "needs torch. Install it: pip install 'msf-serve[worker]'"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_command_says_in_one_line_what_is_missing(
    python: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run(python, tmp_path, *arguments, MSF_REDIS_URL="redis://127.0.0.1:1")
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert message in result.stderr


def test_a_model_is_pulled_and_listed_without_torch(python: Path, tmp_path: Path) -> None:
    pulled = run(python, tmp_path, "models", "pull", str(REPOSITORY / "model_repo" / "emoji"))
    assert pulled.returncode == 0, pulled.stderr
    assert (tmp_path / "model_repo" / "emoji" / "1" / "SHA256SUMS").is_file()
    listing = run(python, tmp_path, "models")
    assert listing.returncode == 0, listing.stderr
    assert listing.stdout.startswith("emoji 1 ")


def test_a_checkout_with_only_the_server_serves(server_wheel: Path, tmp_path: Path) -> None:
    python = install(server_wheel, tmp_path / "environment")
    help_text = run(python, tmp_path, "serve", "--help")
    assert help_text.returncode == 0, help_text.stderr
    assert "MSF_PORT" in help_text.stdout
    assert "MSF_BUCKETS" not in help_text.stdout  # a setting of workers
    unreachable = run(python, tmp_path, "serve", MSF_WORKERS="0", MSF_PORT="0", MSF_REDIS_URL="redis://127.0.0.1:1")
    assert unreachable.stderr.startswith("Error: MSF_REDIS_URL: Redis at 127.0.0.1:1"), unreachable.stderr
    with_worker = run(python, tmp_path, "serve", MSF_PORT="0")
    assert (with_worker.returncode, len(with_worker.stderr.splitlines())) == (2, 1), with_worker.stderr
    assert "needs msf_worker. Install it: pip install 'msf-serve[worker]'" in with_worker.stderr
