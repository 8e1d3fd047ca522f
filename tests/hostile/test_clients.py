"""Clients of today as they come from PyPI and npm, against a real service."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from tests.cli.support import msf, service_settings
from tests.hostile.conftest import Attempts

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "clients"
CACHE = ROOT / ".cache/clients"
INSTALL_S = 600.0
RUN_S = 120.0


@dataclass(frozen=True)
class Client:
    """A client and the pinned packages that its script needs; those for Node.js are "name@version"."""

    name: str
    script: str
    packages: tuple[str, ...]

    @property
    def is_node(self) -> bool:
        return self.script.endswith(".mjs")

    def install(self) -> Path:
        """Return the folder of its packages, installed by an earlier run or now. Raises as `run` does."""
        folder = CACHE / f"{Path(self.script).stem}-{sha256(' '.join(self.packages).encode()).hexdigest()[:12]}"
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for command in self._installation(folder):
                run(command, folder, INSTALL_S)
            (folder / "complete").touch()
        return folder

    def command(self, folder: Path, url: str) -> list[str]:
        script = shutil.copy(SCRIPTS / self.script, folder)  # Node.js looks for packages next to the script
        return ["node" if self.is_node else str(folder / "bin/python"), str(script), url]

    def _installation(self, folder: Path) -> list[list[str]]:
        if self.is_node:
            (folder / "package.json").write_text(json.dumps({"private": True}))
            return [["npm", "install", "--no-audit", "--no-fund", *self.packages]]
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--prefer-binary"]
        return [[sys.executable, "-m", "venv", str(folder)], [*pip, *self.packages]]


OLD_TRITON = ("tritonclient==2.10.0", "geventhttpclient<2", "numpy<2", "python-rapidjson<2")
NODE = ("openai@7.59.0", "openai-first@npm:openai@4.0.0")
VERCEL = ("ai@7.0.173", "@ai-sdk/openai@4.0.118", "@ai-sdk/openai-compatible@2.0.92")
TYPESCRIPT = ("openapi-typescript@7.13.0", "openapi-fetch@0.17.0", "typescript@5.9.3", "@types/node@22.20.5")
CLIENTS = (
    Client("openai 1.0.0", "openai_sdk.py", ("openai==1.0.0", "httpx<0.28")),
    Client("openai 3.57.0", "openai_sdk.py", ("openai==3.57.0",)),
    Client("LangChain 0.4.2", "langchain_dalle.py", ("langchain-community==0.4.2", "openai==3.57.0")),
    Client("LiteLLM 1.110.2", "litellm_sdk.py", ("litellm==1.110.2",)),
    Client("tritonclient 2.10.0", "triton_http.py", OLD_TRITON),
    Client("tritonclient 2.73.0", "triton_http.py", ("tritonclient[http]==2.73.0",)),
    Client("openai for Node.js, 7.59.0 and 4.0.0", "openai_node.mjs", NODE),
    Client("Vercel's AI SDK 7.0.173", "vercel_ai.mjs", VERCEL),
    Client("a generated Python client", "generated_python.py", ("openapi-python-client==0.29.1",)),
    Client("a generated TypeScript client", "generated_typescript.mjs", TYPESCRIPT),
    Client("Redocly and Spectral", "openapi_linters.mjs", ("@redocly/cli@2.77.0", "@stoplight/spectral-cli@6.16.3")),
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, plan_cache_dir: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("clients")
    shutil.copytree(ROOT / "model_repo/fashion-mnist", folder / "models/fashion-mnist")
    settings = service_settings(folder / "models", plan_cache_dir, folder / "data")
    with msf("serve", settings=settings, log=folder / "log") as server:
        yield server.url()


@pytest.fixture(params=CLIENTS, ids=lambda client: client.name)
def command(request: pytest.FixtureRequest, url: str) -> list[str]:
    """Return the command that runs a client's script; skip a client that cannot be installed here."""
    client: Client = request.param
    try:
        return client.command(client.install(), url)
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{client.name} cannot be installed: {error}")


@pytest.mark.timeout(INSTALL_S + RUN_S)
def test_what_clients_send_is_taken(command: list[str], attempts: Attempts, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id
    attempts.kind = f"what {name} sends"
    with attempts.attempt(name):
        run(command, Path(command[1]).parent, RUN_S)


def run(command: Sequence[str], folder: Path, timeout_s: float) -> None:
    """Run a command. Raises RuntimeError with the end of what it wrote to standard error, OSError, TimeoutExpired."""
    ended = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, timeout=timeout_s)
    if ended.returncode:
        raise RuntimeError(" ".join(ended.stderr.strip().splitlines()[-3:]))
