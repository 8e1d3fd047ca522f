"""Sampling of a DiT, or of MSF's two denoisers, by the plans that would serve them, and its speed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from msf_engine.guided_step import StepModule
from torch import Tensor

from msf_engine.backends import get_backend
from msf_engine.config import DenoiserConfig
from msf_engine.denoiser import Denoiser
from msf_engine.model import DecodeModule, MsfModel
from msf_engine.model_plans import BucketedPlan
from msf_engine.plan import PlanSpec, decode_inputs, step_inputs
from msf_engine.sampling import make_trajectory, sample
from msf_engine.schedule import Solver, timesteps
from msf_scheduler.stage import Stage

BUCKETS = (1, 2, 4, 8, 16, 32)
ROUNDS = 5


@dataclass(frozen=True)
class Sampling:
    """Steps and guidance scale of each stage, the solver, and the noise level of the residual's condition."""

    steps: tuple[int, ...]
    guidance: tuple[float, ...]
    solver: Solver = "ab2"
    conditioning_noise: float = 0.1

    def __str__(self) -> str:
        scales = dict.fromkeys(f"{scale:g}" for scale in self.guidance)
        return f"{'+'.join(map(str, self.steps))}@{'/'.join(scales)}"


@dataclass(frozen=True)
class Speed:
    """Images per second with one image at a time, and at the best batch size, `bucket`."""

    alone: float
    best: float
    bucket: int


class StageSampler:
    """A network's stages, compiled for batches of `bucket`."""

    def __init__(self, stages: Sequence[Denoiser], sampling: Sampling, bucket: int) -> None:
        self.stages = stages
        self.sampling = sampling
        self.trajectories, self.plans = [], []
        for denoiser, num_steps, scale in zip(stages, sampling.steps, sampling.guidance, strict=True):
            guided = scale != 1
            trajectory = make_trajectory(
                denoiser.time,
                timesteps(num_steps),
                [scale] * num_steps,
                solver=sampling.solver,
                conditioning_noise=sampling.conditioning_noise,
            )
            spec = PlanSpec("reproduction", "", Stage.BASE, guided, (bucket,), step_inputs(denoiser.config))
            self.trajectories.append(trajectory)
            self.plans.append({guided: _compiled(spec, StepModule(denoiser, guided=guided).eval())})

    def __call__(self, labels: Tensor, seed: int, base: Tensor | None = None) -> list[Tensor]:
        """Return each stage's normalised latents (N, C, h, w) of labels (N,); `base` takes the place of the first's."""
        generator = torch.Generator().manual_seed(seed)
        latents = [] if base is None else [base]
        for number in range(len(latents), len(self.stages)):
            config = self.stages[number].config
            noise = torch.randn(len(labels), config.in_channels, config.size, config.size, generator=generator)
            cond = noise[:, :0]
            if config.cond_channels:
                cond_noise = torch.randn(latents[0].shape, generator=generator)
                cond = torch.lerp(latents[0], cond_noise, self.sampling.conditioning_noise)
            latents.append(sample(self.plans[number], self.trajectories[number], noise, cond, labels))
        return latents


def _compiled(spec: PlanSpec, module: torch.nn.Module) -> BucketedPlan:
    backend = get_backend("openvino", None, torch.get_num_threads())
    plan = backend.load(spec, backend.compile(spec, module), lambda: module)
    return BucketedPlan(dict.fromkeys(spec.buckets, plan))


def measure_speeds(
    samplings: Mapping[str, tuple[Sequence[DenoiserConfig], Sampling]], model: MsfModel
) -> dict[str, Speed]:
    """Measure each entry's sampling, on random weights, and the decoding that all share, in turns.

    A time is the median of ROUNDS; it does not depend on the weights.
    """
    seconds: dict[tuple[str, int], list[float]] = {}
    for bucket in BUCKETS:
        spec = PlanSpec("reproduction", "", Stage.DECODE, False, (bucket,), decode_inputs(model.config))
        decode, latents = _compiled(spec, DecodeModule(model).eval()), spec.example(bucket)
        samplers = {
            name: StageSampler([Denoiser(config).eval() for config in stages], sampling, bucket)
            for name, (stages, sampling) in samplings.items()
        }
        for round_number in range(ROUNDS + 1):
            for name, sampler in samplers.items():
                started_at = time.perf_counter()
                sampler(torch.zeros(bucket, dtype=torch.int64), seed=0)
                decode(*latents)
                if round_number:  # the first warms up
                    seconds.setdefault((name, bucket), []).append(time.perf_counter() - started_at)
    speeds = {}
    for name in samplings:
        rates = {bucket: bucket / median(seconds[name, bucket]) for bucket in BUCKETS}
        best = max(rates, key=rates.__getitem__)
        speeds[name] = Speed(rates[1], rates[best], best)
    return speeds
