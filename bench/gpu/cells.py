"""Cells of the GPU benchmark in order of measurement, and the file that keeps their results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from bench.engine.backends import MethodName
from bench.engine.random_models import NUM_STEPS as MSF_STEPS
from bench.engine.sizes import DenoiserSize, dit_size, msf_size
from msf_engine.backends import Precision
from msf_scheduler.stage import Stage

Kind = Literal["MSF", "DiT"]
KINDS: tuple[Kind, ...] = ("MSF", "DiT")
GpuMethods = tuple[tuple[MethodName, Precision], ...]
EAGER: GpuMethods = (("eager", "fp32"), ("eager", "bf16"), ("eager-cast", "bf16"))
METHODS: GpuMethods = (*EAGER, ("inductor", "bf16"), ("tensorrt", "bf16"), ("tensorrt", "fp16"))
FIRST_BUCKETS, OTHER_BUCKETS = (2, 16, 64), (4, 8, 32, 128)  # rows: two for each sample
TINY = "tiny"  # with --cpu
# Denoising steps per image, by stage.
NUM_STEPS: dict[Kind, dict[Stage, int]] = {"MSF": MSF_STEPS, "DiT": {Stage.BASE: sum(MSF_STEPS.values())}}
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
    """One measurement: guided samples in batches of `bucket` rows. Plans are compiled for all `buckets`."""

    network: GpuNetwork
    backend: MethodName
    precision: Precision
    bucket: int
    buckets: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.network} {self.backend} {self.precision} x{self.bucket}"


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


def short_cells() -> Iterator[GpuCell]:
    """Yield the cells of a check of a few minutes."""
    methods: GpuMethods = (("eager", "bf16"), ("inductor", "bf16"))
    for kind in KINDS:
        yield from _cells(("B", "XL"), (256,), FIRST_BUCKETS, methods, (kind,))


def cpu_cells() -> Iterator[GpuCell]:
    """Yield a few cells that exercise the script."""
    return _cells((TINY,), (64,), (2, 4), EAGER)


def _cells(
    sizes: Sequence[str],
    image_sizes: Sequence[int],
    buckets: tuple[int, ...],
    methods: GpuMethods,
    kinds: tuple[Kind, ...] = KINDS,
) -> Iterator[GpuCell]:
    for image_size in image_sizes:
        for size in sizes:
            for kind in kinds:
                for backend, precision in methods:
                    for bucket in buckets:
                        yield GpuCell(GpuNetwork(kind, size, image_size), backend, precision, bucket, buckets)


@dataclass(frozen=True)
class StageTimes:
    """One stage's batch on the device, back to back: `network_ms` of the network alone, `step_ms` of the whole batch.

    `step_ms` is None where no executor runs. `error`, against eager float32: relative RMS, or grey levels of decoded
    images. `digest`: of a row's bytes, equal in buckets that are strict together; VARIES if they depend on the batch,
    "" if that was not swept.
    """

    network_ms: float
    step_ms: float | None
    error: float
    digest: str


@dataclass(frozen=True)
class LoopResult:
    """The engine's own loop, noise in and pixels out: images per second, and the share of time the device computed."""

    images_per_s: float
    device_share: float


@dataclass(frozen=True)
class CellResult:
    """Result of a cell; `failure` says why it has no times.

    `denoised_per_s`: images per second if the device ran the denoisers and nothing else; `networks_per_s`: also the
    decoder. `plain_per_s`: in torch as one writes it, without this engine. `of_peak`: operations per second of the
    denoisers over those of a large bf16 product. `memory_mb`: all memory in use on the device, including its context.
    """

    network: GpuNetwork
    backend: str
    precision: str
    bucket: int
    hardware: str
    fingerprint: str
    cell_s: float
    failure: str = ""
    stages: dict[Stage, StageTimes] = field(default_factory=dict)
    loop: LoopResult | None = None
    denoised_per_s: float = 0.0
    networks_per_s: float | None = None
    plain_per_s: float | None = None
    of_peak: float = 0.0
    memory_mb: float | None = None
    tolerances: dict[Stage, float] = field(default_factory=dict)
    compile_s: float = 0.0

    def __str__(self) -> str:
        """Return the text of its cell."""
        return f"{self.network} {self.backend} {self.precision} x{self.bucket}"

    @classmethod
    def from_json(cls, line: str) -> Self:
        values = json.loads(line)
        values["network"] = GpuNetwork(**values["network"])
        values["stages"] = {Stage(name): StageTimes(**times) for name, times in values["stages"].items()}
        values["tolerances"] = {Stage(name): tolerance for name, tolerance in values["tolerances"].items()}
        values["loop"] = None if values["loop"] is None else LoopResult(**values["loop"])
        return cls(**values)


class ResultFile:
    """Results as JSON lines, each on disk as soon as it is measured."""

    def __init__(self, path: Path) -> None:
        """Read the results in `path`, without a truncated last line. Raises ValueError if it has other contents."""
        self.path = path
        self.results: list[CellResult] = []
        if not path.exists():
            return
        text, _, truncated = path.read_text().rpartition("\n")
        try:
            self.results = [CellResult.from_json(line) for line in text.splitlines()]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} has no results of this benchmark; choose another --out") from error
        if truncated and not self.results:
            raise ValueError(f"{path} has no results of this benchmark; choose another --out")
        if truncated:
            os.truncate(path, len(f"{text}\n".encode()))

    def append(self, result: CellResult) -> None:
        self.results.append(result)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
            os.fsync(file.fileno())
