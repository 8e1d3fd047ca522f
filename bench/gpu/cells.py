"""Cells of the GPU benchmark in order of measurement, and the CSV file that keeps their results."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal, Self

from bench.engine.sizes import DenoiserSize, dit_size, msf_size
from msf_engine.backends import BackendName, Precision
from msf_scheduler.stage import Stage

Kind = Literal["MSF", "DiT"]
KINDS: tuple[Kind, ...] = ("MSF", "DiT")
# `*-cast`: the denoiser in low precision as a whole.
GpuMethod = BackendName | Literal["eager-cast", "inductor-cast"]
GpuMethods = tuple[tuple[GpuMethod, Precision], ...]
EAGER: GpuMethods = (("eager", "fp32"), ("eager", "bf16"), ("eager-cast", "bf16"))
METHODS: GpuMethods = (*EAGER, ("inductor", "bf16"), ("tensorrt", "bf16"), ("tensorrt", "fp16"))
FIRST_BUCKETS, OTHER_BUCKETS = (1, 8, 32), (2, 4, 16, 64)
TINY = "tiny"  # with --cpu
# Denoising steps per image, by stage.
NUM_STEPS: dict[Kind, dict[Stage, int]] = {"MSF": {Stage.BASE: 16, Stage.RESIDUAL: 4}, "DiT": {Stage.BASE: 20}}
VARIES = "varies"  # instead of a digest: a row depends on its batch


@dataclass(frozen=True)
class GpuNetwork:
    """Network to measure: MSF has a denoiser for each of two stages, DiT one, on the whole latent."""

    kind: Kind
    size: str
    image_size: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.size}/2 {self.image_size}²"

    def denoisers(self) -> dict[Stage, DenoiserSize]:
        name = "S" if self.size == TINY else self.size
        if self.kind == "DiT":
            sizes = {Stage.BASE: dit_size(name, self.image_size)}
        else:
            sizes = {stage: msf_size(name, stage, self.image_size) for stage in (Stage.BASE, Stage.RESIDUAL)}
        if self.size != TINY:
            return sizes
        return {stage: replace(size, width=64, depth=2, num_heads=2) for stage, size in sizes.items()}


@dataclass(frozen=True)
class GpuCell:
    """One measurement. A backend with one plan for all buckets compiles it for `buckets`."""

    network: GpuNetwork
    backend: GpuMethod
    precision: Precision
    bucket: int
    buckets: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.network} {self.backend} {self.precision} x{self.bucket}"

    @property
    def key(self) -> tuple[str, ...]:
        network = self.network
        parts = (network.kind, network.size, network.image_size, self.backend, self.precision, self.bucket)
        return tuple(str(part) for part in parts)


def gpu_cells() -> Iterator[GpuCell]:
    """Yield all cells, the most informative first."""
    first, every = ("B", "XL"), ("B", "XL", "S", "L")
    for sizes, image_sizes, buckets, methods in (
        (first, (256,), FIRST_BUCKETS, METHODS),
        (("S", "L"), (256,), FIRST_BUCKETS, METHODS),
        (every, (512,), FIRST_BUCKETS, METHODS),
        (every, (256, 512), OTHER_BUCKETS, METHODS),
        (first, (256,), FIRST_BUCKETS, (("inductor-cast", "bf16"),)),
    ):
        yield from _cells(sizes, image_sizes, buckets, methods)


def cpu_cells() -> Iterator[GpuCell]:
    """Yield a few cells that exercise the script."""
    return _cells((TINY,), (64,), (1, 2), EAGER)


def _cells(
    sizes: Sequence[str], image_sizes: Sequence[int], buckets: tuple[int, ...], methods: GpuMethods
) -> Iterator[GpuCell]:
    for image_size in image_sizes:
        for size in sizes:
            for kind in KINDS:
                for backend, precision in methods:
                    for bucket in buckets:
                        yield GpuCell(GpuNetwork(kind, size, image_size), backend, precision, bucket, buckets)


@dataclass(frozen=True)
class CellRow:
    """Result of a cell, as text; `error` says why there is none. Times are of a guided step batch.

    `*_ms` and `*_p99_ms` are wall time from host tensors to host tensors, `*_device_ms` the device's part of it.
    `*_row` is the digest of a sample's bytes: equal in buckets that are strict together. `memory_mb` is all memory in
    use on the device, including its context. `of_peak` is the rate by wall time over `peak_tflops`.
    """

    kind: str
    size: str
    image_size: str
    backend: str
    precision: str
    bucket: str
    error: str = ""
    base_ms: str = ""
    base_p99_ms: str = ""
    base_device_ms: str = ""
    residual_ms: str = ""
    residual_p99_ms: str = ""
    residual_device_ms: str = ""
    images_per_s: str = ""
    tflops: str = ""
    peak_tflops: str = ""
    of_peak: str = ""
    memory_mb: str = ""
    base_error: str = ""
    residual_error: str = ""
    tolerance: str = ""
    base_row: str = ""
    residual_row: str = ""
    compile_s: str = ""
    cell_s: str = ""
    hardware: str = ""
    fingerprint: str = ""

    @classmethod
    def of(cls, cell: GpuCell, **values: str) -> Self:
        return cls(*cell.key, **values)

    @property
    def key(self) -> tuple[str, ...]:
        return self.kind, self.size, self.image_size, self.backend, self.precision, self.bucket


COLUMNS = [field.name for field in fields(CellRow)]


class CellTable:
    """Rows in a CSV file, each on disk as soon as it is measured."""

    def __init__(self, path: Path) -> None:
        """Read the rows of `path`, without a truncated last line. Raises ValueError if it is another kind of file."""
        self.path = path
        self.rows: list[CellRow] = []
        if path.exists():
            self._read()
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)
        partial.replace(path)

    def append(self, row: CellRow) -> None:
        self.rows.append(row)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(asdict(row))
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> None:
        text = self.path.read_text()
        complete, _, _ = text.rpartition("\n")
        lines = list(csv.reader(complete.splitlines()))
        if text and lines[:1] != [COLUMNS]:
            raise ValueError(f"{self.path} is not a table of this benchmark; choose another --out")
        self.rows = [CellRow(*line) for line in lines[1:]]
