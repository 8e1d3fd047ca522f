"""TensorRT engines of the shipped model and of MSF-XL/2 at 256²: sizes, build times and peak memory, without a GPU.

    python -m bench.engine.tensorrt_build

builds each plan in a separate process, so that its peak memory is its own, and prints a row for each; runs none.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from tabulate import tabulate
from torch import nn

from bench.engine.random_models import model_config
from bench.engine.sizes import msf_size, random_denoiser
from bench.local_stack import MODEL
from msf_engine.backends import Precision
from msf_engine.backends.tensorrt import TensorRtBackend
from msf_engine.model import DecodeModule, MsfModel
from msf_engine.plan import Input, PlanSpec, decode_inputs, denoiser_inputs, stage_inputs
from msf_engine.repository import read_version
from msf_scheduler.stage import TWO_STAGES, Stage

MODELS = ("shipped", "XL")
PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16")
BUCKETS = (2, 16, 64)
IMAGE_SIZE = 256


def build(model: str, stage: Stage, precision: Precision, buckets: tuple[int, ...]) -> list[object]:
    """Build one plan and return its row of the table."""
    network, inputs = _shipped(stage) if model == "shipped" else _sized(model, stage)
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    backend = TensorRtBackend(precision, 1)
    spec = PlanSpec(model, "", stage, buckets, inputs)
    with TemporaryDirectory() as folder:
        started_at = time.monotonic()
        backend.compile(spec, network, Path(folder))
        build_s = time.monotonic() - started_at
        size_mb = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return [model, stage.value, backend.precision_of(stage), num_bytes / 1e6, size_mb, build_s, peak_mb]


def _shipped(stage: Stage) -> tuple[nn.Module, tuple[Input, ...]]:
    version = read_version(Path("model_repo"), MODEL)
    return _network(version.load(), stage), stage_inputs(version.config, stage)


def _sized(name: str, stage: Stage) -> tuple[nn.Module, tuple[Input, ...]]:
    if stage is not Stage.DECODE:
        size = msf_size(name, stage, IMAGE_SIZE)
        return random_denoiser(size), denoiser_inputs(size)
    sizes = {each: msf_size("S", each, IMAGE_SIZE) for each in (Stage.BASE, Stage.RESIDUAL)}
    config = model_config(sizes, IMAGE_SIZE)
    return _network(MsfModel(config).requires_grad_(False), stage), decode_inputs(config)


def _network(model: MsfModel, stage: Stage) -> nn.Module:
    return (DecodeModule(model) if stage is Stage.DECODE else model.denoiser(stage)).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help=f"models: {', '.join(MODELS)}")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--buckets", default=",".join(map(str, BUCKETS)))
    arguments = parser.parse_args()
    buckets = tuple(int(bucket) for bucket in arguments.buckets.split(","))
    print(f"{TensorRtBackend(None, 1).fingerprint}; a profile for each of the buckets {arguments.buckets}\n")
    rows = []
    for model in arguments.models.split(","):
        for stage in TWO_STAGES:
            for precision in arguments.precisions.split(","):
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    rows.append(pool.submit(build, model, stage, precision, buckets).result())
                print(*rows[-1], file=sys.stderr, flush=True)
    head = ["model", "plan", "precision", "fp32 weights, MB", "engine, MB", "seconds", "peak memory, MB"]
    print(tabulate(rows, head, tablefmt="github", floatfmt=("", "", "", ".0f", ".1f", ".0f", ".0f")))


if __name__ == "__main__":
    main()
