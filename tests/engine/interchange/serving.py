"""An imported DiT behind a real server, Valkey and worker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from bench.local_stack import TIMEOUT_S, until
from msf_engine.interchange.importing import ImportOptions, import_model
from tests.cli.support import msf, service_settings
from tests.engine.interchange.peers import write_pipeline
from tests.worker.support import trace_events

COMPILE_TIMEOUT_S = 900.0
REQUESTS: tuple[dict[str, Any], ...] = (
    {"prompt": "bee", "seed": 1, "num_steps": 40, "guidance_scale": 4},
    {"prompt": "eel", "seed": 2, "num_steps": 50, "guidance_scale": 2.5, "negative_prompt": "dog"},
)


def assert_batches_leave_strict_images_alone(backend: str, plan_cache_dir: Path, folder: Path) -> None:
    """Request two strict images alone, then at once until they share step batches; compare the files."""
    import_model(write_pipeline(folder / "pipeline"), folder / "models", "dit", ImportOptions())
    settings = service_settings(folder / "models", plan_cache_dir, folder / "data")
    settings |= {
        "MSF_BACKEND": backend,
        "MSF_BUCKETS": "2,4",
        "MSF_TRACE_DIR": str(folder / "traces"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }
    with msf("compile", settings=settings, log=folder / "compile.log") as command:
        assert command.process.wait(COMPILE_TIMEOUT_S) == 0, command.output
    with msf("serve", settings=settings, log=folder / "log") as server:
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
            return sum(job_ids == set(batch["args"]["jobs"]) for batch in trace_events(folder / "traces")) > 10

        until(share_step_batches)
    for one, other in zip(alone, together, strict=True):
        assert one["reproducibility"] == other["reproducibility"] == "strict"
        assert one["data"][0]["b64_json"] == other["data"][0]["b64_json"]
