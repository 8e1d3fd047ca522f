"""What is compared: ways to run one step, each in a process of its own, asked in turn.

A process of its own has its own memory and threads; to ask in turn lets a noisy machine be noisy to all alike.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from operator import itemgetter
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from bench.engine.flops import step_flops
from bench.engine.sizes import DenoiserSize, random_denoiser
from bench.engine.whole_cast import whole_cast
from msf_engine.backends import get_backend
from msf_engine.guided_step import StepModule
from msf_engine.plan import PlanSpec, step_inputs
from msf_scheduler.stage import Stage

Step = Callable[[], object]
PEAK = "matmul peak, bf16"
WAYS = ("eager fp32", "eager bf16 (autocast)", "eager bf16 (cast)", "openvino", "inductor bf16")
MIN_ROUND_S = 0.3
_MATMULS = ((1024, 1024, 4096), (2048, 2048, 1024), (4096, 1024, 1024))


@dataclass(frozen=True)
class Case:
    """One step to be made: guided, of a denoiser of this size."""

    size: DenoiserSize
    stage: Stage
    bucket: int
    num_threads: int

    def spec(self) -> PlanSpec:
        inputs = step_inputs(self.size)
        return PlanSpec("bench", "", self.stage, True, (self.bucket,), inputs)

    def module(self) -> StepModule:
        return StepModule(random_denoiser(self.size), guided=True).eval()

    def flops(self) -> float:
        """Of the matrix products of one step batch."""
        return self.bucket * step_flops(self.size)

    def inputs(self) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        example = self.spec().example(self.bucket)
        return tuple(torch.randn_like(tensor) if tensor.is_floating_point() else tensor for tensor in example)


@dataclass
class Contender:
    """A live process; `seconds` are of single steps, over all rounds."""

    name: str
    process: Any
    pipe: Connection
    seconds: list[float] = field(default_factory=list)
    memory_mb: float = 0.0

    def run(self) -> None:
        self.pipe.send(True)
        seconds, self.memory_mb = self.pipe.recv()
        self.seconds += seconds

    @property
    def median_s(self) -> float:
        return median(self.seconds)

    @property
    def p99_s(self) -> float:
        return sorted(self.seconds)[min(int(0.99 * len(self.seconds)), len(self.seconds) - 1)]


def compete(case: Case, ways: tuple[str, ...], rounds: int) -> dict[str, Contender]:
    """Every way by name, and the peak, after so many rounds in turns. A way that cannot start is told and left out."""
    context = multiprocessing.get_context("spawn")
    contenders = {}
    for name in (PEAK, *ways):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(name, case, theirs), daemon=True)
        process.start()
        theirs.close()
        with suppress(EOFError):
            problem = ours.recv()
            if problem is None:
                contenders[name] = Contender(name, process, ours)
            else:
                print(f"{name}: {problem}")
    for _ in range(rounds):
        for contender in contenders.values():
            contender.run()
    for contender in contenders.values():
        contender.pipe.close()
        contender.process.join()
    return contenders


def _serve(name: str, case: Case, pipe: Connection) -> None:
    torch.set_num_threads(case.num_threads)
    try:
        step = _peak_step(name) or _step(name, case)
        for _ in range(3):
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


def _step(name: str, case: Case) -> Step:
    if name not in WAYS:
        raise ValueError(f"{name!r} is no way to run a step; allowed: {', '.join(WAYS)}")
    module, inputs, spec = case.module(), case.inputs(), case.spec()
    if name in ("openvino", "inductor bf16"):
        backend = get_backend("openvino" if name == "openvino" else "inductor", None, case.num_threads)
        if name == "inductor bf16":
            backend = get_backend("inductor", "bf16", case.num_threads)
        plan = backend.load(spec, backend.compile(spec, module), lambda: module)
        return lambda: plan(*inputs)
    network: nn.Module = whole_cast(module, torch.bfloat16) if name == "eager bf16 (cast)" else module

    def step() -> object:
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16, enabled=name == "eager bf16 (autocast)"),
        ):
            return network(*inputs)

    return step


def _peak_step(name: str) -> Step | None:
    """The fastest of some large products; each makes `peak_flops`."""
    if name != PEAK:
        return None
    candidates = []
    for rows, inner, columns in _MATMULS:
        a, b = torch.randn(rows, inner).bfloat16(), torch.randn(columns, inner).bfloat16().t()
        torch.mm(a, b)
        started_at = time.perf_counter()
        torch.mm(a, b)
        candidates.append((time.perf_counter() - started_at, a, b))
    _, a, b = min(candidates, key=itemgetter(0))
    return lambda: torch.mm(a, b)


def peak_flops() -> int:
    """Of every product of `_MATMULS`: they are alike."""
    (flops,) = {2 * rows * inner * columns for rows, inner, columns in _MATMULS}
    return flops
