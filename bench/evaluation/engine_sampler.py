"""The evaluation's sampler over the plans that serve a model: quality is measured on what users get."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from msf_engine.backends import BackendName, get_backend
from msf_engine.executor import NOISE, make_trajectory
from msf_engine.model import DecodeModule
from msf_engine.noise import NoiseStream, gaussian_noise
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import ModelPlans, load_plans
from msf_engine.repository import ModelVersion
from msf_scheduler.stage import Stage
from msf_training.data import to_unit_range

BUCKET = 16


class EngineSampler:
    """An `ImageSampler` that runs full buckets. `pixels`, the model's uncompiled decoder, also encodes."""

    def __init__(self, plans: ModelPlans, pixels: DecodeModule) -> None:
        self.plans = plans
        self.bucket = plans.buckets[-1]
        self.pixels = pixels
        zero = torch.zeros(1, 3 * plans.config.latent_channels, 1, 1)
        self.zero_residual = pixels.residual.normalize(zero)

    def base(self, labels: Tensor, *, num_steps: int, guidance_scale: float, seed: int) -> Tensor:
        noise = self._noise(Stage.BASE, len(labels), seed)
        no_cond = noise[:, :0]
        return self._denoise(Stage.BASE, noise, no_cond, labels, num_steps=num_steps, guidance_scale=guidance_scale)

    def residual(self, base: Tensor, labels: Tensor, *, num_steps: int, guidance_scale: float, seed: int) -> Tensor:
        blur = _noise(NoiseStream.CONDITION, base[0].shape, len(labels), seed)
        cond = torch.lerp(base, blur, self.plans.config.conditioning_noise)
        noise = self._noise(Stage.RESIDUAL, len(labels), seed)
        return self._denoise(Stage.RESIDUAL, noise, cond, labels, num_steps=num_steps, guidance_scale=guidance_scale)

    def decode(self, base: Tensor, residual: Tensor | None) -> Tensor:
        if residual is None:
            residual = self.zero_residual.expand(len(base), -1, *base.shape[2:])
        decode = self.plans.decode[self.bucket]
        images = [
            decode(_padded(b, self.bucket), _padded(r, self.bucket))[0][: len(b)]
            for b, r in zip(torch.split(base, self.bucket), torch.split(residual, self.bucket), strict=True)
        ]
        return torch.cat(images).movedim(-1, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.pixels.encode(to_unit_range(images))

    def _noise(self, stage: Stage, count: int, seed: int) -> Tensor:
        denoiser = self.plans.config.stage(stage).denoiser
        return _noise(NOISE[stage], (denoiser.in_channels, denoiser.size, denoiser.size), count, seed)

    def _denoise(
        self,
        stage: Stage,
        noise: Tensor,
        cond: Tensor,
        labels: Tensor,
        *,
        num_steps: int,
        guidance_scale: float,
    ) -> Tensor:
        trajectory = make_trajectory(self.plans, stage, num_steps, guidance_scale)
        clean = []
        for part in torch.split(torch.arange(len(labels)), self.bucket):
            rows = _padded(part, self.bucket)
            x, d = noise[rows], torch.zeros_like(noise[rows])
            for embedding, numbers, guided in zip(
                trajectory.time_embedding, trajectory.numbers, trajectory.guided, strict=True
            ):
                scalars = numbers[:, None].repeat(1, self.bucket).unbind(0)
                plan = self.plans.steps[stage, guided, self.bucket]
                d, x = plan(x, d, cond[rows], embedding.repeat(self.bucket, 1), labels[rows], *scalars)
            clean.append(x[: len(part)])
        return torch.cat(clean)


def load_sampler(version: ModelVersion, backend: BackendName, plan_folder: Path) -> EngineSampler:
    """Raises what `get_backend` and `load_plans` raise."""
    num_threads = torch.get_num_threads()
    plans = load_plans(version, get_backend(backend, None, num_threads), PlanCache(plan_folder), buckets=(BUCKET,))
    return EngineSampler(plans, DecodeModule(version.load()))


def _noise(stream: NoiseStream, shape: tuple[int, ...], count: int, seed: int) -> Tensor:
    return torch.stack([gaussian_noise(shape, seed=seed, index=index, stream=stream) for index in range(count)])


def _padded(rows: Tensor, bucket: int) -> Tensor:
    """Fill the bucket with copies of the first row."""
    return torch.cat((rows, rows[:1].expand(bucket - len(rows), *rows.shape[1:])))
