"""What documents tell readers to type does what they say."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.cli.support import msf

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"^```(?P<language>python|sh|js)\n(?P<code>.*?)^```$(?:\s*^```text\n(?P<output>.*?)^```$)?", re.M | re.S
)
ADDRESS = "localhost:8000"


def blocks(document: str) -> Iterator[tuple[str, str, str | None]]:
    """Its examples in order: language, code, and the output where it is shown."""
    for found in BLOCK.finditer((ROOT / "docs" / document).read_text()):
        if not found["code"].startswith("pip install"):
            yield found["language"], found["code"], found["output"]


@pytest.mark.slow
def test_examples_of_the_open_inference_protocol(settings: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "model_repo", tmp_path / "model_repo")
    settings |= {"MSF_MODEL_REPO": str(tmp_path / "model_repo"), "MSF_BUCKETS": "1,4"}
    names: dict[str, Any] = {}
    with msf("serve", settings=settings, log=tmp_path / "log") as server:
        address = server.url().removeprefix("http://")
        for language, code, output in blocks("oip.md"):
            shown = run(language, code.replace(ADDRESS, address), names, tmp_path)
            assert output is None or shown == output, code
        names["client"].close()


@pytest.mark.slow
def test_examples_of_the_ways_in(settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = f"whsec_{base64.b64encode(b'of a caller').decode()}"
    monkeypatch.setenv("WEBHOOK_SECRET", secret)
    names: dict[str, Any] = {}
    settings |= {"MSF_MODEL_REPO": str(ROOT / "model_repo"), "MSF_BUCKETS": "1,4,8"}
    with msf("serve", settings=settings, log=tmp_path / "log") as server:
        address = server.url().removeprefix("http://")
        for language, code, output in blocks("api.md"):
            if language == "js" and shutil.which("node") is None:
                continue
            shown = run(language, code.replace(ADDRESS, address), names, tmp_path)
            assert output is None or shown == output, code
    assert (tmp_path / "clock.webp").read_bytes()[8:12] == b"WEBP"
    assert {file.name for file in tmp_path.glob("*.png")} == {"cat-0.png", "cat-1.png", "grid.png"}
    body, now = '{"type": "job.succeeded", "data": {"id": "1"}}', datetime.now(UTC)
    headers = {"webhook-id": "1", "webhook-timestamp": str(int(now.timestamp()))}
    headers["webhook-signature"] = Webhook(secret).sign("1", now, body)
    assert names["received"](body, headers) == ("job.succeeded", "1")
    names["client"].close()


def run(language: str, code: str, names: dict[str, Any], folder: Path) -> str:
    """What it prints."""
    if language != "python":
        command = {"sh": ["sh", "-ec", code], "js": ["node", "--input-type=module", "--eval", code]}[language]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where `msf` is
        environment = {**os.environ, "PATH": path}
        return subprocess.run(
            command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()
