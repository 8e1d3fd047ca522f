"""`make bench-engine`: what a step costs by each backend, beside plain eager torch and the machine's matrix peak."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from bench.engine.methods import PEAK, WAYS, Case, Contender, compete, peak_flops
from bench.engine.operators import print_operators
from bench.engine.sizes import SIZES, msf_size
from bench.engine.variants import print_variants
from bench.local_stack import MODEL
from msf_cli.loading import load_model
from msf_cli.settings import read_settings
from msf_engine.device import cpu_name
from msf_engine.executor import SampleRequest
from msf_engine.generate import generate
from msf_engine.noise import NoiseStream, gaussian_noise
from msf_engine.repository import ModelVersion, read_version
from msf_engine.schedule import timesteps
from msf_scheduler.stage import Stage

BATCH = 16
ISA = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="S,B", help=f"of MSF-<size>/2 at 256²: {', '.join(SIZES)}")
    parser.add_argument("--buckets", default="1,4,16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", default=",".join(WAYS))
    arguments = parser.parse_args()
    buckets = [int(bucket) for bucket in arguments.buckets.split(",")]
    print(f"{_machine()}; {arguments.threads} threads, {arguments.rounds} rounds in turns, {date.today()}\n")
    for size in arguments.sizes.split(","):
        for stage in (Stage.BASE, Stage.RESIDUAL):
            for bucket in buckets:
                case = Case(msf_size(size, stage), stage, bucket, arguments.threads)
                found = compete(case, tuple(arguments.ways.split(",")), arguments.rounds)
                print(f"### MSF-{size}/2 at 256², {stage}, guided, bucket {bucket}\n")
                print(table(case.flops(), bucket, found), flush=True)
        case = Case(msf_size(size, Stage.BASE), Stage.BASE, buckets[-1], arguments.threads)
        print_operators(case, f"MSF-{size}/2, base, bucket {case.bucket}")
    print_variants(Case(msf_size("S", Stage.BASE), Stage.BASE, 4, 1))
    _print_end_to_end(read_version(Path("model_repo"), MODEL), arguments.threads, arguments.rounds)


def table(flops: float, bucket: int, found: dict[str, Contender]) -> str:
    """Each way's step; FLOPs are those of its matrix products."""
    peak = peak_flops() / found[PEAK].median_s
    eager = found["eager fp32"].median_s if "eager fp32" in found else None
    low = min((c.median_s for name, c in found.items() if name.startswith("eager bf16")), default=None)
    rows = [
        f"bf16 matrix peak {peak / 1e9:.0f} GFLOP/s, {flops / 1e9:.2f} GFLOP a step batch\n",
        "| | ms | p99 | samples/s | GFLOP/s | of the peak | × eager fp32 | × best eager bf16 | memory, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, contender in found.items():
        if name == PEAK:
            continue
        step_s = contender.median_s
        rows.append(
            f"| {name} | {1000 * step_s:.1f} | {1000 * contender.p99_s:.1f} | {bucket / step_s:.1f} "
            f"| {flops / step_s / 1e9:.0f} | {100 * flops / step_s / peak:.0f} % | {_ratio(eager, step_s)} "
            f"| {_ratio(low, step_s)} | {contender.memory_mb:.0f} |"
        )
    return "\n".join(rows) + "\n"


def _ratio(other_s: float | None, step_s: float) -> str:
    return "-" if other_s is None else f"{other_s / step_s:.2f}"


def _machine() -> str:
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        flags = []
    isa = next((flag for flag in ISA if flag in flags), platform.machine())
    return f"{cpu_name()}, {os.cpu_count()} cores, {isa}, torch {torch.__version__}"


def _print_end_to_end(version: ModelVersion, num_threads: int, rounds: int) -> None:
    """Images per second of the shipped model: the plans that serve it against a loop as anyone would write it."""
    settings = read_settings(threads=num_threads)
    backend, plans = load_model(settings, version)
    config, model = version.config, version.load()
    steps = config.split_steps(config.default_num_steps)
    scale = config.sampling.default_guidance_scale
    requests = [SampleRequest(index % config.num_classes, 7, index, *steps, scale) for index in range(BATCH)]

    def plain(low: bool) -> Callable[[], object]:
        from msf_engine.model import DecodeModule

        decode = DecodeModule(model).eval()
        labels = torch.tensor([request.label for request in requests])
        null = torch.full_like(labels, config.num_classes)

        def stage_loop(stage: Stage, num_steps: int, cond: torch.Tensor) -> torch.Tensor:
            denoiser = model.denoiser(stage)
            shape = (denoiser.config.in_channels, denoiser.config.size, denoiser.config.size)
            stream = NoiseStream.BASE if stage is Stage.BASE else NoiseStream.RESIDUAL
            x = torch.stack([gaussian_noise(shape, seed=7, index=i, stream=stream) for i in range(BATCH)])
            times = timesteps(num_steps, config.sampling.time_shift)
            levels = torch.full((BATCH,), config.conditioning_noise)
            for t, following in pairwise(times):
                embedding = denoiser.time(torch.full((BATCH,), t), levels)
                given = denoiser(x, embedding, labels, cond)
                unguided = denoiser(x, embedding, null, cond)
                x = x + (following - t) * (unguided + scale * (given - unguided)).float()
            return x

        def run() -> object:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
                base = stage_loop(Stage.BASE, steps[0], torch.empty(BATCH, 0, 1, 1))
                residual = stage_loop(Stage.RESIDUAL, steps[1], base)
                return decode(base, residual)

        return run

    ways: dict[str, Callable[[], object]] = {
        "eager loop, fp32": plain(low=False),
        "eager loop, bf16": plain(low=True),
        f"compiled plans, {backend.name} {backend.precision}": lambda: generate(plans, requests),
    }
    seconds = in_turns(list(ways.values()), rounds)
    print(f"### {version}, {steps[0]}+{steps[1]} steps, {BATCH} images at a time, end to end\n")
    print("| | images/s | × eager fp32 |\n|---|---|---|")
    for name, its_s in zip(ways, seconds, strict=True):
        print(f"| {name} | {BATCH / its_s:.1f} | {seconds[0] / its_s:.2f} |")


def in_turns(ways: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each, run in turns."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds + 1):
        for way, its_s in zip(ways, seconds, strict=True):
            started_at = time.perf_counter()
            way()
            its_s.append(time.perf_counter() - started_at)
    return [median(its_s[1:]) for its_s in seconds]


if __name__ == "__main__":
    main()
