"""What documents tell readers to type does what they say."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import msf

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"^```(?P<language>python|sh)\n(?P<code>.*?)^```$(?:\s*^```text\n(?P<output>.*?)^```$)?", re.M | re.S
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


def run(language: str, code: str, names: dict[str, Any], folder: Path) -> str:
    """What it prints."""
    if language == "sh":
        return subprocess.run(["sh", "-ec", code], cwd=folder, check=True, capture_output=True, text=True).stdout
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()
