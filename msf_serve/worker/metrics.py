"""What a worker counts. Labels are model and version, never an id."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from msf_serve.scheduler.leases import Swept
from msf_serve.scheduler.policy import StepBatch

_STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_MODEL = ("model", "version")
_STAGE = ("model", "version", "stage")


class WorkerMetrics:
    """One registry for one worker process."""

    def __init__(self, num_slots: int) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        self.step_seconds = Histogram(
            "msf_step_batch_seconds", "Time of one step batch.", _STAGE, buckets=_STEP_SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "msf_step_batch_size", "Samples in a step batch.", _STAGE, buckets=_BATCH_SIZES, registry=registry
        )
        self.steps = Counter("msf_steps", "Sample steps made.", _STAGE, registry=registry)
        self.padded_rows = Counter("msf_padded_rows", "Rows computed for nobody.", _STAGE, registry=registry)
        self.batches = Counter(
            "msf_step_batches", "Step batches by why they were chosen.", (*_STAGE, "reason"), registry=registry
        )
        self.jobs = Counter("msf_worker_jobs", "Jobs that ended here.", (*_MODEL, "outcome"), registry=registry)
        self.claims = Counter("msf_claims", "Jobs claimed.", _MODEL, registry=registry)
        self.reclaims = Counter("msf_reclaims", "Jobs taken back from lost workers, by this one.", registry=registry)
        self.poisoned = Counter("msf_jobs_poisoned", "Jobs given up that killed workers.", registry=registry)
        self.expired = Counter("msf_jobs_expired_queued", "Jobs dropped in the queue, past hope.", registry=registry)
        self.slots_in_use = Gauge("msf_slots_in_use", "Slots that hold a sample.", _MODEL, registry=registry)
        Gauge("msf_slots", "Slots for each model.", registry=registry).set(num_slots)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count the tasks of the event loop at every scrape."""
        tasks = Gauge("msf_asyncio_tasks", "Tasks of the event loop.", registry=self.registry)
        tasks.set_function(lambda: len(asyncio.all_tasks(loop)))

    def record_step(self, batch: StepBatch, seconds: float) -> None:
        labels = (*batch.model, batch.stage)
        size = len(batch.slots)
        self.step_seconds.labels(*labels).observe(seconds)
        self.batch_size.labels(*labels).observe(size)
        self.steps.labels(*labels).inc(size)
        self.padded_rows.labels(*labels).inc(batch.bucket - size)
        self.batches.labels(*labels, batch.reason).inc()

    def record_sweep(self, swept: Swept) -> None:
        self.reclaims.inc(swept.num_requeued)
        self.poisoned.inc(swept.num_poisoned)
        self.expired.inc(swept.num_expired)
