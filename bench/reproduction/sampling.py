"""Sampling of a DiT, or of MSF's two denoisers, by the plans that would serve them, and its speed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from msf_engine.backends import get_backend
from msf_engine.denoiser import Denoiser
from msf_engine.denoiser_config import DenoiserConfig
from msf_engine.eager_network import host_time_embedding
from msf_engine.factorization import up
from msf_engine.model import DecodeModule, MsfModel
from msf_engine.model_plans import run_rows
from msf_engine.plan import Array, Plan, PlanSpec, decode_inputs, denoiser_inputs, run
from msf_engine.sampling import make_trajectory, sample
from msf_engine.schedule import Solver, flow_schedule, flow_times
from msf_scheduler.stage import Stage

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
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
    """Images per second with one image at a time, and at the best batch size."""

    alone: float
    best: float
    batch_size: int


class StageSampler:
    """A network's stages by the plans that would serve them, in batches of `batch_sizes` samples."""

    def __init__(self, stages: Sequence[Denoiser], sampling: Sampling, batch_sizes: Sequence[int]) -> None:
        self.stages = stages
        self.sampling = sampling
        self.trajectories, self.networks = [], []
        for denoiser, num_steps, scale in zip(stages, sampling.steps, sampling.guidance, strict=True):
            trajectory = make_trajectory(
                host_time_embedding(denoiser),
                flow_schedule(flow_times(num_steps)),
                np.full(num_steps, scale),
                solver=sampling.solver,
                conditioning_noise=sampling.conditioning_noise,
            )
            rows_per_sample = 1 if scale == 1 else 2
            buckets = tuple(rows_per_sample * size for size in batch_sizes)
            spec = PlanSpec("reproduction", "", Stage.BASE, buckets, denoiser_inputs(denoiser.config))
            self.trajectories.append(trajectory)
            self.networks.append(partial(run_rows, _compiled(spec, denoiser.eval()), buckets))

    def __call__(self, labels: Tensor, seed: int, base: Tensor | None = None) -> list[Tensor]:
        """Return each stage's normalised latents (N, C, h, w) of labels (N,); `base` takes the place of the first's."""
        generator = torch.Generator().manual_seed(seed)
        latents = [] if base is None else [base]
        for number in range(len(latents), len(self.stages)):
            denoiser = self.stages[number]
            config = denoiser.config
            noise = torch.randn(len(labels), config.in_channels, config.size, config.size, generator=generator)
            cond: Array | None = None
            if config.cond_channels:
                condition = latents[0] if config.size == latents[0].shape[-1] else up(latents[0])
                cond_noise = torch.randn(condition.shape, generator=generator)
                cond = torch.lerp(condition, cond_noise, self.sampling.conditioning_noise).numpy()
            network, trajectory = self.networks[number], self.trajectories[number]
            stage = sample(network, trajectory, noise.numpy(), labels.numpy(), denoiser.null_label, cond)
            latents.append(torch.from_numpy(stage))
        return latents


def _compiled(spec: PlanSpec, module: torch.nn.Module) -> Plan:
    backend = get_backend("openvino", None, torch.get_num_threads())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backend.compile(spec, module, folder)
        return backend.load(spec, folder, lambda: module)


def measure_speeds(
    samplings: Mapping[str, tuple[Sequence[DenoiserConfig], Sampling]], model: MsfModel
) -> dict[str, Speed]:
    """Measure each entry's sampling, on random weights, and the decoding that all share, in turns.

    A time is the median of ROUNDS; it does not depend on the weights.
    """
    seconds: dict[tuple[str, int], list[float]] = {}
    spec = PlanSpec("reproduction", "", Stage.DECODE, BATCH_SIZES, decode_inputs(model.config))
    decode = _compiled(spec, DecodeModule(model).eval())
    samplers = {
        name: StageSampler([Denoiser(config).eval() for config in stages], sampling, BATCH_SIZES)
        for name, (stages, sampling) in samplings.items()
    }
    for batch_size in BATCH_SIZES:
        for round_number in range(ROUNDS + 1):
            for name, sampler in samplers.items():
                started_at = time.perf_counter()
                sampler(torch.zeros(batch_size, dtype=torch.int64), seed=0)
                run(decode, spec.zeros(batch_size))
                if round_number:  # the first warms up
                    seconds.setdefault((name, batch_size), []).append(time.perf_counter() - started_at)
    speeds = {}
    for name in samplings:
        rates = {size: size / median(seconds[name, size]) for size in BATCH_SIZES}
        best = max(rates, key=rates.__getitem__)
        speeds[name] = Speed(rates[1], rates[best], best)
    return speeds
