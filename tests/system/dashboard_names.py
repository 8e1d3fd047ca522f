"""Which metrics there are, and which a query is of."""

from __future__ import annotations

import asyncio
import re
from functools import cache

from prometheus_client import CollectorRegistry

from msf_server.metrics import Metrics
from msf_worker.metrics import WorkerMetrics


@cache
def metric_names() -> frozenset[str]:
    """Of all series that servers and workers show, and those that Prometheus adds."""
    loop = asyncio.new_event_loop()
    worker = WorkerMetrics(num_slots=1)
    worker.count_tasks(loop)
    worker.watch_gpu(lambda: (1, 2))
    found = {"up"}
    for registry in (Metrics(loop).registry, worker.registry):
        found |= _names(registry)
    loop.close()
    return frozenset(found)


def _names(registry: CollectorRegistry) -> set[str]:
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    return {metric.name + suffix for metric in registry.collect() for suffix in suffixes[metric.type]}


def names_in(promql: str) -> set[str]:
    """Of what this repository's processes show; recorded series, which have colons, are not among them."""
    return set(re.findall(r"\b(?:msf|process)_\w+(?![\w:])", promql))
