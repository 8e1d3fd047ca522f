"""`msf serve` from outside: it answers, survives its workers and leaves no process behind."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from bench.local_stack import TIMEOUT_S, Msf, are_gone, free_port, read_metric, until, until_idle
from msf_server.api_keys import digest, new_key
from tests.cli.support import msf

pytestmark = pytest.mark.slow

LONG = {"prompt": "star", "n": 64, "num_steps": 50}


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    """Settings of workers that compute nothing: they start without torch, and all else is as in production."""
    return settings | {"MSF_BACKEND": "noop"}


def make_images(url: str, **body: object) -> httpx.Response:
    return httpx.post(f"{url}/v1/images/generations", json=body, timeout=TIMEOUT_S)


def num_jobs(server: Msf) -> float:
    return sum(read_metric(server.url(), f"msf_jobs_{state}") for state in ("queued", "running"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_after_all_accepted_requests_are_answered(
    number: signal.Signals, settings: dict[str, str], tmp_path: Path
) -> None:
    with msf("serve", settings=settings, log=tmp_path / "log") as server, ThreadPoolExecutor() as threads:
        url = server.url()
        answer = make_images(url, prompt="circle", seed=3)
        assert answer.status_code == 200, answer.text
        image = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
        assert (image.format, image.size) == ("PNG", (16, 16))

        family = server.descendants()
        assert {"worker", "valkey"} <= set(server.processes())
        accepted = [threads.submit(make_images, url, **LONG) for _ in range(3)]
        until(lambda: any(request.done() for request in accepted) or num_jobs(server) == 3)
        os.killpg(server.process.pid, number)  # as terminals and service managers do
        answers = [request.result() for request in accepted]
        assert [answer.status_code for answer in answers] == [200] * 3, [answer.text[:300] for answer in answers]
        assert [len(answer.json()["data"]) for answer in answers] == [64] * 3
        assert server.wait() == 0, server.output
        assert are_gone(family), family
        assert "Traceback" not in server.output
        assert "restarting it" not in server.output


def test_nothing_outlives_a_killed_server(settings: dict[str, str], tmp_path: Path) -> None:
    with msf("serve", settings=settings, log=tmp_path / "log") as server:
        server.url()
        family = server.descendants()
        assert len(family) == 3, family  # worker, Valkey's supervisor, Valkey
        server.process.kill()
        until(lambda: are_gone(family))


def test_it_can_be_stopped_while_its_worker_loads(settings: dict[str, str], tmp_path: Path) -> None:
    with msf("serve", settings=settings, log=tmp_path / "log") as server:
        until(lambda: "worker" in server.processes() and "startup complete" in server.output)
        family = server.descendants()
        server.process.terminate()
        assert server.wait() == 0, server.output
        assert are_gone(family), family
        assert "is ready" not in server.output


async def test_a_killed_worker_is_replaced_and_every_request_is_answered(
    settings: dict[str, str], tmp_path: Path
) -> None:
    settings |= {"MSF_LEASE_S": "600", "MSF_SLOTS": "8"}  # longer than any test waits
    with msf("serve", settings=settings, log=tmp_path / "log") as server:
        url = await asyncio.to_thread(server.url)
        async with httpx.AsyncClient(timeout=TIMEOUT_S, base_url=url) as client:
            bodies = [{"prompt": "square", "n": 4, "num_steps": 50, "seed": seed} for seed in range(30)]
            requests = [asyncio.create_task(client.post("/v1/images/generations", json=body)) for body in bodies]
            await asyncio.to_thread(until, lambda: read_metric(url, "msf_jobs_running") > 0)
            worker = server.processes()["worker"]
            worker.kill()
            answers = await asyncio.gather(*requests)
        assert [answer.status_code for answer in answers] == [200] * 30
        assert [(answer.json()["seed"], len(answer.json()["data"])) for answer in answers] == [
            (seed, 4) for seed in range(30)
        ]
        assert server.processes()["worker"] != worker
        assert "ended with status -9; restarting it" in server.output
        await asyncio.to_thread(until_idle, url)


def test_damaged_weights_are_named_and_end_the_service(settings: dict[str, str], tmp_path: Path, damaged: Path) -> None:
    settings["MSF_MODEL_REPO"] = str(damaged.parents[2])
    with msf("serve", settings=settings, log=tmp_path / "log") as server:
        assert server.wait() == 2, server.output
        assert f"{damaged} is damaged" in server.output
        assert "Traceback" not in server.output


def test_an_empty_model_repository_is_named_and_ends_the_service(settings: dict[str, str], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    settings["MSF_MODEL_REPO"] = str(empty)
    with msf("serve", settings=settings, log=tmp_path / "log") as server:
        assert server.wait() == 2, server.output
        assert "has no model" in server.output
        assert "Traceback" not in server.output


async def test_a_poison_job_fails_alone(settings: dict[str, str], tmp_path: Path) -> None:
    settings |= {"MSF_LEASE_S": "600", "MSF_FATAL_SEED": "666"}
    with msf("serve", settings=settings, log=tmp_path / "log") as server:
        url = await asyncio.to_thread(server.url)
        async with httpx.AsyncClient(timeout=TIMEOUT_S, base_url=url) as client:
            bodies = [{"prompt": "square", "num_steps": 6, "seed": seed} for seed in (1, 2, 666, 3, 4)]
            answers = await asyncio.gather(*(client.post("/v1/images/generations", json=body) for body in bodies))
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200, 200]
    assert answers[2].json()["error"]["code"] == "poisoned"


def test_keys_are_required_and_never_logged(settings: dict[str, str], tmp_path: Path) -> None:
    keys, file = [new_key(), new_key()], tmp_path / "keys.toml"
    file.write_text(f'[[keys]]\nname = "ada"\nsha256 = "{digest(keys[0])}"\n')
    metrics_port = str(free_port())
    settings |= {"MSF_API_KEYS_FILE": str(file), "MSF_METRICS_PORT": metrics_port, "MSF_LOG_LEVEL": "debug"}
    with msf("serve", settings=settings, log=tmp_path / "log") as server:
        url = server.url()
        headers = [{"Authorization": f"Bearer {key}"} for key in keys]
        statuses = [
            httpx.post(f"{url}/v1/images/generations", json=body, headers=header, timeout=TIMEOUT_S).status_code
            for header, body in ((headers[0], {"prompt": "star"}), (headers[1], {}), (headers[0], {"prompt": "x"}))
        ]
        assert statuses == [200, 401, 400]
        file.write_text(f'[[keys]]\nname = "ada"\nsha256 = "{keys[0]}"\n')  # not a digest
        assert httpx.get(f"{url}/v1/usage", headers=headers[0]).status_code == 200
        assert httpx.get(f"{url}/metrics").status_code == 404
        assert "msf_requests_total" in httpx.get(f"http://127.0.0.1:{metrics_port}/metrics").text
        server.process.terminate()
        assert server.wait() == 0
        assert "the API keys stay unchanged" in server.output
        assert not [key for key in keys if key in server.output]


def test_a_service_without_keys_warns_unless_it_is_local(settings: dict[str, str], tmp_path: Path) -> None:
    for host, has_warning in (("0.0.0.0", True), ("127.0.0.1", False)):
        settings |= {"MSF_HOST": host, "MSF_WORKERS": "0"}
        with msf("serve", settings=settings, log=tmp_path / "log") as server:
            until(lambda server=server: "startup complete" in server.output)  # type: ignore[misc]
            assert ("anyone who reaches 0.0.0.0" in server.output) is has_warning
