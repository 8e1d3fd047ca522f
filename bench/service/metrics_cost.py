"""What counting costs: nanoseconds for each request and each step batch, and how long a scrape takes.

python -m bench.service.metrics_cost
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from statistics import median

from prometheus_client import generate_latest

from msf_scheduler.jobs import JobSpec, ModelInfo, Timings
from msf_scheduler.stage import Stage
from msf_scheduler.step_batching import StepBatch
from msf_server.metrics import ROUTES, Metrics
from msf_worker.metrics import WorkerMetrics

ROUNDS, CALLS = 7, 20_000
MODEL = ModelInfo(
    name="model",
    version="1",
    labels=("label",),
    image_size=32,
    image_channels=1,
    default_num_steps=20,
    max_num_steps=100,
    default_guidance_scale=1.25,
    max_guidance_scale=10.0,
)
KEY = MODEL.name, MODEL.version
SPEC = JobSpec(
    model=MODEL.name, version=MODEL.version, label=0, num_samples=1, seed=0, num_steps=20, guidance_scale=1.25
)
BATCH = StepBatch(KEY, Stage.BASE, True, tuple(range(7)), 8, "best")
TIMINGS = Timings(queue_ms=2.0, base_ms=60.0, residual_ms=12.0, decode_ms=2.0, encode_ms=0.5, total_ms=80.0)


def cost_ns(call: Callable[[], object], calls: int = CALLS) -> float:
    """Of one call, the median of some rounds."""
    rounds = []
    for _ in range(ROUNDS):
        started_at = time.perf_counter_ns()
        for _ in range(calls):
            call()
        rounds.append((time.perf_counter_ns() - started_at) / calls)
    return median(rounds)


async def measure() -> list[tuple[str, float]]:
    server = Metrics(asyncio.get_running_loop())
    worker = WorkerMetrics(num_slots=32)
    server.show([KEY])
    worker.serves(KEY)

    def request() -> None:
        server.observe_admission(SPEC)
        server.round_trip_s.labels("admit").observe(0.001)
        server.observe_images(MODEL, 1, cached=False)
        server.observe_request(MODEL, ROUTES[0], "succeeded", 0.08)

    def job() -> None:
        worker.claims.labels(*KEY).inc()
        worker.jobs.labels(*KEY, "succeeded").inc()
        worker.record_timings(KEY, TIMINGS, 1)

    return [
        ("a request, in a server", cost_ns(request)),
        ("a step batch, in a worker", cost_ns(lambda: worker.record_step(BATCH, 0.004))),
        ("a job, in a worker", cost_ns(job)),
        ("a server's page at a scrape", cost_ns(lambda: generate_latest(server.registry), 20)),
        ("a worker's page at a scrape", cost_ns(lambda: generate_latest(worker.registry), 20)),
    ]


def main() -> None:
    print("| what is counted | microseconds |\n|---|---|")
    for name, nanoseconds in asyncio.run(measure()):
        print(f"| {name} | {nanoseconds / 1000:.1f} |")


if __name__ == "__main__":
    main()
