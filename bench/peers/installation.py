"""Virtual environments of the peers: each with the engine's packages in the versions of this one, and without torch."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
# What a CPU worker imports when its plans are cached, in the same versions, so that the cached plans are the same.
ENGINE_PACKAGES = ("filelock", "numpy", "openvino", "pillow", "pydantic", "pydantic-settings", "safetensors")
# The key of a cached plan has the version of diffusers, which is not imported: its dependencies are left out.
VERSION_PACKAGES = ("diffusers",)


class InstallationError(Exception):
    """A peer's environment cannot be made."""


def peer_requirements() -> dict[str, str]:
    """Return the requirement of each peer by its package's name."""
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    return {re.split(r"[\[<>=]", line)[0]: line for line in lines}


def install(peer: str, folder: Path) -> Path:
    """Return the Python of a peer's environment below `folder`, and make it first if needed.

    Raises InstallationError with the end of pip's output.
    """
    home = folder / peer
    python = home / "bin" / "python"
    packages = [peer_requirements()[peer], *map(_same_version, ENGINE_PACKAGES)]
    metadata = [*map(_same_version, VERSION_PACKAGES)]
    record = home / "installed.txt"
    if record.exists() and record.read_text().splitlines() == packages + metadata:
        return python
    print(f"Installing {peer} into {home}", file=sys.stderr, flush=True)
    venv.create(home, with_pip=True, clear=True)
    for options in (packages, ["--no-deps", *metadata]):
        command = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *options]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if result.returncode:
            raise InstallationError(f"pip cannot install {peer}: {' '.join(result.stdout.split()[-40:])}")
    record.write_text("\n".join(packages + metadata))
    return python


def installed_version(peer: str, python: Path) -> str:
    script = f"from importlib.metadata import version; print(version({peer!r}))"
    return subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def _same_version(package: str) -> str:
    return f"{package}=={version(package)}"
