"""Samples of a DiT or of MSF's two denoisers by the plans that would serve them, and how many a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import torch
from torch import Tensor

from msf_engine.backends import get_backend
from msf_engine.config import DenoiserConfig
from msf_engine.denoiser import Denoiser
from msf_engine.guided_step import StepModule
from msf_engine.model import DecodeModule, MsfModel
from msf_engine.plan import Plan, PlanSpec, decode_inputs, step_inputs
from msf_engine.schedule import Solver, timesteps, updates
from msf_scheduler.stage import Stage

BATCH = 50
BUCKETS = (1, 2, 4, 8, 16, 32)
ROUNDS = 5


@dataclass(frozen=True)
class Sampling:
    """Steps and guidance scale of each stage, the solver, and the noise that the residual's stage sees the base in."""

    steps: tuple[int, ...]
    guidance: tuple[float, ...]
    solver: Solver = "ab2"
    conditioning_noise: float = 0.1

    def __str__(self) -> str:
        scales = dict.fromkeys(f"{scale:g}" for scale in self.guidance)
        return f"{'+'.join(map(str, self.steps))}@{'/'.join(scales)}"


def sample(
    stages: Sequence[Denoiser], labels: Tensor, sampling: Sampling, seed: int, base: Tensor | None = None
) -> list[Tensor]:
    """Labels (N,), N a multiple of BATCH, to each stage's normalised latents (N, C, h, w). `base`: taken for the first
    stage's, which is not run.
    """
    generator = torch.Generator().manual_seed(seed)
    made = [] if base is None else [base]
    for number in range(len(made), len(stages)):
        denoiser = stages[number]
        config = denoiser.config
        noise = torch.randn(len(labels), config.in_channels, config.size, config.size, generator=generator)
        cond = noise[:, :0]
        if config.cond_channels:
            blur = torch.randn(made[0].shape, generator=generator)
            cond = torch.lerp(made[0], blur, sampling.conditioning_noise)
        run = _Steps(denoiser, sampling, number, BATCH)
        parts = (torch.split(each, BATCH) for each in (noise, cond, labels))
        made.append(torch.cat([run(*rows) for rows in zip(*parts, strict=True)]))
    return made


@dataclass(frozen=True)
class _Steps:
    """All steps of one stage of a sampling, for batches of one size."""

    denoiser: Denoiser
    sampling: Sampling
    stage: int
    batch: int

    @property
    def guidance(self) -> float:
        return self.sampling.guidance[self.stage]

    @cached_property
    def plan(self) -> Plan:
        guided = self.guidance != 1
        spec = PlanSpec("reproduction", "", Stage.BASE, guided, (self.batch,), step_inputs(self.denoiser.config))
        module = StepModule(self.denoiser, guided=guided).eval()
        backend = get_backend("openvino", None, torch.get_num_threads())
        return backend.load(spec, backend.compile(spec, module), lambda: module)

    @cached_property
    def inputs(self) -> list[tuple[Tensor, list[Tensor]]]:
        """Time embedding and numbers of each step, for the whole batch."""
        times = timesteps(self.sampling.steps[self.stage])
        level = torch.tensor([self.sampling.conditioning_noise])
        with torch.inference_mode():
            return [
                (
                    self.denoiser.time(torch.tensor([t]), level).repeat(self.batch, 1),
                    [torch.full((self.batch,), number) for number in (self.guidance, update.a, update.b, update.c)],
                )
                for t, update in zip(times, updates(self.sampling.solver, times), strict=False)
            ]

    def __call__(self, noise: Tensor, cond: Tensor, labels: Tensor) -> Tensor:
        x, d = noise, torch.zeros_like(noise)
        for embedding, numbers in self.inputs:
            d, x = self.plan(x, d, cond, embedding, labels, *numbers)
        return x.clone()


@dataclass(frozen=True)
class Speed:
    """Images per second with one image at a time, and in the bucket that makes the most of them."""

    alone: float
    best: float
    bucket: int


def measure_speeds(
    entrants: Mapping[str, tuple[Sequence[DenoiserConfig], Sampling]],
    model: MsfModel,
    num_threads: int,
) -> dict[str, Speed]:
    """Every entrant's steps and the decoding that all share, in turns: the median of ROUNDS.

    Weights are random: a step's time does not depend on them.
    """
    seconds: dict[tuple[str, int], list[float]] = {}
    for bucket in BUCKETS:
        decode = _decoding(model, bucket, num_threads)
        runs = {name: _runner(stages, sampling, bucket) for name, (stages, sampling) in entrants.items()}
        for round_number in range(ROUNDS + 1):
            for name, run in runs.items():
                started_at = time.perf_counter()
                run()
                decode()
                if round_number:  # the first warms up
                    seconds.setdefault((name, bucket), []).append(time.perf_counter() - started_at)
    speeds = {}
    for name in entrants:
        rates = {bucket: bucket / median(seconds[name, bucket]) for bucket in BUCKETS}
        best = max(rates, key=rates.__getitem__)
        speeds[name] = Speed(rates[1], rates[best], best)
    return speeds


def _runner(stages: Sequence[DenoiserConfig], sampling: Sampling, bucket: int) -> Callable[[], None]:
    runs = []
    for number, config in enumerate(stages):
        torch.manual_seed(0)
        run = _Steps(Denoiser(config).eval(), sampling, number, bucket)
        noise = torch.randn(bucket, config.in_channels, config.size, config.size)
        cond = torch.randn(bucket, config.cond_channels, config.size, config.size)
        runs.append((run, noise, cond, torch.zeros(bucket, dtype=torch.int64)))

    def all_stages() -> None:
        for run, noise, cond, labels in runs:
            run(noise, cond, labels)

    return all_stages


def _decoding(model: MsfModel, bucket: int, num_threads: int) -> Callable[[], object]:
    spec = PlanSpec("reproduction", "", Stage.DECODE, False, (bucket,), decode_inputs(model.config))
    module = DecodeModule(model).eval()
    backend = get_backend("openvino", None, num_threads)
    plan = backend.load(spec, backend.compile(spec, module), lambda: module)
    example = spec.example(bucket)
    return lambda: plan(*example)
