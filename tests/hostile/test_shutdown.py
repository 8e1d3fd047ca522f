"""Signals to a service with long requests under way: whoever waits is answered, and nothing is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from bench.local_stack import Msf, are_gone, read_metric, until
from msf_scheduler.embedded_valkey import EmbeddedValkey
from tests.cli.support import msf, service_settings
from tests.hostile.conftest import Attempts
from tests.models import tiny_repository

LONG = {"prompt": "star", "n": 64, "num_steps": 50}
TIMEOUT_S = 100.0
INTERRUPT = signal.SIGINT


def nothing(server: Msf) -> None:
    """Leave the service as it is."""


def kill_valkey(server: Msf) -> None:
    server.processes()["valkey"].kill()


def stop_worker(server: Msf) -> None:
    os.kill(server.processes()["worker"].pid, signal.SIGSTOP)


@pytest.fixture
def settings(plan_cache_dir: Path, tmp_path: Path) -> dict[str, str]:
    tiny_repository(tmp_path / "models")
    return service_settings(tmp_path / "models", plan_cache_dir, tmp_path / "data") | {"MSF_DRAIN_TIMEOUT_S": "60"}


def shut_down(
    settings: Mapping[str, str],
    folder: Path,
    harm: Callable[[Msf], None] = nothing,
    signals: tuple[signal.Signals, ...] = (INTERRUPT,),
) -> int:
    """Send the signals while requests are under way; check the answers and return the exit status."""
    folder.mkdir()
    settings = {**settings, "MSF_DATA_DIR": str(folder / "data")}
    with msf("serve", settings=settings, log=folder / "log") as server, ThreadPoolExecutor() as threads:
        url = server.url()
        job = httpx.post(f"{url}/v1/jobs", json=LONG, timeout=TIMEOUT_S).json()["id"]
        requests = [
            threads.submit(httpx.post, f"{url}/v1/images/generations", json=body, timeout=TIMEOUT_S)
            for body in (LONG, {**LONG, "stream": True})
        ]
        events = threads.submit(httpx.get, f"{url}/v1/jobs/{job}/events", timeout=TIMEOUT_S)
        until(lambda: sum(read_metric(url, f"msf_jobs_{state}") for state in ("queued", "running")) == 3)
        family = server.descendants()
        harm(server)
        for number in signals:
            server.process.send_signal(number)
            until(lambda: "draining" in server.output)  # the kernel makes one of two equal signals that are pending
        status = server.process.wait(TIMEOUT_S)
        until(lambda: are_gone(family), 15.0)
        answer, stream = [request.result() for request in requests]
        assert answer.status_code in (200, 503), answer.text[:200]
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] in ("draining", "queue_unavailable")
            assert "event: error" in stream.text
        assert "event: " in events.result().text
        assert "Traceback" not in server.output, server.output[-2000:]
    with (
        EmbeddedValkey(folder / "data") as valkey,
        msf("jobs", "show", job, settings={"MSF_REDIS_URL": valkey.url}, log=folder / "job") as show,
    ):
        assert show.wait() == 0, show.output
        assert '"state": "failed"' not in show.output
    return status


def test_shutdown(attempts: Attempts, settings: dict[str, str], tmp_path: Path) -> None:
    """Signals while requests are under way, with a worker that does not answer."""
    with attempts.attempt("SIGINT twice"):
        assert shut_down(settings, tmp_path / "twice", nothing, (INTERRUPT, INTERRUPT)) == 130
    with attempts.attempt("a stopped worker, SIGINT twice"):
        assert shut_down(settings, tmp_path / "stopped_twice", stop_worker, (INTERRUPT, INTERRUPT)) == 130


def test_shutdown_of_odd_services(attempts: Attempts, settings: dict[str, str], tmp_path: Path) -> None:
    """Signals to services of three workers, whose Valkey was killed, whose terminal closes."""
    settings = settings | {"MSF_BACKEND": "noop", "MSF_SLOTS": "8"}
    with attempts.attempt("three workers"):
        assert shut_down(settings | {"MSF_WORKERS": "3"}, tmp_path / "three") == 0
    with attempts.attempt("Valkey was killed"):
        assert shut_down(settings, tmp_path / "valkey", kill_valkey) in (0, 130)
    with attempts.attempt("SIGHUP"):
        assert shut_down(settings, tmp_path / "hangup", signals=(signal.SIGHUP,)) == 0
    with attempts.attempt("SIGHUP under nohup"):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # children inherit it, as from nohup
        try:
            with msf("serve", settings=settings, log=tmp_path / "log") as server:
                url = server.url()
                os.killpg(server.process.pid, signal.SIGHUP)
                assert httpx.post(f"{url}/v1/images/generations", json={"prompt": "star"}).status_code == 200
                server.process.terminate()
                assert server.process.wait(TIMEOUT_S) == 0
        finally:
            signal.signal(signal.SIGHUP, before)
