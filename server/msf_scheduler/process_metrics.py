"""Prometheus metrics that servers and workers have in common."""

from __future__ import annotations

import asyncio
import platform
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from msf_scheduler.claims import SweepResult

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0)
OTHER = "other"


class BoundedLabel:
    """Values of a label that operators choose: the first `limit` of them, and `other` for those that come later."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: set[str] = set()

    def of(self, value: str) -> str:
        """Return the label's value for `value`."""
        if value not in self._values:
            if len(self._values) >= self._limit:
                return OTHER
            self._values.add(value)
        return value


def exemplar(trace_id: str | None) -> dict[str, str] | None:
    """Return the exemplar that leads from an observation to its trace."""
    return {"trace_id": trace_id} if trace_id else None


class ProcessMetrics:
    """Registry of one process, with its build, and counters of the jobs that its sweeps and claims ended."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series per metric, which nothing reads
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = self._gauge("msf_build_info", "1, with the release and Python's version", ("version", "python"))
        build.labels(version("msf-serve"), platform.python_version()).set(1)
        self.reclaims = self._counter("msf_reclaims", "Jobs reclaimed from dead workers, by this process")
        self.poisoned = self._counter("msf_jobs_poisoned", "Jobs failed because they kill workers, by this process")
        self.expired = self._counter("msf_jobs_expired_queued", "Queued jobs that expired, by this process")

    def count_tasks(self, loop: asyncio.AbstractEventLoop) -> None:
        """Report the number of the event loop's tasks at every scrape."""
        self._gauge("msf_asyncio_tasks", "Tasks in the event loop").set_function(lambda: len(asyncio.all_tasks(loop)))

    def observe_sweep(self, swept: SweepResult) -> None:
        """Count the jobs that a sweep requeued or ended."""
        self.reclaims.inc(swept.num_requeued)
        self.poisoned.inc(swept.num_poisoned)
        self.expired.inc(swept.num_expired)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...] = LATENCY_BUCKETS_S
    ) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)
