"""Real processes in bad surroundings: a clock hours off, callers that neither send nor read, a full disk."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from bench.local_stack import Msf, embedded_redis_url, resident_mb, until
from msf_engine.repository import save_version
from tests.cli.support import msf, service_settings
from tests.hostile.conftest import Attempts
from tests.models import LABELS, tiny_model, tiny_repository

TIMEOUT_S = 60.0
WAITING_S = 3.0  # an answer that takes longer waits for the disk
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)  # Debian: apt install libfaketime
NUM_CONNECTIONS = 40
MAX_GROWN_MB = 64.0
DISK_BYTES = 16 * 2**20
REQUEST = {"prompt": "star", "num_steps": 4}


@pytest.fixture
def settings(plan_cache_dir: Path, tmp_path: Path) -> dict[str, str]:
    """Settings of a service that computes nothing."""
    tiny_repository(tmp_path / "models")
    settings = service_settings(tmp_path / "models", plan_cache_dir, tmp_path / "data")
    return settings | {"MSF_BACKEND": "noop"}


@pytest.fixture
def server(settings: dict[str, str], tmp_path: Path) -> Iterator[Msf]:
    with msf("serve", settings=settings, log=tmp_path / "log") as server:
        server.url()
        yield server
        assert "Traceback" not in server.output, server.output[-2000:]


@pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime")
@pytest.mark.timeout(4 * TIMEOUT_S)
def test_a_server_whose_clock_is_off(server: Msf, settings: dict[str, str], tmp_path: Path, attempts: Attempts) -> None:
    """Second server with a clock hours off: streams, deadlines, URLs of images at either server."""
    right = server.url()
    for offset in ("+30s", "-3h", "+26h"):
        clock = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        redis_url = {"MSF_REDIS_URL": embedded_redis_url(tmp_path / "data"), "MSF_WORKERS": "0"}
        log = tmp_path / f"log{offset}"
        with msf("serve", settings=settings | redis_url | clock, log=log) as second:
            wrong = second.url()
            with attempts.attempt(f"{offset}: a stream with a deadline"):
                stream = httpx.post(
                    f"{wrong}/v1/images/generations",
                    json={**REQUEST, "stream": True, "timeout_s": 20},
                    timeout=TIMEOUT_S,
                )
                assert "event: image_generation.completed" in stream.text, stream.text[:300]
            with attempts.attempt(f"{offset}: URLs of images"):
                for maker in (right, wrong):
                    body = {**REQUEST, "response_format": "url"}
                    answer = httpx.post(f"{maker}/v1/images/generations", json=body, timeout=TIMEOUT_S).json()
                    url = urlsplit(answer["data"][0]["url"])
                    for reader in (right, wrong):
                        assert httpx.get(f"{reader}{url.path}?{url.query}").status_code == 200
            with attempts.attempt(f"{offset}: a job of the other server"):
                job = httpx.post(f"{right}/v1/jobs", json=REQUEST, timeout=TIMEOUT_S).json()["id"]
                events = httpx.get(f"{wrong}/v1/jobs/{job}/events", timeout=TIMEOUT_S).text
                assert "event: succeeded" in events, events[-300:]


@pytest.mark.timeout(3 * TIMEOUT_S)
def test_callers_that_neither_send_nor_read(server: Msf, attempts: Attempts) -> None:
    """Forty connections whose bodies never come, and forty whose answers are never read."""
    url = server.url()
    process = server.processes()["server"]
    before_mb = resident_mb(process)
    address = url.removeprefix("http://").split(":")
    unsent = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{"
    unread = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 30
    with ExitStack() as stack:

        def connect(data: bytes) -> socket.socket:
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(TIMEOUT_S)
            connection.connect((address[0], int(address[1])))
            connection.sendall(data)
            return connection

        waiting = [connect(unsent) for _ in range(NUM_CONNECTIONS)]
        for _ in range(NUM_CONNECTIONS):
            connect(unread)
        with attempts.attempt("others are answered"):
            answer = httpx.post(f"{url}/v1/images/generations", json=REQUEST, timeout=TIMEOUT_S)
            assert answer.status_code == 200, answer.text
        with attempts.attempt("bodies that never come end with 408"):
            assert {connection.recv(12) for connection in waiting} == {b"HTTP/1.1 408"}
        with attempts.attempt("memory"):
            assert resident_mb(process) - before_mb < MAX_GROWN_MB


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[], Path]]:
    """Mount a small file system at `folder`, and yield a function that fills it; skip where that is not allowed."""
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")

    def fill() -> Path:
        filler = folder / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(folder).free))
        return filler

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.timeout(4 * TIMEOUT_S)
def test_a_full_disk(settings: dict[str, str], tmp_path: Path, attempts: Attempts) -> None:
    """Data folder on a disk that fills up: refusals while it is full, and nothing that was accepted is lost."""
    with (
        ThreadPoolExecutor() as threads,
        small_disk(tmp_path / "data") as fill,
        msf("serve", settings=settings, log=tmp_path / "log") as server,
    ):
        url = server.url()
        accepted: list[Future[httpx.Response]] = []  # that wait for their images

        def generate() -> Future[httpx.Response]:
            return threads.submit(httpx.post, f"{url}/v1/images/generations", json=REQUEST, timeout=4 * TIMEOUT_S)

        def is_refused() -> bool:
            request = generate()
            with suppress(
                TimeoutError
            ):  # the last request that is accepted fills the disk, and waits until there is room
                answer = request.result(WAITING_S)
                return answer.status_code == 503
            accepted.append(request)
            return False

        job = httpx.post(f"{url}/v1/jobs", json=REQUEST, timeout=TIMEOUT_S).json()["id"]
        until(lambda: httpx.get(f"{url}/v1/jobs/{job}").json()["status"] == "succeeded", TIMEOUT_S)
        filler = fill()
        with attempts.attempt("requests are refused while it is full"):
            until(is_refused, TIMEOUT_S)
            refusal = httpx.post(f"{url}/v1/jobs", json=REQUEST, timeout=TIMEOUT_S)
            assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "queue_unavailable")
            assert "No space left on device" in server.output
            assert httpx.get(f"{url}/v2/health/ready").status_code == 503
            assert server.process.poll() is None
        with attempts.attempt("requests are served again"):
            filler.unlink()
            until(lambda: generate().result(TIMEOUT_S).status_code == 200, TIMEOUT_S)
            assert httpx.get(f"{url}/v1/jobs/{job}").json()["status"] == "succeeded"
        with attempts.attempt("what was accepted before is answered"):
            assert [request.result(TIMEOUT_S).status_code for request in accepted] == [200] * len(accepted)
        assert "Traceback" not in server.output, server.output[-2000:]
        server.process.terminate()
        with attempts.attempt("it ends in good order"):
            assert server.process.wait(TIMEOUT_S) == 0


@pytest.mark.timeout(20 * TIMEOUT_S)
def test_a_full_plan_cache(settings: dict[str, str], tmp_path: Path, attempts: Attempts) -> None:
    """Plan cache on a disk that fills up: a load that must build plans fails for that reason, and nothing else does."""
    repository = tmp_path / "models"
    with (
        small_disk(tmp_path / "cache") as fill,
        msf(
            "serve",
            settings=settings | {"MSF_CACHE_DIR": str(tmp_path / "cache"), "MSF_BACKEND": "openvino"},
            log=tmp_path / "log",
        ) as server,
        httpx.Client(base_url=server.url(), timeout=5 * TIMEOUT_S) as client,
    ):

        def load() -> httpx.Response:
            policy = json.dumps({"version_policy": {"specific": {"versions": [1, 2]}}})
            return client.post("/v2/repository/models/tiny/load", json={"parameters": {"config": policy}})

        save_version(repository, "tiny", "2", tiny_model(seed=2), LABELS)
        filler = fill()
        with attempts.attempt("a load says that the disk is full"):
            answer = load()
            assert answer.status_code == 400
            assert "No space left on device" in answer.json()["error"]
        with attempts.attempt("what is loaded is served"):
            body = {**REQUEST, "model": "tiny:1"}
            assert client.post("/v1/images/generations", json=body).status_code == 200
        with attempts.attempt("a load succeeds once there is room"):
            filler.unlink()
            assert load().status_code == 200
            body = {**REQUEST, "model": "tiny:2"}
            assert client.post("/v1/images/generations", json=body).status_code == 200
        assert "Traceback" not in server.output, server.output[-2000:]
