"""Speed of MSF and a single-stage DiT on an NVIDIA GPU, with every backend. It has not run on one yet.

    python -m bench.gpu [--minutes 8]

needs torch, diffusers and pydantic; TensorRT is measured if it can be loaded. Appends each cell's result to a file
and skips the cells that it has, so repeat the command until nothing is left to measure. Prints a summary of all
results; with `--minutes 0` nothing else.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch

from bench.engine.backends import MethodName, get_method
from bench.engine.flops import matmul_peak
from bench.gpu.cells import GpuCell, ResultFile, cpu_cells, gpu_cells, short_cells
from bench.gpu.measure import Effort, GpuBench
from bench.gpu.report import summary
from msf_engine.backends import Backend, Precision
from msf_engine.device import cpu_name


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8, help="start no cell after this time (default: 8)")
    parser.add_argument("--out", type=Path, default=Path("bench_gpu.jsonl"), help="results (default: bench_gpu.jsonl)")
    parser.add_argument("--summary", type=Path, help="file for the summary")
    parser.add_argument("--short", action="store_true", help="measure only eager and inductor, at 256²")
    parser.add_argument("--cpu", action="store_true", help="test the script with tiny networks on the CPU")
    options = parser.parse_args(arguments)
    started_at = time.monotonic()
    try:
        device = select_device(on_cpu=options.cpu)
        hardware = describe(device)
        file = open_results(options.out, hardware)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    effort = Effort(seconds=0.05, loop_s=0.1) if options.cpu else Effort()
    bench = GpuBench(device, matmul_peak(device, 256 if options.cpu else 8192), hardware, effort)
    cells = cpu_cells() if options.cpu else short_cells() if options.short else gpu_cells()
    run(cells, file, bench, started_at + 60 * options.minutes)
    text = summary(file.results)
    print(text)
    if options.summary:
        options.summary.write_text(text)
    return 0


def select_device(*, on_cpu: bool) -> torch.device:
    """Return the device. Raises ValueError without a GPU, or with one for a run on the CPU."""
    if not on_cpu and not torch.cuda.is_available():
        raise ValueError("bench-gpu needs an NVIDIA GPU that torch can use; none found")
    if on_cpu and torch.cuda.is_available():
        raise ValueError("--cpu is for machines without a GPU; hide it with CUDA_VISIBLE_DEVICES=")
    return torch.device("cpu" if on_cpu else "cuda")


def open_results(path: Path, hardware: str) -> ResultFile:
    """Return the results so far. Raises ValueError if they are of other hardware, or another kind of file."""
    file = ResultFile(path)
    if any(result.hardware != hardware for result in file.results):
        raise ValueError(f"{path} was measured on other hardware or versions; choose another --out")
    return file


@cache
def load_backend(name: MethodName, precision: Precision) -> Backend | None:
    """Return the backend, or print why it cannot be measured and return None."""
    try:
        backend = get_method(name, precision, torch.get_num_threads())
    except Exception as error:  # TensorRT without its libraries raises whatever its loader meets
        print(f"{name} {precision} is not measured: {error}", file=sys.stderr)
        return None
    if not backend.runs_here:
        print(f"{name} {precision} is not measured: it can compile here, but not run", file=sys.stderr)
        return None
    return backend


def run(cells: Iterable[GpuCell], file: ResultFile, bench: GpuBench, deadline: float) -> None:
    """Measure the cells that the file lacks, until `deadline` (of `time.monotonic`)."""
    measured = {str(result) for result in file.results}
    for cell in cells:
        backend = None if str(cell) in measured else load_backend(cell.backend, cell.precision)
        if backend is None:
            continue
        if time.monotonic() > deadline:
            print(f"time is up before {cell}; repeat the command to resume", file=sys.stderr)
            return
        result = bench.measure(cell, backend)
        file.append(result)
        outcome = result.failure or f"{result.denoised_per_s:.4g} denoised per second"
        print(f"{cell}: {outcome} ({result.cell_s:.1f} s)", file=sys.stderr)
        if not bench.is_device_usable():
            print("stopped: the device does not respond after this error; repeat the command", file=sys.stderr)
            return
    print("nothing is left to measure", file=sys.stderr)


def describe(device: torch.device) -> str:
    """Return hardware, driver and versions."""
    if device.type == "cpu":
        return f"{cpu_name()}, torch {torch.__version__}"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        driver = "unknown"
    properties = torch.cuda.get_device_properties(0)
    return (
        f"{properties.name} {properties.total_memory / 2**30:.0f} GiB, driver {driver}, CUDA {torch.version.cuda}, "
        f"torch {torch.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
