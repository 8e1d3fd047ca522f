"""How fast MSF and a single-stage DiT denoise on a GPU, by every backend: `make bench-gpu`.

Needs torch, numpy and this package, nothing else; TensorRT is measured where it can be loaded. A line is written to the
table after each cell, and cells that are in it are not measured again: call it until it says that nothing is left.
With `--minutes 0` it only sums up.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from bench.engine.flops import matmul_peak
from bench.gpu.backends import Backends
from bench.gpu.cells import Cell, Row, Table, cpu_cells, gpu_cells
from bench.gpu.measure import Bench, Effort
from bench.gpu.report import summary
from msf_engine.device import cpu_name

# What the first cell of a backend is thought to take, seconds; afterwards its slowest so far.
FIRST_GUESS_S: dict[str, float] = {
    "eager": 10.0, "eager-cast": 10.0, "inductor": 60.0, "inductor-cast": 60.0, "tensorrt": 90.0,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.compare", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="start no cell that would not end in this time (8)")
    parser.add_argument("--out", type=Path, default=Path("bench_gpu.csv"), help="the table (bench_gpu.csv)")
    parser.add_argument("--summary", type=Path, help="also write the summary there")
    parser.add_argument("--cpu", action="store_true", help="tiny networks on the CPU, to see that the script works")
    options = parser.parse_args(arguments)
    started_at = time.monotonic()
    if not options.cpu and not torch.cuda.is_available():
        print("bench-gpu needs an NVIDIA GPU that torch can use, and finds none", file=sys.stderr)
        return 1
    if options.cpu and torch.cuda.is_available():
        print("--cpu is for machines without a GPU; CUDA_VISIBLE_DEVICES= hides it", file=sys.stderr)
        return 1
    device = torch.device("cpu" if options.cpu else "cuda")
    hardware = describe(device)
    try:
        table = Table(options.out)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if any(row.hardware != hardware for row in table.rows):
        print(f"{options.out} was measured on other hardware or versions: give another --out", file=sys.stderr)
        return 1
    effort = Effort(min_repeats=3, max_repeats=3, seconds=0.1) if options.cpu else Effort()
    bench = Bench(device, matmul_peak(device, 256 if options.cpu else 8192), hardware, effort)
    run(cpu_cells() if options.cpu else gpu_cells(), table, bench, started_at + 60 * options.minutes)
    text = summary(table.rows)
    print(text)
    if options.summary:
        options.summary.write_text(text)
    return 0


def run(cells: Iterable[Cell], table: Table, bench: Bench, deadline: float) -> None:
    """Measure what is not in the table yet, until the next cell would end after `deadline` (of `time.monotonic`)."""
    known = {row.key for row in table.rows}
    backends = Backends()
    for cell in cells:
        if cell.key in known:
            continue
        backend = backends.get(cell.backend, cell.precision)
        if backend is None:
            continue
        expected = expected_s(cell, table.rows)
        if time.monotonic() + expected > deadline:
            print(f"stopped before {cell}: no time left for about {expected:.0f} s", file=sys.stderr)
            return
        row = bench.measure(cell, backend)
        table.append(row)
        print(f"{cell}: {row.error or f'{row.images_per_s} images/s'} ({row.cell_s} s)", file=sys.stderr)
        if not bench.is_device_usable():
            print("stopped: the device answers nothing after this error; run it again to go on", file=sys.stderr)
            return
    print("nothing is left to measure", file=sys.stderr)


def expected_s(cell: Cell, rows: Iterable[Row]) -> float:
    """By the slowest cell of the same backend and precision and the networks' depths; without one, a guess."""
    per_layer = [
        float(row.cell_s) / row.network.depth
        for row in rows
        if (row.backend, row.precision) == (cell.backend, cell.precision) and not row.error
    ]
    return max(per_layer) * cell.network.depth if per_layer else FIRST_GUESS_S[cell.backend]


def describe(device: torch.device) -> str:
    """The hardware and what drives it."""
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
