"""Names of this repository's metrics, and names in a query."""

from __future__ import annotations

import asyncio
import re
from functools import cache

from prometheus_client import CollectorRegistry

from msf_server.metrics import Metrics
from msf_worker.gpu_metrics import GpuCollector
from msf_worker.metrics import WorkerMetrics
from tests.worker.test_gpu_metrics import UUID, FakeNvml


@cache
def metric_names() -> frozenset[str]:
    """Return the names of all series that servers and workers expose, and of those that Prometheus adds."""
    loop = asyncio.new_event_loop()
    worker = WorkerMetrics()
    worker.count_tasks(loop)
    worker.watch_work(lambda: 0.0)
    worker.registry.register(GpuCollector(FakeNvml(), UUID))
    names = {"up"}
    for registry in (Metrics(loop).registry, worker.registry):
        names |= _names(registry)
    loop.close()
    return frozenset(names)


def _names(registry: CollectorRegistry) -> set[str]:
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    return {metric.name + suffix for metric in registry.collect() for suffix in suffixes[metric.type]}


def names_in(promql: str) -> set[str]:
    """Return the names of this repository's series in a query, except recorded ones, whose names have colons."""
    return set(re.findall(r"\b(?:msf|process)_\w+(?![\w:])", promql))
