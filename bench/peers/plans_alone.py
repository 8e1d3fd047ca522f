"""Speed of the plans with no server around them, in a process of its own: prints JSON.

    python -m bench.peers.plans_alone SECONDS

It runs full batches of requests at the model's defaults, and once the mixed load, grouped by steps as in the peers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence

from bench.mixed_load import MIX
from bench.peers.client import request_fields
from bench.peers.pipeline import Generate, PipelineOptions, job_spec, load_engine, samples_of
from msf_cli.load.mix import Kind, PlannedRequest, plan_typical
from msf_engine.executor import SampleRequest
from msf_engine.repository import ModelVersion, read_version

BATCH_SIZES = (16, 32)  # the peers' and the largest bucket
NUM_MIXED = 90  # a multiple of 90: the mix's exact proportions


def images_per_s(engine: Generate, samples: Sequence[SampleRequest], duration_s: float) -> float:
    """Generate the samples again and again for `duration_s`, after once to warm up."""
    engine(samples)
    num_images, started_at = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - started_at) < duration_s:
        engine(samples)
        num_images += len(samples)
    return num_images / elapsed_s


def mixed_requests_per_s(engine: Generate, version: ModelVersion) -> float:
    requests = plan_typical(NUM_MIXED, MIX, version.config.num_classes, seed=0)
    samples = planned_samples(requests, version)
    started_at = time.perf_counter()
    engine(samples)
    return NUM_MIXED / (time.perf_counter() - started_at)


def planned_samples(requests: Iterable[PlannedRequest], version: ModelVersion) -> list[SampleRequest]:
    specs = [job_spec(request_fields(request), version) for request in requests]
    return [sample for spec in specs for sample in samples_of(spec, version)]


def main() -> None:
    duration_s = float(sys.argv[1])
    options = PipelineOptions.from_environment()
    version = read_version(options.settings.model_repo, options.model)
    engine = load_engine(version, options.settings)
    rates = {}
    for size in BATCH_SIZES:
        requests = [PlannedRequest(0.0, Kind(), seed % version.config.num_classes, seed) for seed in range(size)]
        rates[size] = images_per_s(engine, planned_samples(requests, version), duration_s / len(BATCH_SIZES))
    print(json.dumps({"images_per_s": rates, "mixed_requests_per_s": mixed_requests_per_s(engine, version)}))


if __name__ == "__main__":
    main()
