"""Methods to evaluate a denoiser, each in its own process, measured in turns.

Separate processes have separate memory and threads; turns expose all methods to the same noise of the machine.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from bench.engine.backends import MethodName, get_method
from bench.engine.flops import row_flops
from bench.engine.sizes import DenoiserSize, random_denoiser
from msf_engine.backends import Precision
from msf_engine.plan import Array, PlanSpec, denoiser_inputs, run
from msf_scheduler.stage import Stage

Step = Callable[[], object]
PEAK = "matmul peak, bf16"
METHODS: dict[str, tuple[MethodName, Precision | None]] = {
    "eager fp32": ("eager", "fp32"),
    "eager bf16": ("eager", "bf16"),
    "eager bf16 (cast)": ("eager-cast", "bf16"),
    "openvino": ("openvino", None),
    "inductor bf16": ("inductor", "bf16"),
}
MIN_ROUND_S = 0.3
NUM_WARMUP = 3
MATMUL_SIZES = ((1024, 1024, 4096), (2048, 2048, 1024), (4096, 1024, 1024))  # equal numbers of operations


@dataclass(frozen=True)
class StepCase:
    """One evaluation of a denoiser for `bucket` rows."""

    size: DenoiserSize
    stage: Stage
    bucket: int
    num_threads: int

    def spec(self) -> PlanSpec:
        return PlanSpec("bench", "", self.stage, (self.bucket,), denoiser_inputs(self.size))

    def flops(self) -> float:
        """Return the operations of a batch's matrix products."""
        return self.bucket * row_flops(self.size)

    def inputs(self) -> tuple[Array, ...]:
        normal = np.random.default_rng(1).standard_normal
        return tuple(
            normal(a.shape, np.float32) if a.dtype == np.float32 else a for a in self.spec().zeros(self.bucket)
        )


@dataclass
class MethodProcess:
    """A live process that runs one method; `seconds` are of single steps, over all rounds."""

    process: SpawnProcess | None
    pipe: Connection
    seconds: list[float] = field(default_factory=list)
    memory_mb: float = 0.0  # peak

    def run_round(self) -> None:
        self.pipe.send(True)
        seconds, self.memory_mb = self.pipe.recv()
        self.seconds += seconds


def measure(case: StepCase, methods: Sequence[str], num_rounds: int) -> dict[str, MethodProcess]:
    """Run the methods and PEAK in turns; a method that cannot start is reported and left out."""
    context = multiprocessing.get_context("spawn")
    processes = {}
    for name in (PEAK, *methods):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(name, case, theirs), daemon=True)
        process.start()
        theirs.close()
        with suppress(EOFError):
            if problem := ours.recv():
                print(f"{name}: {problem}")
            else:
                processes[name] = MethodProcess(process, ours)
    for _ in range(num_rounds):
        for method in processes.values():
            method.run_round()
    for method in processes.values():
        method.pipe.close()
        if method.process is not None:
            method.process.join()
    return processes


def _serve(name: str, case: StepCase, pipe: Connection) -> None:
    """Run in the method's process: send a problem or None, then the times of each round until the pipe closes."""
    torch.set_num_threads(case.num_threads)
    try:
        step = _peak_step() if name == PEAK else _make_step(name, case)
        for _ in range(NUM_WARMUP):
            step()
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send(None)
    with suppress(EOFError):
        while pipe.recv():
            seconds: list[float] = []
            while sum(seconds) < MIN_ROUND_S:
                started_at = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - started_at)
            pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3))


def _make_step(name: str, case: StepCase) -> Step:
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; allowed: {', '.join(METHODS)}")
    network, inputs, spec = random_denoiser(case.size), case.inputs(), case.spec()
    backend = get_method(*METHODS[name], case.num_threads)
    with TemporaryDirectory() as folder:
        backend.compile(spec, network, Path(folder))
        plan = backend.load(spec, Path(folder), lambda: network)
    return lambda: run(plan, inputs)


def _peak_step() -> Step:
    """Return the fastest of some large matrix products; each takes `peak_flops` operations."""
    candidates = []
    for rows, inner, columns in MATMUL_SIZES:
        a, b = torch.randn(rows, inner).bfloat16(), torch.randn(columns, inner).bfloat16().t()
        torch.mm(a, b)
        started_at = time.perf_counter()
        torch.mm(a, b)
        candidates.append((time.perf_counter() - started_at, a, b))
    _, a, b = min(candidates, key=itemgetter(0))
    return lambda: torch.mm(a, b)


def peak_flops() -> int:
    rows, inner, columns = MATMUL_SIZES[0]
    return 2 * rows * inner * columns
