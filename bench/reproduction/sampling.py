"""Sampling of a DiT, or of MSF's two denoisers, by the plans that would serve them, and its speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from msf_engine.backends import get_backend
from msf_engine.config import DenoiserConfig
from msf_engine.denoiser import Denoiser
from msf_engine.guided_step import StepModule
from msf_engine.model import DecodeModule, MsfModel
from msf_engine.model_plans import BucketedPlan
from msf_engine.plan import PlanSpec, decode_inputs, step_inputs
from msf_engine.sampling import make_trajectory, sample
from msf_engine.schedule import Solver, timesteps
from msf_scheduler.stage import Stage

BATCH = 50
BUCKETS = (1, 2, 4, 8, 16, 32)
ROUNDS = 5

Run = Callable[[Tensor, Tensor, Tensor], Tensor]  # noise, cond (B, ...) and labels (B,) to normalised latents


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


def sample_stages(
    stages: Sequence[Denoiser], labels: Tensor, sampling: Sampling, seed: int, base: Tensor | None = None
) -> list[Tensor]:
    """Return each stage's normalised latents (N, C, h, w) of labels (N,); `base` takes the place of the first's."""
    generator = torch.Generator().manual_seed(seed)
    latents = [] if base is None else [base]
    for number in range(len(latents), len(stages)):
        config = stages[number].config
        noise = torch.randn(len(labels), config.in_channels, config.size, config.size, generator=generator)
        cond = noise[:, :0]
        if config.cond_channels:
            cond = torch.lerp(
                latents[0], torch.randn(latents[0].shape, generator=generator), sampling.conditioning_noise
            )
        latents.append(_stage_run(stages[number], sampling, number, BATCH)(noise, cond, labels))
    return latents


def _stage_run(denoiser: Denoiser, sampling: Sampling, number: int, bucket: int) -> Run:
    """Return all steps of a stage as one call, in batches of one size."""
    times = timesteps(sampling.steps[number])
    scales = [sampling.guidance[number]] * (len(times) - 1)
    trajectory = make_trajectory(
        denoiser.time, times, scales, solver=sampling.solver, conditioning_noise=sampling.conditioning_noise
    )
    guided = trajectory.guided[0]
    spec = PlanSpec("reproduction", "", Stage.BASE, guided, (bucket,), step_inputs(denoiser.config))
    plans = {guided: _compiled(spec, StepModule(denoiser, guided=guided).eval())}
    return lambda noise, cond, labels: sample(plans, trajectory, noise, cond, labels)


def _compiled(spec: PlanSpec, module: torch.nn.Module) -> BucketedPlan:
    backend = get_backend("openvino", None, torch.get_num_threads())
    plan = backend.load(spec, backend.compile(spec, module), lambda: module)
    return BucketedPlan(dict.fromkeys(spec.buckets, plan))


def measure_speeds(
    samplings: Mapping[str, tuple[Sequence[DenoiserConfig], Sampling]], model: MsfModel
) -> dict[str, Speed]:
    """Measure each entry's steps and the decoding that all share, in turns: the median of ROUNDS.

    Weights are random: a step's time does not depend on them.
    """
    seconds: dict[tuple[str, int], list[float]] = {}
    for bucket in BUCKETS:
        spec = PlanSpec("reproduction", "", Stage.DECODE, False, (bucket,), decode_inputs(model.config))
        decode, latents = _compiled(spec, DecodeModule(model).eval()), spec.example(bucket)
        runs = {name: _random_run(stages, sampling, bucket) for name, (stages, sampling) in samplings.items()}
        for round_number in range(ROUNDS + 1):
            for name, run in runs.items():
                started_at = time.perf_counter()
                run()
                decode(*latents)
                if round_number:  # the first warms up
                    seconds.setdefault((name, bucket), []).append(time.perf_counter() - started_at)
    speeds = {}
    for name in samplings:
        rates = {bucket: bucket / median(seconds[name, bucket]) for bucket in BUCKETS}
        best = max(rates, key=rates.__getitem__)
        speeds[name] = Speed(rates[1], rates[best], best)
    return speeds


def _random_run(stages: Sequence[DenoiserConfig], sampling: Sampling, bucket: int) -> Callable[[], None]:
    """Return a call that runs all stages on random weights and latents."""
    torch.manual_seed(0)
    runs = []
    for number, config in enumerate(stages):
        run = _stage_run(Denoiser(config).eval(), sampling, number, bucket)
        noise, cond = (
            torch.randn(bucket, channels, config.size, config.size)
            for channels in (config.in_channels, config.cond_channels)
        )
        runs.append((run, noise, cond))

    def run_all() -> None:
        for run, noise, cond in runs:
            run(noise, cond, torch.zeros(bucket, dtype=torch.int64))

    return run_all
