"""Backends compared on one evaluation of a denoiser, and end to end on the shipped model.

    python -m bench.engine.compare

prints, for each size, stage and bucket, the time of a batch of rows with each backend next to plain eager torch and the
machine's peak of bf16 matrix products; then images per second of the shipped model.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import torch
from tabulate import tabulate

from bench.engine.methods import METHODS, PEAK, MethodProcess, StepCase, measure, peak_flops
from bench.engine.sizes import SIZES, msf_size
from bench.local_stack import MODEL
from msf_cli.loading import load_model
from msf_cli.settings import read_settings
from msf_engine.device import cpu_name
from msf_engine.executor import SampleRequest
from msf_engine.generate import generate
from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion, read_version
from msf_scheduler.stage import Stage

NUM_IMAGES = 16
ISA = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


def step_table(flops: float, bucket: int, processes: Mapping[str, MethodProcess]) -> str:
    """Return a line per method; `flops` are those of a batch's matrix products."""
    peak = peak_flops() / median(processes[PEAK].seconds)
    medians = {name: median(process.seconds) for name, process in processes.items() if name != PEAK}
    eager_s = medians.get("eager fp32")
    eager_bf16_s = min((step_s for name, step_s in medians.items() if name.startswith("eager bf16")), default=None)
    rows = [
        [
            name,
            f"{1000 * step_s:.1f}",
            f"{1000 * np.percentile(processes[name].seconds, 99):.1f}",
            f"{bucket / step_s:.1f}",
            f"{flops / step_s / 1e9:.0f}",
            f"{flops / step_s / peak:.0%}",
            "-" if eager_s is None else f"{eager_s / step_s:.2f}",
            "-" if eager_bf16_s is None else f"{eager_bf16_s / step_s:.2f}",
            f"{processes[name].memory_mb:.0f}",
        ]
        for name, step_s in medians.items()
    ]
    head = ["", "ms", "p99", "rows/s", "GFLOP/s", "of peak", "× eager fp32", "× best eager bf16", "memory, MB"]
    table = tabulate(rows, head, tablefmt="github", disable_numparse=True)
    return f"bf16 matrix peak {peak / 1e9:.0f} GFLOP/s, {flops / 1e9:.2f} GFLOP per batch\n\n{table}\n"


def print_end_to_end(version: ModelVersion, num_threads: int, num_rounds: int) -> None:
    """Print images per second of the shipped model with eager torch and with the default backend, in turns."""
    config = version.config
    steps, scale = config.split_steps(config.default_num_steps), config.sampling.default_guidance_scale
    requests = [SampleRequest(index % config.num_classes, 7, index, steps, scale) for index in range(NUM_IMAGES)]
    plans: dict[str, ModelPlans] = {}
    seconds: dict[str, list[float]] = defaultdict(list)
    for options in ({"backend": "eager", "precision": "fp32"}, {"backend": "eager", "precision": "bf16"}, {}):
        backend, model_plans = load_model(read_settings(threads=num_threads, **options), version)
        plans[f"{backend.name} {backend.precision}"] = model_plans
    for _ in range(num_rounds + 1):
        for name, model_plans in plans.items():
            started_at = time.perf_counter()
            generate(model_plans, requests)
            seconds[name].append(time.perf_counter() - started_at)
    medians = {name: median(times[1:]) for name, times in seconds.items()}
    rows = [[name, NUM_IMAGES / median_s, medians["eager fp32"] / median_s] for name, median_s in medians.items()]
    print(f"### {version}, {'+'.join(map(str, steps))} steps, {NUM_IMAGES} images at a time, end to end\n")
    print(tabulate(rows, ["", "images/s", "× eager fp32"], tablefmt="github", floatfmt=("", ".1f", ".2f")))


def describe_machine() -> str:
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        flags = []
    isa = next((flag for flag in ISA if flag in flags), platform.machine())
    return f"{cpu_name()}, {os.cpu_count()} cores, {isa}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="S,B", help=f"sizes of MSF-<size>/2 at 256²: {', '.join(SIZES)}")
    parser.add_argument("--buckets", default="1,4,16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", default=",".join(METHODS))
    arguments = parser.parse_args()
    buckets = [int(bucket) for bucket in arguments.buckets.split(",")]
    print(f"{describe_machine()}; {arguments.threads} threads, {arguments.rounds} rounds in turns, {date.today()}\n")
    for size in arguments.sizes.split(","):
        for stage in (Stage.BASE, Stage.RESIDUAL):
            for bucket in buckets:
                case = StepCase(msf_size(size, stage), stage, bucket, arguments.threads)
                processes = measure(case, arguments.methods.split(","), arguments.rounds)
                print(f"### MSF-{size}/2 at 256², {stage}, {bucket} rows\n")
                print(step_table(case.flops(), bucket, processes), flush=True)
    print_end_to_end(read_version(Path("model_repo"), MODEL), arguments.threads, arguments.rounds)


if __name__ == "__main__":
    main()
