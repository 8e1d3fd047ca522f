"""What `bench.gpu` measures and in which order, and the file that keeps it."""

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
Contender = BackendName | Literal["eager-cast", "inductor-cast"]
Contenders = tuple[tuple[Contender, Precision], ...]
EAGER: Contenders = (("eager", "fp32"), ("eager", "bf16"), ("eager-cast", "bf16"))
CONTENDERS: Contenders = (*EAGER, ("inductor", "bf16"), ("tensorrt", "bf16"), ("tensorrt", "fp16"))
FIRST_BUCKETS, OTHER_BUCKETS = (1, 8, 32), (2, 4, 16, 64)
TINY = "tiny"  # of --cpu
# Denoising steps of an image, of the first and the second stage.
NUM_STEPS: dict[Kind, dict[Stage, int]] = {"MSF": {Stage.BASE: 16, Stage.RESIDUAL: 4}, "DiT": {Stage.BASE: 20}}


@dataclass(frozen=True)
class Network:
    """What is measured: `MSF` has a denoiser for each of two stages, `DiT` one, on the whole latent."""

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

    @property
    def depth(self) -> int:
        """Blocks of all its denoisers: what compiling takes is about proportional to it."""
        return sum(size.depth for size in self.denoisers().values())


@dataclass(frozen=True)
class Cell:
    """One line of the table. `buckets` are those that a backend with one plan for all of them compiles it for."""

    network: Network
    backend: Contender
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


def gpu_cells() -> Iterator[Cell]:
    """All of them, the most telling first."""
    first, every = ("B", "XL"), ("B", "XL", "S", "L")
    for sizes, image_sizes, buckets, contenders in (
        (first, (256,), FIRST_BUCKETS, CONTENDERS),
        (("S", "L"), (256,), FIRST_BUCKETS, CONTENDERS),
        (every, (512,), FIRST_BUCKETS, CONTENDERS),
        (every, (256, 512), OTHER_BUCKETS, CONTENDERS),
        (first, (256,), FIRST_BUCKETS, (("inductor-cast", "bf16"),)),
    ):
        yield from _cells(sizes, image_sizes, buckets, contenders)


def cpu_cells() -> Iterator[Cell]:
    """A few, to see that the script works."""
    return _cells((TINY,), (64,), (1, 2), EAGER)


def _cells(
    sizes: Sequence[str],
    image_sizes: Sequence[int],
    buckets: tuple[int, ...],
    contenders: Contenders,
) -> Iterator[Cell]:
    for image_size in image_sizes:
        for size in sizes:
            for kind in KINDS:
                for backend, precision in contenders:
                    for bucket in buckets:
                        yield Cell(Network(kind, size, image_size), backend, precision, bucket, buckets)


VARIES = "varies"  # instead of a digest: a row depends on the batch


@dataclass(frozen=True)
class Row:
    """What was measured of a cell; `error` says why nothing was. Times are of a step batch with guidance.

    `*_ms` and `*_p99_ms` are wall time from host tensors to host tensors, `*_device_ms` is the device's part of it.
    `*_row` is `trials.Trial.row`: the same in several buckets where a sample's bytes are. `memory_mb` is all that is
    in use on the device, its context included; one plan for all buckets counts as a whole. `of_peak` compares the rate
    of the wall time with `peak_tflops`.
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
    def of(cls, cell: Cell, **measured: str) -> Self:
        return cls(*cell.key, **measured)

    @property
    def network(self) -> Network:
        return Network("MSF" if self.kind == "MSF" else "DiT", self.size, int(self.image_size))

    @property
    def key(self) -> tuple[str, ...]:
        return self.kind, self.size, self.image_size, self.backend, self.precision, self.bucket


_COLUMNS = [field.name for field in fields(Row)]


class Table:
    """Rows in a CSV file, each on the disk as soon as it is known."""

    def __init__(self, path: Path) -> None:
        """Reads what is there; a line that was cut off is dropped. Raises ValueError for another kind of file."""
        self.path = path
        self.rows: list[Row] = []
        if path.exists():
            self._read()
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)
        partial.replace(path)

    def append(self, row: Row) -> None:
        self.rows.append(row)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, _COLUMNS).writerow(asdict(row))
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> None:
        text = self.path.read_text()
        lines = csv.reader(text.splitlines())
        if text and next(lines) != _COLUMNS:
            raise ValueError(f"{self.path} is no table of this benchmark: give another --out")
        complete = [line for line in lines if len(line) == len(_COLUMNS)]
        if text and not text.endswith("\n") and complete and len(text.splitlines()) == len(complete) + 1:
            complete.pop()  # cut off in its last column
        self.rows = [Row(*line) for line in complete]
