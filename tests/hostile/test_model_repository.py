"""Damage in the model repository, before and while a service runs: it refuses what is damaged and serves the rest."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.local_stack import TIMEOUT_S, Msf, free_port, until
from msf_engine.repository import save_version
from tests.cli.support import msf, service_settings
from tests.damaged_models import IN_FILES, IN_FOLDERS, IN_WEIGHTS
from tests.hostile.conftest import Attempts
from tests.models import LABELS, tiny_model, tiny_repository

WITH_RIGHT_CHECKSUMS = ("a NaN",)  # each takes a process
ODD_FOLDERS = ("UPPER/1", "007", "tiny/²", "tiny/007", "loop")


@dataclass(frozen=True)
class Service:
    """A service whose repository is damaged under it."""

    msf: Msf
    client: httpx.Client
    repository: Path
    metrics_url: str

    def index(self) -> Mapping[str, tuple[str, str]]:
        entries = self.client.post("/v2/repository/index").raise_for_status().json()
        return {f"{entry['name']}:{entry['version']}": (entry["state"], entry["reason"]) for entry in entries}

    def load(self, *versions: int) -> httpx.Response:
        policy = json.dumps({"version_policy": {"specific": {"versions": versions}}})
        return self.client.post("/v2/repository/models/tiny/load", json={"parameters": {"config": policy}})

    def check_serving(self, version: str) -> None:
        body: dict[str, Any] = {"prompt": "star", "model": f"tiny:{version}", "num_steps": 4}
        answer = self.client.post("/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text

    def kill_worker(self) -> None:
        """Kill the worker, and wait until another one has reported."""
        before = self.msf.processes()["worker"]
        before.kill()
        until(lambda: self.msf.processes().get("worker", before).pid != before.pid)
        until(lambda: httpx.get(f"{self.metrics_url}/ready").status_code == 200)
        until(self.is_settled)

    def is_settled(self) -> bool:
        """Return whether the worker has reported, and loads nothing."""
        states = [state for state, _ in self.index().values()]
        return bool(states) and "LOADING" not in states

    def refusals(self) -> Mapping[str, str]:
        """Return the reasons of `/v1/models`."""
        models = self.client.get("/v1/models").raise_for_status().json()
        return {version["id"]: version["reason"] for version in models["refused"]}


@pytest.fixture
def settings(plan_cache_dir: Path, tmp_path: Path) -> dict[str, str]:
    port = {"MSF_WORKER_METRICS_PORT": str(free_port())}
    return service_settings(tmp_path / "models", plan_cache_dir, tmp_path / "data") | port


@pytest.fixture
def damaged(settings: dict[str, str]) -> Mapping[str, str]:
    """A repository with a good version and many damaged ones; what is wrong with each."""
    repository = Path(settings["MSF_MODEL_REPO"])
    tiny_repository(repository)
    chosen = {**IN_FILES, **IN_FOLDERS, **{name: IN_WEIGHTS[name] for name in WITH_RIGHT_CHECKSUMS}}
    for number, damage in enumerate(chosen.values(), start=10):
        damage(Path(shutil.copytree(repository / "tiny" / "1", repository / "tiny" / str(number))))
    for name in ODD_FOLDERS[:-1]:
        (repository / name).mkdir(parents=True)
    (repository / ODD_FOLDERS[-1]).symlink_to(ODD_FOLDERS[-1])
    return {f"tiny:{number}": name for number, name in enumerate(chosen, start=10)}


@pytest.fixture
def service(settings: dict[str, str], damaged: Mapping[str, str], tmp_path: Path) -> Iterator[Service]:
    with (
        msf("serve", settings=settings, log=tmp_path / "log") as running,
        httpx.Client(base_url=running.url(), timeout=TIMEOUT_S) as client,
    ):
        metrics_url = f"http://127.0.0.1:{settings['MSF_WORKER_METRICS_PORT']}"
        service = Service(running, client, Path(settings["MSF_MODEL_REPO"]), metrics_url)
        until(service.is_settled)
        yield service


@pytest.mark.timeout(TIMEOUT_S)
def test_damaged_versions(service: Service, damaged: Mapping[str, str], attempts: Attempts) -> None:
    """Damaged versions beside a good one, at a start, at a restart and while serving."""
    odd = {name.replace("/", ":") for name in ODD_FOLDERS}
    for when in ("at the start", "after a restart"):
        index, refusals = service.index(), service.refusals()
        metrics = httpx.get(f"{service.metrics_url}/metrics").text
        assert index["tiny:1"] == ("READY", "")
        service.check_serving("1")
        for version in (*damaged, *odd):
            with attempts.attempt(f"{damaged.get(version, version)} {when}"):
                state, reason = index.get(version) or index[f"{version}:"]
                assert state == "UNAVAILABLE"
                assert reason not in ("", "not loaded")
                assert str(service.repository) not in reason
                assert refusals[version] == reason
                assert f"cannot serve {version}: " in service.msf.output
                name, _, number = version.partition(":")
                assert f'msf_model_version_refused{{model="{name}",version="{number}"}} 1.0' in metrics
        service.kill_worker()

    with attempts.attempt("a mended version"):
        shutil.rmtree(service.repository / "tiny" / "10")
        save_version(service.repository, "tiny", "10", tiny_model(seed=2), LABELS)
        assert service.load(1, 10).status_code == 200
        service.check_serving("10")
    with attempts.attempt("a load of a damaged version"):
        answer = service.load(1, 10, 11)
        assert answer.status_code == 400
        assert service.index()["tiny:11"][1].rstrip(".") in answer.json()["error"]
        service.check_serving("10")
    with attempts.attempt("a served version that is overwritten"):
        os.truncate(service.repository / "tiny" / "10" / "base.safetensors", 100)
        (service.repository / "tiny" / "10" / "SHA256SUMS").unlink()
        service.check_serving("10")
        service.kill_worker()
        assert service.index()["tiny:10"][0] == "UNAVAILABLE"
        service.check_serving("1")
    with attempts.attempt("a repository that is gone"):
        away = service.repository.rename(service.repository.with_name("away"))
        service.check_serving("1")
        service.kill_worker()
        assert service.client.get("/v2/health/ready").status_code == 503
        away.rename(service.repository)
        until(lambda: "tiny:1" in service.index())
        assert service.load(1).status_code == 200
        service.check_serving("1")
        assert service.client.get("/v2/health/ready").status_code == 200
    assert service.msf.process.poll() is None


@pytest.mark.timeout(TIMEOUT_S)
def test_nothing_can_be_served(settings: dict[str, str], tmp_path: Path, attempts: Attempts) -> None:
    """Starts with damaged versions alone: one line, status 2, no restart."""
    repository = Path(settings["MSF_MODEL_REPO"])
    damages = {**IN_FILES, **IN_WEIGHTS, **IN_FOLDERS}
    for name in ("a copy under way", "a NaN", "a folder that links nowhere"):
        with attempts.attempt(name):
            shutil.rmtree(repository, ignore_errors=True)
            folder = tiny_repository(repository, version="9").folder
            damages[name](folder)
            with msf("serve", settings=settings, log=tmp_path / "log") as running:
                assert running.wait() == 2, running.output
                assert "Traceback" not in running.output
                assert "restarting" not in running.output
                assert running.output.count("no model") + running.output.count("has no model") >= 1
