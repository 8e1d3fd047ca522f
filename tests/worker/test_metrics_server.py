from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from msf_worker.metrics_server import MetricsServer


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    Counter("msf_jobs", "Jobs.", registry=registry).inc()
    server = MetricsServer(registry, 0)
    yield server
    server.close()


def test_a_worker_is_ready_once_it_can_serve(server: MetricsServer) -> None:
    url = f"http://127.0.0.1:{server.port}"
    assert httpx.get(f"{url}/live").status_code == 200
    assert httpx.get(f"{url}/ready").status_code == 503
    server.is_ready = True
    assert httpx.get(f"{url}/ready").status_code == 200
    assert "msf_jobs_total 1.0" in httpx.get(f"{url}/metrics").text
    assert httpx.get(f"{url}/other").status_code == 404
