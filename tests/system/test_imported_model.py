"""An imported DiT behind a real server, Valkey and worker, on every backend of a CPU."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.local_stack import TIMEOUT_S, until
from msf_engine.interchange.importing import ImportOptions, import_model
from tests.cli.support import msf, service_settings
from tests.engine.interchange.peers import write_pipeline
from tests.worker.support import trace_events

REQUESTS: tuple[dict[str, Any], ...] = (
    {"prompt": "bee", "seed": 1, "num_steps": 40, "guidance_scale": 4},
    {"prompt": "eel", "seed": 2, "num_steps": 50, "guidance_scale": 2.5, "negative_prompt": "dog"},
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    import_model(write_pipeline(folder / "pipeline"), folder / "models", "dit", ImportOptions())
    return folder / "models"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        "openvino",
        pytest.param("inductor", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")),
    ],
)
def test_two_strict_requests_in_one_batch_have_the_bytes_of_each_alone(
    backend: str, repository: Path, plan_cache_dir: Path, tmp_path: Path
) -> None:
    traces = tmp_path / "traces"
    settings = service_settings(repository, plan_cache_dir, tmp_path / "data")
    settings |= {"MSF_BACKEND": backend, "MSF_BUCKETS": "2,4", "MSF_TRACE_DIR": str(traces)}
    with msf("serve", settings=settings, log=tmp_path / "log") as server:
        url = server.url()

        def answer(request: dict[str, Any]) -> dict[str, Any]:
            body = {"model": "dit", "reproducibility": "strict", "cache": False, **request}
            response = httpx.post(f"{url}/v1/images/generations", json=body, timeout=TIMEOUT_S)
            assert response.status_code == 200, response.text
            content: dict[str, Any] = response.json()
            return content

        alone = [answer(request) for request in REQUESTS]
        together: list[dict[str, Any]] = []

        def share_step_batches() -> bool:
            with ThreadPoolExecutor() as threads:
                together[:] = threads.map(answer, REQUESTS)
            job_ids = {each["job_id"] for each in together}
            return sum(job_ids == set(batch["args"]["jobs"]) for batch in trace_events(traces)) > 10

        until(share_step_batches)
    for one, other in zip(alone, together, strict=True):
        assert one["reproducibility"] == other["reproducibility"] == "strict"
        assert one["data"][0]["b64_json"] == other["data"][0]["b64_json"]
