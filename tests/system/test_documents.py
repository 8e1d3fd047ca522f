"""README and guides: examples are executed; what they name exists."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.cli.support import msf, service_settings

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("model_repo/*/README.md")])
EXAMPLE = re.compile(
    r"^```(?P<language>python|sh|js)\n(?P<code>.*?)^```$(?:\s*^```(?P<format>text|json)\n(?P<output>.*?)^```$)?",
    re.M | re.S,
)
LINK = re.compile(r"\]\((?!https?:)(?P<file>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")
SOURCE = re.compile(r"`((?:server|engine|bench|tests|docker|model_repo|docs)/[\w./-]*)`")
TARGET = re.compile(r"(?:^|`)make ([a-z][a-z-]*)", re.M)
MODULE = re.compile(r"python -m ((?:bench|msf_)[\w.]*)")
VARIABLE = re.compile(r"MSF_[A-Z_]+[A-Z]")
VARIABLES = ROOT / "tests/system/records/variables.json"
ADDRESS = "localhost:8000"
ELLIPSIS = "…"  # in an output: any text
VARYING = re.compile(r"created|cached|url|job_id|reproducibility|fingerprint|\w+_ms")  # by machine or request


@dataclass(frozen=True)
class DocumentedService:
    """The shipped models served by an `msf serve` that runs in `folder`."""

    folder: Path
    address: str
    environment: Mapping[str, str]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, plan_cache_dir: Path) -> Iterator[DocumentedService]:
    folder = tmp_path_factory.mktemp("documents")
    shutil.copytree(ROOT / "model_repo", folder / "model_repo")
    settings = service_settings(folder / "model_repo", plan_cache_dir, folder / "data")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where `msf` is
    with msf("serve", settings=settings, log=folder / "log") as server:
        yield DocumentedService(folder, server.url().removeprefix("http://"), {**os.environ, **settings, "PATH": path})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_examples_of_the_readme(service: DocumentedService, monkeypatch: pytest.MonkeyPatch) -> None:
    check_examples(README, service, monkeypatch)
    assert (service.folder / "grid.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_examples_of_the_client_guide(service: DocumentedService, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = f"whsec_{base64.b64encode(b'secret of a tenant').decode()}"
    monkeypatch.setenv("WEBHOOK_SECRET", secret)
    variables = check_examples(ROOT / "docs/api.md", service, monkeypatch)
    assert (service.folder / "clock.webp").read_bytes()[8:12] == b"WEBP"
    assert {"cat-0.png", "cat-1.png", "cats.png"} <= {file.name for file in service.folder.glob("*.png")}
    body, now = '{"type": "job.succeeded", "data": {"id": "1"}}', datetime.now(UTC)
    headers = {"webhook-id": "1", "webhook-timestamp": str(int(now.timestamp()))}
    headers["webhook-signature"] = Webhook(secret).sign("1", now, body)
    assert variables["receive"](body, headers) == ("job.succeeded", "1")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_examples_of_the_open_inference_protocol(service: DocumentedService, monkeypatch: pytest.MonkeyPatch) -> None:
    check_examples(ROOT / "docs/oip.md", service, monkeypatch)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_exists(document: Path) -> None:
    text = document.read_text()
    for link in LINK.finditer(text):
        target = document.parent / link["file"] if link["file"] else document
        assert target.exists(), link[0]
        assert link["anchor"] is None or link["anchor"] in anchors(target), link[0]
    for source in SOURCE.findall(text):
        assert (ROOT / source).exists(), source
    makefile = (ROOT / "Makefile").read_text()
    for name in TARGET.findall(text):
        assert re.search(rf"^{name}:", makefile, re.M), f"make {name}"
    for module in MODULE.findall(text):
        assert importlib.util.find_spec(module), module
    assert set(VARIABLE.findall(text)) <= {*json.loads(VARIABLES.read_text()), "MSF_API_KEY"}


@pytest.mark.parametrize("guide", ["runbook.md", "load-testing.md"])
def test_panels_in_italics_are_on_the_dashboard(guide: str) -> None:
    dashboard = (ROOT / "docker/grafana/dashboards/msf-overview.json").read_text()
    panels = set(re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", (ROOT / "docs" / guide).read_text()))
    assert panels
    assert {panel for panel in panels if f'"title": "{panel}"' not in dashboard} == set()


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of `document`."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_examples(document: Path, service: DocumentedService, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Execute every example in order; return the variables of the Python examples."""
    monkeypatch.chdir(service.folder)
    variables: dict[str, Any] = {}
    for example in EXAMPLE.finditer(document.read_text()):
        language, code = example.group("language", "code")
        if code.startswith("pip install") or (language == "js" and shutil.which("node") is None):
            continue
        printed = execute(language, code.replace(ADDRESS, service.address), variables, service.environment)
        assert matches(example, printed), f"{code}\n{printed}"
    if "client" in variables:
        variables["client"].close()
    return variables


def execute(language: str, code: str, variables: dict[str, Any], environment: Mapping[str, str]) -> str:
    """Return what the example writes to its standard output."""
    if language == "python":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, variables)
        return printed.getvalue()
    command = {"sh": ["sh", "-ec", code], "js": ["node", "--input-type=module", "--eval", code]}[language]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def matches(example: re.Match[str], printed: str) -> bool:
    """Compare the output behind `example`, if the document shows one, with what the example has printed."""
    output = example["output"]
    if example["format"] == "json":
        return is_like(json.loads(output), json.loads(printed))
    return output is None or re.fullmatch(re.escape(output).replace(ELLIPSIS, ".*"), printed) is not None


def is_like(expected: Any, actual: Any) -> bool:
    """Compare two JSON values, except for varying fields and text behind an ellipsis."""
    match expected:
        case dict():
            return list(expected) == list(actual) and all(
                VARYING.fullmatch(name) or is_like(value, actual[name]) for name, value in expected.items()
            )
        case list():
            return len(expected) == len(actual) and all(map(is_like, expected, actual))
        case str() if expected.endswith(ELLIPSIS):
            return str(actual).startswith(expected.removesuffix(ELLIPSIS))
    return bool(expected == actual)
